"""rlx: IQL on a dataset, as `train.fit` compiles it."""

from __future__ import annotations

import argparse

from experiments.benchmarks.contestants import rlx_training, serve
from experiments.benchmarks.contestants.setting import (
    ACTION,
    OBSERVATION,
    TRANSITIONS,
    add_offline_options,
)

ROUND = 100
"""Gradient steps of an iteration."""


def main() -> None:
    """Answers in gradient steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_offline_options(parser)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices")
    options = parser.parse_args()

    from rlx import sharding

    sharding.use_cpu_cores(options.devices)
    import jax
    import numpy as np

    from rlx import program
    from rlx.data import dataset
    from rlx.methods import iql
    from rlx.types import Box, EnvSpec, Transition

    draw, number = np.random.default_rng(0), TRANSITIONS
    rows = Transition(
        observation=draw.normal(size=(number, OBSERVATION)).astype(np.float32),
        action=draw.uniform(-1, 1, (number, ACTION)).astype(np.float32),
        reward=draw.normal(size=number).astype(np.float32),
        discount=(draw.random(number) > 0.01).astype(np.float32),
        truncated=np.zeros(number, bool),
        next_observation=draw.normal(size=(number, OBSERVATION)).astype(np.float32),
        extras={},
    )
    spec = EnvSpec("random", Box((OBSERVATION,)), Box((ACTION,), -1.0, 1.0))
    config = iql.Config(
        hidden_sizes=(options.width, options.width), num_minibatches=ROUND
    )
    method = iql.make(spec, config)
    source = dataset.sample(
        dataset.Dataset(rows), batch_size=options.batch_size, num_minibatches=ROUND
    )
    programs = program.build(
        lambda _: method,
        source,
        program.make_runs(range(options.seeds), None)[0],
        evaluation_env=None,
        num_episodes=1,
    )
    state = [programs.init(programs.runs)]

    def advance(iterations: int) -> int:
        state[0] = programs.advance(programs.runs, state[0], np.int32(iterations))
        jax.block_until_ready(state[0])
        return options.seeds * iterations * ROUND

    serve.serve(rlx_training.in_slices(advance), ("jax", "jaxlib"))


if __name__ == "__main__":
    main()
