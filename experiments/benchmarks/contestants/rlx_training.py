"""rlx: whole training with PPO, as `train.fit` compiles it, without evaluation."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from experiments.benchmarks.contestants import serve
from experiments.benchmarks.contestants.setting import add_options

LOOK = 0.5
"""Seconds that one call of the compiled program should last; `fit` aims at two."""


def main() -> None:
    """Builds the programs of a fit and advances them."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices")
    parser.add_argument("--group", type=int, help="runs vmapped together")
    options = parser.parse_args()

    from rlx import sharding

    sharding.use_cpu_cores(options.devices)
    contestant = program_of(*build(options), options)
    serve.serve(contestant, ("jax", "jaxlib", "mujoco"))


def program_of(
    method: Any, source: Any, options: argparse.Namespace, as_fit: bool = False
) -> Callable[[], int]:
    """What `train.fit` compiles for `options.seeds` seeds, ready to go on.

    Args:
      method: what to learn with.
      source: where its data comes from.
      options: `seeds` and `group`.
      as_fit: calls last as long as those of `fit`, which has more seeds remember more.

    Returns:
      A function that trains for a moment and returns the steps of all seeds.
    """
    import jax
    import numpy as np

    from rlx import fitting, program

    runs, _ = program.make_runs(range(options.seeds), None)
    programs = program.build(
        lambda _: method,
        source,
        runs,
        evaluation_env=None,
        num_episodes=1,
        group=options.group,
    )
    state = [programs.init(programs.runs)]

    def advance(iterations: int) -> int:
        state[0] = programs.advance(programs.runs, state[0], np.int32(iterations))
        jax.block_until_ready(state[0])
        return options.seeds * iterations * source.steps_per_batch

    look = LOOK
    if as_fit:
        advance(0)
        started = time.perf_counter()
        advance(0)
        look = fitting.slice_seconds(time.perf_counter() - started)
    return in_slices(advance, look)


def in_slices(
    advance: Callable[[int], int], seconds: float = LOOK
) -> Callable[[], int]:
    """`advance(iterations)` with as many iterations as take about so many seconds."""
    advance(1)
    count = 1
    for _ in range(
        4
    ):  # what a call costs whatever it does is spread over more and more
        started = time.perf_counter()
        advance(count)
        count = max(1, round(seconds * count / (time.perf_counter() - started)))
    return lambda: advance(count)


def build(options: argparse.Namespace) -> tuple[Any, Any]:
    """The method and the source of data that the options describe."""
    import envs
    from rlx.data.rollout import rollout
    from rlx.methods import ppo

    env = envs.make(options.env)
    config = dataclasses.replace(
        ppo.Config(),
        num_epochs=options.num_epochs,
        num_minibatches=options.num_minibatches,
        normalize_observations=bool(options.normalize),
        normalize_rewards=bool(options.normalize),
        normalize_advantages="minibatch",  # as in all peers
    )
    source = rollout(env, num_envs=options.num_envs, length=options.length)
    return ppo.make(env.spec, config), source


if __name__ == "__main__":
    main()
