"""Stable-Baselines3, or its JAX version SBX: SAC on a Gymnasium task.

They run in a Python of their own:
`pip install stable-baselines3 sbx-rl "gymnasium[mujoco]"`.
"""

from __future__ import annotations

import argparse
import time

from experiments.benchmarks.contestants import serve
from experiments.benchmarks.contestants.setting import (
    CAPACITY,
    WARMUP,
    add_off_policy_options,
)

LOOK = 0.5
"""Seconds that one call should last."""


def main() -> None:
    """Answers in gradient steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_off_policy_options(parser)
    parser.add_argument("--library", choices=("sb3", "sbx"), default="sbx")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()

    import gymnasium
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([lambda: gymnasium.make(options.env)] * options.num_envs)
    model = _sac(options.library, options.threads)(
        "MlpPolicy",
        envs,
        learning_rate=3e-4,
        buffer_size=CAPACITY,
        learning_starts=WARMUP,
        batch_size=options.batch_size,
        train_freq=1,
        gradient_steps=options.gradient_steps,
        policy_kwargs={"net_arch": [options.width, options.width]},
        seed=0,
        verbose=0,
        device="cpu",
    )

    def train(times: int) -> int:
        """Steps of all environments, each followed by gradient steps."""
        model.learn(times * options.num_envs, reset_num_timesteps=False)
        return times * options.gradient_steps

    def update(times: int) -> int:
        for _ in range(times):
            model.train(options.gradient_steps, options.batch_size)
        return times * options.gradient_steps

    train(WARMUP // options.num_envs + 10)  # the first gradient steps compile
    work = update if options.updates else train
    started = time.perf_counter()
    work(10)
    count = max(1, round(LOOK / ((time.perf_counter() - started) / 10)))

    packages = ("stable-baselines3", "sbx-rl", "torch", "jax", "gymnasium", "mujoco")
    serve.serve(lambda: work(count), packages)
    envs.close()


def _sac(library: str, threads: int) -> type:
    if library == "sb3":
        import torch
        from stable_baselines3 import SAC

        torch.set_num_threads(threads)  # small matrices: more threads only wait
        return SAC
    from sbx import SAC

    return SAC


if __name__ == "__main__":
    main()
