"""Linear contextual bandits: how regret grows with rounds and gaps fall with pairs.

    python -m experiments.vpo.linear

32 prompts, 16 responses, 8 features on the unit sphere, reward φ·θ with |θ| = 3, a
uniform reference, β = 0.5. The learner fits θ by VPO's reward form, α of the paper's
(sum) convention times the square root of the number of pairs, as its theory has it.
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

BETA, RIDGE, FEATURES = 0.5, 0.1, 8
ROUNDS, PAIRS = 512, (64, 256, 1024, 4096)
OPTIMISM = (-0.3, -0.1, 0.0, 0.1, 0.3)
"""s α_sum / √pairs; below 0 pessimism."""


def objective(
    weight: Array, world: bandit.LinearBandit, answers: bandit.Answer, optimism: Array
) -> Array:
    """VPO of the policy that is best for φ·θ, with a ridge; a mean over pairs."""
    pairs = jnp.maximum(jnp.sum(answers.weight), 1.0)
    ratio = policy(weight, world) - world.bandit.reference
    value = jnp.mean(jnp.sum(jnp.exp(world.bandit.reference) * ratio, axis=-1))
    chosen, rejected = (
        ratio[answers.prompt, y] for y in (answers.chosen, answers.rejected)
    )
    each = vpo.loss(
        chosen,
        rejected,
        jnp.full_like(chosen, value),
        beta=BETA,
        optimism=vpo.from_sum(optimism * jnp.sqrt(pairs), pairs),
    )
    ridge = 0.5 * RIDGE * jnp.sum(jnp.square(weight))
    return (jnp.sum(answers.weight * each) + ridge) / pairs


def policy(weight: Array, world: bandit.LinearBandit) -> Array:
    """Log π ∝ π_ref e^{φ·θ / β}."""
    logits = world.bandit.reference + world.features @ weight / BETA
    return jax.nn.log_softmax(logits, axis=-1)


def online(key: Key, optimism: Array) -> Array:
    """Gaps `[ROUNDS]` before each question: policy against reference."""
    world_key, pairs_key = jax.random.split(key)
    world = bandit.linear(world_key)

    def round_(carry: tuple[Array, bandit.Answer], inputs: tuple[Array, Key]) -> tuple:
        (weight, answers), (number, key) = carry, inputs
        mine = policy(weight, world)
        fresh = bandit.ask(key, world.bandit, mine, world.bandit.reference)
        answers = jax.tree.map(lambda x, new: x.at[number].set(new), answers, fresh)

        def price(weight: Array) -> Array:
            return objective(weight, world, answers, optimism)

        found = common.descend(price, weight, 10, 0.05)
        return (found, answers), bandit.gap(world.bandit, mine, BETA)

    nothing = jnp.zeros(ROUNDS, jnp.int32)
    empty = bandit.Answer(nothing, nothing, nothing, jnp.zeros(ROUNDS))
    inputs = (jnp.arange(ROUNDS), jax.random.split(pairs_key, ROUNDS))
    return jax.lax.scan(round_, (jnp.zeros(FEATURES), empty), inputs)[1]


@functools.partial(jax.jit, static_argnames="pairs")
def offline(key: Key, optimism: Array, pairs: int) -> Array:
    """Gaps `[len(optimism)]` after `pairs` pairs from a skewed behaviour."""
    keys = jax.random.split(key, 3)
    world = bandit.linear(keys[0])
    logits = jax.random.normal(keys[1], world.bandit.reward.shape)
    behaviour = jax.nn.log_softmax(logits, axis=-1)
    answers = bandit.collect(keys[2], world.bandit, behaviour, pairs)

    def one(optimism: Array) -> Array:
        def price(weight: Array) -> Array:
            return objective(weight, world, answers, optimism)

        found = common.descend(price, jnp.zeros(FEATURES), 300, 0.05)
        return bandit.gap(world.bandit, policy(found, world), BETA)

    return jax.vmap(one)(optimism)


def slope(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The exponent of y ~ xᵏ, of the mean over seeds; interval by bootstrap.

    Args:
      x: `[K]`.
      y: `[seeds, K]`, positive on average.
    """
    generator = np.random.default_rng(0)

    def fit(rows: np.ndarray) -> float:
        return float(np.polyfit(np.log(x), np.log(rows.mean(0)), 1)[0])

    draws = [fit(y[generator.integers(0, len(y), len(y))]) for _ in range(1000)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"exponent": fit(y), "low": float(low), "high": float(high)}


def main() -> None:
    """Runs both settings and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=48)
    options = parser.parse_args()
    keys = jax.random.split(jax.random.key(13), options.seeds)
    optimism = jnp.array(OPTIMISM)
    run = jax.jit(jax.vmap(online, (0, None)))
    regret = np.stack([np.cumsum(run(keys, x), axis=-1) for x in optimism])
    gaps = np.stack(
        [jax.lax.map(lambda k, n=n: offline(k, optimism, n), keys) for n in PAIRS], -1
    )
    marks = np.unique(np.geomspace(8, ROUNDS, 24).astype(int))
    late = marks[marks >= 64]
    plain = OPTIMISM.index(0.0)
    content = {
        **records.origin("vpo.linear"),
        "seeds": options.seeds,
        "beta": BETA,
        "rounds": marks.tolist(),
        "pairs": PAIRS,
        "online": {
            str(name): {
                "regret": [common.mean(regret[i, :, t - 1]) for t in marks],
                "less_than_plain": common.paired(
                    regret[i, :, -1], regret[plain, :, -1]
                ),
                "growth": slope(late, regret[i][:, late - 1]),
            }
            for i, name in enumerate(OPTIMISM)
        },
        "offline": {
            str(name): {
                "gap": [common.mean(gaps[:, i, n]) for n in range(len(PAIRS))],
                "fall": slope(np.array(PAIRS), gaps[:, i]),
            }
            for i, name in enumerate(OPTIMISM)
        },
    }
    records.write(common.RESULTS / "linear.json", content)
    for name in map(str, OPTIMISM):
        row, other = content["online"][name], content["offline"][name]
        print(
            f"{name:5s} regret {row['regret'][-1]['mean']:.1f}"
            f" z {row['less_than_plain']['z']:+.1f}"
            f" ~T^{row['growth']['exponent']:.2f};  gaps",
            *(f"{x['mean']:.3f}" for x in other["gap"]),
            f"~N^{other['fall']['exponent']:.2f}",
        )


if __name__ == "__main__":
    main()
