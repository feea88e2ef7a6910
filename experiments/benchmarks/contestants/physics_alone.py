"""Physics without learning: rlx's native engine, or bare `mujoco.batch` below it."""

from __future__ import annotations

import argparse

from experiments.benchmarks.contestants import serve


def main() -> None:
    """Steps environments with uniform actions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="hopper")
    parser.add_argument("--num-envs", type=int, default=40)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--layer", choices=("native", "batch"), default="native")
    options = parser.parse_args()

    import envs
    from experiments.benchmarks import physics

    env = envs.make(options.env)
    contestant, visited = physics.native(env, options.num_envs, options.length)
    if options.layer == "batch":
        contestant = physics.batch(options.env, *visited)
    serve.serve(contestant, ("jax", "jaxlib", "mujoco"))


if __name__ == "__main__":
    main()
