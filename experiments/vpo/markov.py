"""A Markov language with an exact optimum: learning from sampled sequences.

    python -m experiments.vpo.markov

16 words, 12 words a response, 8 prompts, rewards of neighbours N(0, 0.3²), β = 0.1.
Policies are logits per prompt and pair of neighbours, `[8, 16, 16]`, trained by Adam on
minibatches of pairs; gaps to the optimum among all policies over sequences are exact.
"""

from __future__ import annotations

import argparse
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.language import markov
from experiments import records
from experiments.vpo import common
from rlx.data.online_preferences import BRADLEY_TERRY
from rlx.methods import dpo, vpo
from rlx.ops import preference
from rlx.types import Array, Key

BETA, RATE, BATCH, PAIRS = 0.1, 0.02, 256, 2000
MARKS = (10, 30, 100, 300, 1000)
ALPHAS = (0.01, 0.03, 0.1, 0.3)
ROUNDS, PER_ROUND, STEPS = 20, 256, 30


class Pairs(NamedTuple):
    """Prompts `[N]`, responses `[N, T]`, and one of the reference for each."""

    prompt: Array
    chosen: Array
    rejected: Array
    calibration: Array


class Arm(NamedTuple):
    """What is minimised; `optimism` may be traced."""

    optimism: float | Array = 0.0
    calibration: str = "reference"
    link: str = "sigmoid"
    opponent: str = "policy"


OFFLINE = {
    "DPO": Arm(),
    "IPO": Arm(link="ipo"),
    "SFT on chosen": Arm(link="imitation"),
    **{
        f"VPO {kind} {alpha}": Arm(-alpha, kind)
        for kind in ("chosen", "reference")
        for alpha in ALPHAS
    },
    **{
        f"VPO {kind} wrong sign 0.1": Arm(0.1, kind) for kind in ("chosen", "reference")
    },
}
ONLINE = {
    "online DPO": Arm(),
    "online DPO against reference": Arm(opponent="reference"),
    **{f"VPO {alpha}": Arm(alpha) for alpha in (0.01, 0.03, 0.1)},
    **{f"XPO {alpha}": Arm(alpha, opponent="reference") for alpha in (0.01, 0.03, 0.1)},
    **{f"VPO wrong sign {alpha}": Arm(-alpha) for alpha in (0.01, 0.03, 0.1)},
}
"""XPO's α is given as VPO's, its own divided by β."""


def policy(chain: markov.Chain, logits: Array) -> Array:
    """Logits `[X, V, V]` as a policy `[X, T, V, V]`."""
    log_prob = jax.nn.log_softmax(logits, axis=-1)[:, None]
    shape = (log_prob.shape[0], chain.length, *log_prob.shape[2:])
    return jnp.broadcast_to(log_prob, shape)


def log_ratio(chain: markov.Chain, logits: Array, prompt: Array, words: Array) -> Array:
    """Log π / π_ref of responses, by neighbours."""
    ratio = jax.nn.log_softmax(logits, axis=-1) - chain.reference[None]
    before = jnp.concatenate([prompt[:, None], words[:, :-1]], axis=1)
    return jnp.sum(ratio[prompt[:, None], before, words], axis=-1)


def ask(key: Key, chain: markov.Chain, first: Array, second: Array, n: int) -> Pairs:
    """N labelled pairs, responses of two policies `[X, T, V, V]`."""
    keys = jax.random.split(key, 5)
    prompt = jax.random.randint(keys[0], (n,), 0, chain.reward.shape[0])
    one, two = (
        markov.sample(k, p, prompt)
        for k, p in zip(keys[1:3], (first, second), strict=True)
    )
    reference = markov.sample(keys[3], markov.reference_policy(chain), prompt)
    scores = [markov.reward(chain, prompt, words)[None] for words in (one, two)]
    answer = preference.ask(keys[4], scores[0], scores[1], BRADLEY_TERRY)
    better = answer.preference[:, None] > 0.5
    return Pairs(
        prompt, jnp.where(better, one, two), jnp.where(better, two, one), reference
    )


def price(chain: markov.Chain, logits: Array, batch: Pairs, arm: Arm) -> Array:
    """The mean of the arm's loss over a minibatch."""
    chosen, rejected, calibration = (
        log_ratio(chain, logits, batch.prompt, words)
        for words in (batch.chosen, batch.rejected, batch.calibration)
    )
    if arm.link == "imitation":
        return -jnp.mean(chosen)
    if arm.link == "ipo":
        return jnp.mean(dpo.loss(chosen, rejected, beta=BETA, link="ipo"))
    given = chosen if arm.calibration == "chosen" else calibration
    each = vpo.loss(
        chosen, rejected, given, beta=BETA, optimism=arm.optimism, lowest=-50.0
    )
    return jnp.mean(each)


def take(pairs: Pairs, key: Key, size: Array | int) -> Pairs:
    """A minibatch, with replacement, of the first `size` pairs."""
    chosen = jax.random.randint(key, (BATCH,), 0, size)
    return jax.tree.map(lambda x: x[chosen], pairs)


