"""Online bandits: does optimism find what the reference hides?

    python -m experiments.vpo.online

One prompt, 10 responses, rewards 3 U[0, 1], β = 0.1. In the "hidden" worlds the
reference hardly ever gives the best response. Each of 150 rounds asks about one pair
and fits the reward anew, boxed to [-3, 3], by the reward form of VPO. α = 0 is online
DPO by its own reward. Two ways to weigh:

- "strong": mean over pairs + α_mean (optimism) + 0.1 |r|²: the ridge stays as strong as
  all the data, and so does optimism;
- "light": sum over pairs + α_sum (optimism) + 0.05 |r|²: the ridge is one against ever
  more data, as a prior is, and so is optimism.

"several starts" fits from where the last round ended and from each response being the
best, and keeps the lowest objective; "one start" takes gradient steps from where the
last round ended.
"""

from __future__ import annotations

import argparse
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.language import bandit
from experiments import records
from experiments.vpo import common
from rlx.methods import vpo
from rlx.types import Array, Key

BETA, BOX, ROUNDS, ARMS = 0.1, 3.0, 150, 10
RIDGE = {"strong": 0.1, "light": 0.05}
STEPS, RATE = 30, 0.1
OPTIMISM = (-0.3, 0.0, 0.1, 0.3, 1.0)
"""s α; below 0 pessimism."""


class Setting(NamedTuple):
    """A cell of the study."""

    hidden: bool
    opponent: str
    several: bool
    fit: str


CELLS = (
    Setting(True, "reference", True, "strong"),
    Setting(True, "reference", True, "light"),
    Setting(True, "policy", True, "strong"),
    Setting(False, "reference", True, "strong"),
    *(
        Setting(hidden, opponent, False, fit)
        for hidden in (True, False)
        for opponent in ("reference", "policy")
        for fit in ("strong", "light")
    ),
)


def objective(
    raw: Array, world: bandit.Bandit, counts: Array, optimism: Array, fit: str
) -> Array:
    """The reward form of VPO with a ridge, divided by the number of pairs."""
    reward = BOX * jnp.tanh(raw)
    pairs = jnp.maximum(jnp.sum(counts), 1.0) if fit == "light" else jnp.float32(1.0)
    found = vpo.reward_loss(
        reward,
        world.reference,
        counts,
        jnp.exp(world.reference),
        beta=BETA,
        optimism=vpo.from_sum(optimism, pairs),
    )
    return found + RIDGE[fit] * jnp.sum(jnp.square(reward)) / pairs


def run(key: Key, optimism: Array, setting: Setting) -> Array:
    """Gaps `[ROUNDS]` of the policy of each round, before its question."""
    world_key, pairs_key = jax.random.split(key)
    world = bandit.tabular(world_key, num_responses=ARMS)
    if setting.hidden:
        world = bandit.hidden_best(world)
    others = jnp.arctanh(0.9) * jnp.eye(ARMS)[:, None]

    def policy(raw: Array) -> Array:
        logits = world.reference + BOX * jnp.tanh(raw) / BETA
        return jax.nn.log_softmax(logits, axis=-1)

    def round_(carry: tuple[Array, Array], key: Key) -> tuple:
        raw, counts = carry
        mine = policy(raw)
        second = mine if setting.opponent == "policy" else world.reference
        counts += bandit.counted(world, bandit.ask(key, world, mine, second))
        starts = jnp.concatenate([raw[None], others]) if setting.several else raw[None]

        def price(raw: Array) -> Array:
            return objective(raw, world, counts, optimism, setting.fit)

        fits = jax.vmap(lambda x: common.descend(price, x, STEPS, RATE))(starts)
        raw_new = fits[jnp.argmin(jax.vmap(price)(fits))]
        return (raw_new, counts), bandit.gap(world, mine, BETA)

    begin = (jnp.zeros((1, ARMS)), jnp.zeros((1, ARMS, ARMS)))
    return jax.lax.scan(round_, begin, jax.random.split(pairs_key, ROUNDS))[1]


@functools.partial(jax.jit, static_argnames="setting")
def study(keys: Key, optimism: Array, setting: Setting) -> Array:
    """Gaps `[len(optimism), seeds, ROUNDS]`."""

    def one(key: Key, optimism: Array) -> Array:
        return run(key, optimism, setting)

    return jax.lax.map(lambda x: jax.vmap(one, (0, None))(keys, x), optimism)


def cell(keys: Key, setting: Setting) -> dict:
    """All degrees of optimism in one setting, on the same seeds."""
    gaps = np.asarray(study(keys, jnp.array(OPTIMISM), setting))
    regret = gaps.sum(-1)
    plain = regret[OPTIMISM.index(0.0)]
    return {
        "world": "hidden best" if setting.hidden else "plain",
        "second_response": setting.opponent,
        "solver": "several starts" if setting.several else "one start",
        "fit": setting.fit,
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
    parser.add_argument("--seeds", type=int, default=100)
    options = parser.parse_args()
    keys = jax.random.split(jax.random.key(11), options.seeds)
    cells = []
    for setting in CELLS:
        found = cell(keys, setting)
        cells.append(found)
        print(*(found[x] for x in ("world", "second_response", "solver", "fit")))
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
