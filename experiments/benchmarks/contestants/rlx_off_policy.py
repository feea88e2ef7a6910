"""rlx: SAC, whole training as `train.fit` compiles it, or its gradient steps alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from experiments.benchmarks.contestants import rlx_training, serve
from experiments.benchmarks.contestants.setting import (
    CAPACITY,
    WARMUP,
    add_off_policy_options,
)


def main() -> None:
    """Answers in gradient steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_off_policy_options(parser)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices")
    parser.add_argument("--group", type=int, help="runs vmapped together")
    options = parser.parse_args()

    from rlx import sharding

    sharding.use_cpu_cores(options.devices)
    method, source = build(options)
    if options.updates:
        advance = updates(method, source, options)
    else:
        advance = rlx_training.program_of(method, source, options, as_fit=True)
    ratio = options.gradient_steps / source.steps_per_batch

    def contestant() -> int:
        return round(advance() * ratio)

    serve.serve(contestant, ("jax", "jaxlib", "mujoco"))


def build(options: argparse.Namespace) -> tuple[Any, Any]:
    """The method and the source of data that the options describe."""
    import envs
    from rlx.data.replay import replay
    from rlx.methods import sac

    env = envs.make(options.env)
    config = sac.Config(
        hidden_sizes=(options.width, options.width),
        num_minibatches=options.gradient_steps,
    )
    source = replay(
        env,
        num_envs=options.num_envs,
        batch_size=options.batch_size,
        num_minibatches=options.gradient_steps,
        capacity=CAPACITY,
        warmup=WARMUP,
    )
    return sac.make(env.spec, config), source


def updates(method: Any, source: Any, options: argparse.Namespace) -> Callable[[], int]:
    """Sampling and gradient steps on a ring that stays as it is.

    Returns:
      A function that takes gradient steps for about half a second and returns the
      environment steps that go with them.
    """
    import jax
    import numpy as np

    from rlx import learner, loop
    from rlx.data import ring

    start = jax.jit(lambda: loop.init(method, source, jax.random.key(0)))()
    drawn = (options.gradient_steps, options.batch_size)

    @jax.jit
    def run(memory: Any, state: Any, key: Any, count: Any) -> Any:
        def one(i: Any, state: Any) -> Any:
            sample_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            batch = ring.sample(memory, sample_key, drawn)
            return learner.update(method, state, batch, update_key)[0]

        return jax.lax.fori_loop(0, count, one, state)

    state, calls = [start.learner], [0]

    def advance(count: int) -> int:
        calls[0] += 1
        key = jax.random.key(calls[0])
        state[0] = run(start.source.ring, state[0], key, np.int32(count))
        jax.block_until_ready(state[0])
        return count * source.steps_per_batch

    return rlx_training.in_slices(advance)


if __name__ == "__main__":
    main()
