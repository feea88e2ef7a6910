"""EnvPool stepping a MuJoCo task with uniform actions.

It runs in its own Python: `pip install envpool "gymnasium[mujoco]"`.
"""

from __future__ import annotations

import argparse

from experiments.benchmarks.contestants import serve


def main() -> None:
    """Steps synchronously, all environments at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="Hopper-v4")
    parser.add_argument("--num-envs", type=int, default=40)
    parser.add_argument("--length", type=int, default=100)
    options = parser.parse_args()

    import envpool
    import numpy as np

    pool = envpool.make_gymnasium(options.env, num_envs=options.num_envs)
    pool.reset()
    space = pool.action_space
    actions = np.random.default_rng(0).uniform(
        space.low, space.high, (options.length, options.num_envs, *space.shape)
    )

    def contestant() -> int:
        for action in actions:
            pool.step(action)
        return options.length * options.num_envs

    serve.serve(contestant, ("envpool", "gymnasium", "mujoco"))


if __name__ == "__main__":
    main()
