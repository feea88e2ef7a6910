"""Offline bandits: who still stands after long training on few pairs.

    python -m experiments.vpo.offline

One prompt, 20 responses, rewards 3 U[0, 1], a reference with standard normal logits and
a behaviour with logits twice as wide, which has seen little of most responses.
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
from rlx.ops import preference_optimization
from rlx.types import Array, Key

BETAS, PAIRS = (0.1, 0.5), (20, 100)
MARKS = (10, 30, 100, 300, 1000, 2000)
ALPHAS = (0.03, 0.1, 0.3, 1.0)
RATE = 0.02


class Arm(NamedTuple):
    """What is minimised."""

    optimism: float = 0.0
    """s α, mean convention."""
    calibration: str = "reference"
    link: str = "sigmoid"
    pairs: float = 1.0
    """Weight of the pairs; 0: the second term alone."""


def arms() -> dict[str, Arm]:
    """By name; VPO once for each α, calibration and, for two α, the wrong sign."""
    found = {
        "DPO": Arm(),
        "IPO": Arm(link="ipo"),
        "SFT on chosen": Arm(-1.0, "chosen", pairs=0.0),
    }
    for calibration in ("chosen", "reference"):
        for alpha in ALPHAS:
            found[f"VPO {calibration} {alpha}"] = Arm(-alpha, calibration)
        for alpha in (0.1, 0.3):
            found[f"VPO {calibration} wrong sign {alpha}"] = Arm(alpha, calibration)
    return found


def data(key: Key, num_pairs: int) -> tuple[bandit.Bandit, Array]:
    """A world and the counts `[1, K, K]` of pairs from its behaviour."""
    world_key, behaviour_key, pairs_key = jax.random.split(key, 3)
    world = bandit.tabular(world_key, num_responses=20)
    logits = 2.0 * jax.random.normal(behaviour_key, world.reward.shape)
    behaviour = jax.nn.log_softmax(logits, axis=-1)
    answers = bandit.collect(pairs_key, world, behaviour, num_pairs)
    return world, bandit.counted(world, answers)


def learn(
    world: bandit.Bandit, counts: Array, beta: float, arm: Arm, by_chosen: Array
) -> Array:
    """Gaps `[len(MARKS)]`; numbers of the arm, but its link, may be traced."""
    winners = jnp.sum(counts, -1) / jnp.maximum(jnp.sum(counts), 1.0)
    calibration = jnp.where(by_chosen, winners, jnp.exp(world.reference))

    def objective(logits: Array, key: Key) -> Array:
        del key
        log_prob = jax.nn.log_softmax(logits, axis=-1)
        if arm.link == "ipo":
            ratio = log_prob - world.reference
            margin = ratio[..., :, None] - ratio[..., None, :]
            each = preference_optimization.pair_loss(margin, beta=beta, link="ipo")
            return jnp.sum(counts * each) / jnp.maximum(jnp.sum(counts), 1.0)
        return vpo.enumerated_loss(
            log_prob,
            world.reference,
            counts * arm.pairs,
            calibration,
            beta=beta,
            optimism=arm.optimism,
        )

    def measure(logits: Array) -> Array:
        return bandit.gap(world, jax.nn.log_softmax(logits, axis=-1), beta)

    key = jax.random.key(0)  # the objective is exact: nothing is drawn
    return common.trace(objective, measure, world.reference, MARKS, RATE, key)


@functools.partial(jax.jit, static_argnames=("num_pairs", "link"))
def study(
    keys: Key, beta: Array, num_pairs: int, link: str, numbers: tuple[Array, ...]
) -> tuple[Array, Array]:
    """Gaps `[arms, seeds, marks]` and those of the reference `[seeds]`."""

    def one(key: Key, optimism: Array, by_chosen: Array, pairs: Array) -> Array:
        arm = Arm(optimism, "", link, pairs)  # type: ignore[arg-type]  # traced
        return learn(*data(key, num_pairs), beta, arm, by_chosen)

    def still(key: Key) -> Array:
        world, _ = data(key, num_pairs)
        return bandit.gap(world, world.reference, beta)

    each_seed = jax.vmap(one, (0, None, None, None))
    gaps = jax.vmap(each_seed, (None, 0, 0, 0))(keys, *numbers)
    return gaps, jax.vmap(still)(keys)


def measure(keys: Key, beta: float, num_pairs: int) -> tuple[dict, np.ndarray]:
    """Gaps `[seeds, marks]` by arm, and those of the reference."""
    found = {}
    for link in ("sigmoid", "ipo"):
        chosen = {name: arm for name, arm in arms().items() if arm.link == link}
        numbers = (
            jnp.array([arm.optimism for arm in chosen.values()]),
            jnp.array([arm.calibration == "chosen" for arm in chosen.values()]),
            jnp.array([arm.pairs for arm in chosen.values()]),
        )
        gaps, still = study(keys, jnp.float32(beta), num_pairs, link, numbers)
        found |= dict(zip(chosen, np.asarray(gaps), strict=True))
    return found, np.asarray(still)


def cell(beta: float, num_pairs: int, validation: int, seeds: int) -> dict:
    """One setting: α and π_cal chosen on other worlds, then all arms on the test's."""
    first, second = jax.random.split(jax.random.key(7))
    tried, _ = measure(jax.random.split(first, validation), beta, num_pairs)
    right = [x for x in tried if x.startswith("VPO") and "wrong" not in x]
    best = min(right, key=lambda name: tried[name][:, -1].mean())
    gaps, still = measure(jax.random.split(second, seeds), beta, num_pairs)
    rows = {
        name: {
            "gap": [common.mean(values[:, i]) for i in range(len(MARKS))],
            "final_less_best": common.mean(
                values[:, -1] - values[:, int(values.mean(0).argmin())]
            ),
        }
        for name, values in gaps.items()
    }
    ours = gaps[best][:, -1]
    return {
        "beta": beta,
        "pairs": num_pairs,
        "reference": common.mean(still),
        "chosen_on_validation": best,
        "arms": rows,
        "ratio_of_means": {
            other: float(ours.mean() / gaps[other][:, -1].mean())
            for other in ("DPO", "IPO", "SFT on chosen")
        },
        "less": {
            other: common.paired(ours, gaps[other][:, -1])
            for other in ("DPO", "IPO", "SFT on chosen")
        },
    }


def main() -> None:
    """Runs all cells and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--validation", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=200)
    options = parser.parse_args()
    sizes = (options.validation, options.seeds)
    content = {
        **records.origin("vpo.offline"),
        "steps": MARKS,
        "seeds": options.seeds,
        "cells": [cell(beta, n, *sizes) for beta in BETAS for n in PAIRS],
    }
    records.write(common.RESULTS / "offline.json", content)
    for found in content["cells"]:
        print(found["beta"], found["pairs"], found["chosen_on_validation"])
        print("  reference", found["reference"]["mean"], found["ratio_of_means"])
        for name, row in found["arms"].items():
            print(f"  {name:32s}", *(f"{x['mean']:.3f}" for x in row["gap"]))


if __name__ == "__main__":
    main()
