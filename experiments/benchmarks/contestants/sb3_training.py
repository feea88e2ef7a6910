"""Stable-Baselines3, or its JAX version SBX: PPO on a Gymnasium task.

They run in a Python of their own:
`pip install stable-baselines3 sbx-rl "gymnasium[mujoco]"`.
"""

from __future__ import annotations

import argparse

from experiments.benchmarks.contestants import serve
from experiments.benchmarks.contestants.setting import add_options


def main() -> None:
    """Learns one batch after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--library", choices=("sb3", "sbx"), default="sb3")
    parser.add_argument("--vector", choices=("dummy", "subproc"), default="dummy")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()

    import gymnasium
    from stable_baselines3.common import vec_env

    kind = {"dummy": vec_env.DummyVecEnv, "subproc": vec_env.SubprocVecEnv}
    envs = kind[options.vector](
        [lambda: gymnasium.make(options.env)] * options.num_envs
    )
    if options.normalize:
        envs = vec_env.VecNormalize(envs)
    batch = options.num_envs * options.length
    model = _ppo(options.library, options.threads)(
        "MlpPolicy",
        envs,
        n_steps=options.length,
        batch_size=batch // options.num_minibatches,
        n_epochs=options.num_epochs,
        policy_kwargs=_architecture(options.library),
        seed=0,
        verbose=0,
        device="cpu",
    )

    def contestant() -> int:
        model.learn(batch, reset_num_timesteps=False)
        return batch

    packages = ("stable-baselines3", "sbx-rl", "torch", "jax", "gymnasium", "mujoco")
    serve.serve(contestant, packages)
    envs.close()


def _ppo(library: str, threads: int) -> type:
    if library == "sb3":
        import torch
        from stable_baselines3 import PPO

        torch.set_num_threads(threads)  # small matrices: more threads only wait
        return PPO
    from sbx import PPO

    return PPO


def _architecture(library: str) -> dict:
    if library == "sb3":
        return {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}
    from flax import linen

    return {"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": linen.tanh}


if __name__ == "__main__":
    main()
