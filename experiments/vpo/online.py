"""Online bandits: does optimism find what the reference hides?

    python -m experiments.vpo.online

One prompt, 10 responses, rewards 3 U[0, 1]. In the "hidden" worlds the reference hardly
ever gives the best response. Each of 150 rounds asks about one pair and fits the reward
anew: boxed to [-3, 3], with a ridge, by the reward form of VPO in the paper's (sum)
convention of α. α = 0 is online DPO (by its own reward). "several starts" fits from
where the last round ended and from each response being the best, and takes the lowest
objective; "one start" takes gradient steps from where the last round ended.
"""

from __future__ import annotations

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from envs.language import bandit
from experiments import records
from experiments.vpo import common
from rlx.methods import vpo
from rlx.types import Array, Key

BETA, BOX, RIDGE, ROUNDS, ARMS = 0.1, 3.0, 0.1, 150, 10
STEPS, RATE = 40, 0.1
OPTIMISM = (-1.0, -0.3, 0.0, 0.1, 0.3, 1.0, 3.0)
"""s α_sum; below 0 pessimism."""


def objective(
    raw: Array, world: bandit.Bandit, counts: Array, optimism: Array
) -> Array:
    """The reward form of VPO, summed over pairs, with a ridge."""
    reward = BOX * jnp.tanh(raw)
    pairs = jnp.maximum(jnp.sum(counts), 1.0)
    found = vpo.reward_loss(
        reward,
        world.reference,
        counts,
        jnp.exp(world.reference),
        beta=BETA,
        optimism=vpo.from_sum(optimism, pairs),
    )
    return pairs * found + 0.5 * RIDGE * jnp.sum(jnp.square(reward))


def run(key: Key, optimism: Array, hidden: bool, opponent: str, several: bool) -> Array:
    """Gaps `[ROUNDS]` of the policy of each round, before its question."""
    world_key, pairs_key = jax.random.split(key)
    world = bandit.tabular(world_key, num_responses=ARMS)
    if hidden:
        world = bandit.hidden_best(world)
    others = jnp.arctanh(0.9) * jnp.eye(ARMS)[:, None]

    def policy(raw: Array) -> Array:
        logits = world.reference + BOX * jnp.tanh(raw) / BETA
        return jax.nn.log_softmax(logits, axis=-1)

    def round_(carry: tuple[Array, Array], key: Key) -> tuple:
        raw, counts = carry
        mine = policy(raw)
        second = mine if opponent == "policy" else world.reference
        counts = counts + bandit.ask(key, world, mine, second)
        starts = jnp.concatenate([raw[None], others]) if several else raw[None]

        def price(raw: Array) -> Array:
            return objective(raw, world, counts, optimism)

        fits = jax.vmap(lambda x: common.descend(price, x, STEPS, RATE))(starts)
        raw_new = fits[jnp.argmin(jax.vmap(price)(fits))]
        return (raw_new, counts), bandit.gap(world, mine, BETA)

    begin = (jnp.zeros((1, ARMS)), jnp.zeros((1, ARMS, ARMS)))
    return jax.lax.scan(round_, begin, jax.random.split(pairs_key, ROUNDS))[1]


@functools.partial(jax.jit, static_argnames=("hidden", "opponent", "several"))
def study(
    keys: Key, optimism: Array, hidden: bool, opponent: str, several: bool
) -> Array:
    """Gaps `[len(optimism), seeds, ROUNDS]`."""

    def one(key: Key, optimism: Array) -> Array:
        return run(key, optimism, hidden, opponent, several)

    return jax.lax.map(lambda x: jax.vmap(one, (0, None))(keys, x), optimism)


def cell(keys: Key, hidden: bool, opponent: str, several: bool) -> dict:
    """All degrees of optimism in one setting, on the same seeds."""
    gaps = np.asarray(study(keys, jnp.array(OPTIMISM), hidden, opponent, several))
    regret = gaps.sum(-1)
    plain = regret[OPTIMISM.index(0.0)]
    return {
        "world": "hidden best" if hidden else "plain",
        "second_response": opponent,
        "solver": "several starts" if several else "one start",
        "arms": {
            str(optimism): {
                "regret": common.mean(regret[i]),
                "gap_of_last_20": common.mean(gaps[i, :, -20:].mean(-1)),
                "regret_less_than_plain": common.paired(regret[i], plain),
                "mean_regret": np.cumsum(gaps[i].mean(0)).round(4).tolist(),
            }
            for i, optimism in enumerate(OPTIMISM)
        },
    }


def main() -> None:
    """Runs all cells and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    options = parser.parse_args()
    keys = jax.random.split(jax.random.key(11), options.seeds)
    cells = []
    for hidden in (True, False):
        for opponent in ("reference", "policy"):
            for several in (True, False):
                found = cell(keys, hidden, opponent, several)
                cells.append(found)
                print(*(found[x] for x in ("world", "second_response", "solver")))
                for name, row in found["arms"].items():
                    apart = row["regret_less_than_plain"]
                    print(
                        f"  {name:5s} regret {row['regret']['mean']:7.2f}"
                        f" last {row['gap_of_last_20']['mean']:.3f}"
                        f" against 0: {apart['mean']:+7.2f} z {apart['z']:+.1f}",
                        flush=True,
                    )
    content = {
        **records.origin("vpo.online"),
        "seeds": options.seeds,
        "rounds": ROUNDS,
        "beta": BETA,
        "cells": cells,
    }
    records.write(common.RESULTS / "online.json", content)


if __name__ == "__main__":
    main()
