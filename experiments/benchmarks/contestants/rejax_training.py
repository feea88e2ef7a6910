"""rejax: whole training with PPO on a gymnax task, without evaluation.

It runs in its own Python: `pip install rejax "gymnax<1"` (rejax 0.1.3 unpacks five
results of a step, gymnax 1.0 returns six).
"""

from __future__ import annotations

import argparse

from experiments.benchmarks.contestants import serve
from experiments.benchmarks.contestants.setting import add_options


def main() -> None:
    """Trains for a number of batches, again and again from where it was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--form", choices=("vmap", "map"), default="vmap")
    parser.add_argument("--iterations", type=int, default=1, help="between two looks")
    options = parser.parse_args()

    import jax
    from rejax import PPO

    steps = options.num_envs * options.length * options.iterations
    algorithm = PPO.create(
        env=options.env,
        num_envs=options.num_envs,
        num_steps=options.length,
        num_epochs=options.num_epochs,
        num_minibatches=options.num_minibatches,
        normalize_observations=bool(options.normalize),
        normalize_rewards=bool(options.normalize),
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
        max_grad_norm=0.5,
        ent_coef=0.0,
    ).replace(eval_callback=lambda *_: ())
    keys = jax.random.split(jax.random.key(0), options.seeds)
    many = {"vmap": jax.vmap, "map": lambda f: lambda x: jax.lax.map(f, x)}
    over = many[options.form] if options.seeds > 1 else _one
    state = [jax.jit(over(algorithm.init_state))(keys)]
    train = jax.jit(over(lambda x: algorithm.train(train_state=x)[0]), donate_argnums=0)

    def contestant() -> int:
        state[0] = jax.block_until_ready(train(state[0]))
        return steps * options.seeds

    serve.serve(contestant, ("rejax", "gymnax", "jax", "jaxlib"))


def _one(function):
    """`function` of the only element; no axis is left for XLA to mind."""
    import jax

    def of_first(tree):
        first = jax.tree.map(lambda x: x[0], tree)
        return jax.tree.map(lambda x: jax.numpy.asarray(x)[None], function(first))

    return of_first


if __name__ == "__main__":
    main()