def offline(key: Key, arm: Arm) -> tuple[Array, Array]:
    """Gaps and KL `[len(MARKS)]`."""
    keys = jax.random.split(key, 4)
    chain = markov.random(keys[0])
    noise = jax.random.normal(keys[1], chain.reward.shape)
    behaviour = policy(chain, chain.reference[None] + noise)
    pairs = ask(keys[2], chain, behaviour, behaviour, PAIRS)

    def objective(logits: Array, key: Key) -> Array:
        return price(chain, logits, take(pairs, key, PAIRS), arm)

    def measure(logits: Array) -> tuple[Array, Array]:
        found = policy(chain, logits)
        return markov.gap(chain, found, BETA), markov.value(chain, found).kl

    start = jnp.broadcast_to(chain.reference[None], chain.reward.shape)
    return common.trace(objective, measure, start, MARKS, RATE, keys[3])


def online(key: Key, arm: Arm) -> tuple[Array, Array]:
    """Gaps and KL `[ROUNDS]` after each round, all pairs kept."""
    world_key, run_key = jax.random.split(key)
    chain = markov.random(world_key)
    reference = markov.reference_policy(chain)

    def round_(carry: tuple, inputs: tuple) -> tuple:
        logits, memory = carry
        number, key = inputs
        ask_key, learn_key = jax.random.split(key)
        mine = policy(chain, logits)
        second = mine if arm.opponent == "policy" else reference
        fresh = ask(ask_key, chain, mine, second, PER_ROUND)
        begin = number * PER_ROUND
        memory = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, begin, 0),
            memory,
            fresh,
        )

        def objective(logits: Array, key: Key) -> Array:
            batch = take(memory, key, begin + PER_ROUND)
            return price(chain, logits, batch, arm)

        def end(logits: Array) -> Array:
            return logits

        found = common.trace(objective, end, logits, (STEPS,), RATE, learn_key)[0]
        now = policy(chain, found)
        measured = markov.gap(chain, now, BETA), markov.value(chain, now).kl
        return (found, memory), measured

    start = jnp.broadcast_to(chain.reference[None], chain.reward.shape)
    words = jnp.zeros((ROUNDS * PER_ROUND, chain.length), jnp.int32)
    memory = Pairs(words[:, 0], words, words, words)
    inputs = (jnp.arange(ROUNDS), jax.random.split(run_key, ROUNDS))
    return jax.lax.scan(round_, (start, memory), inputs)[1]


@functools.cache
def compiled(kind: str, calibration: str, link: str, opponent: str):
    """`(keys, optimism) -> (gaps, kl)` over seeds, one program for all α."""
    run = {"offline": offline, "online": online}[kind]

    def one(key: Key, optimism: Array) -> tuple[Array, Array]:
        return run(key, Arm(optimism, calibration, link, opponent))

    return jax.jit(jax.vmap(one, (0, None)))


def measure(kind: str, arms: dict[str, Arm], keys: Key) -> dict[str, tuple]:
    """Gaps and KL `[seeds, marks]` by arm."""
    found = {}
    for name, arm in arms.items():
        run = compiled(kind, arm.calibration, arm.link, arm.opponent)
        found[name] = tuple(map(np.asarray, run(keys, jnp.float32(arm.optimism))))
        print(kind, f"{name:32s}", found[name][0].mean(0).round(3), flush=True)
    return found


def summary(found: dict[str, tuple], plain: str) -> dict[str, dict]:
    """Means with intervals, and what is gained against one arm on the same seeds."""
    return {
        name: {
            "gap": [common.mean(x) for x in gaps.T],
            "kl": [common.mean(x) for x in kl.T],
            "final_less_best": common.mean(
                gaps[:, -1] - gaps[:, int(gaps.mean(0).argmin())]
            ),
            "final_less_than_plain": common.paired(gaps[:, -1], found[plain][0][:, -1]),
            "mean_less_than_plain": common.paired(
                gaps.mean(1), found[plain][0].mean(1)
            ),
        }
        for name, (gaps, kl) in found.items()
    }


def still(key: Key) -> Array:
    """The reference's own gap."""
    chain = markov.random(key)
    return markov.gap(chain, markov.reference_policy(chain), BETA)


def main() -> None:
    """Runs both settings and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--validation", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    first, second, third = jax.random.split(jax.random.key(17), 3)
    right = {k: v for k, v in OFFLINE.items() if k[:3] == "VPO" and "wrong" not in k}
    tried = measure("offline", right, jax.random.split(first, options.validation))
    best = min(right, key=lambda name: tried[name][0][:, -1].mean())
    keys = jax.random.split(second, options.seeds)
    content = {
        **records.origin("vpo.markov"),
        "seeds": options.seeds,
        "beta": BETA,
        "steps": MARKS,
        "reference_gap": common.mean(jax.jit(jax.vmap(still))(keys)),
        "chosen_on_validation": best,
        "offline": summary(measure("offline", OFFLINE, keys), "DPO"),
    }
    keys = jax.random.split(third, options.seeds)
    content["rounds"] = ROUNDS
    content["online"] = summary(measure("online", ONLINE, keys), "online DPO")
    records.write(common.RESULTS / "markov.json", content)
    print("chosen on validation:", best)


if __name__ == "__main__":
    main()
