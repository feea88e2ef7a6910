"""How much of A-PARL's implicit term is noise, on pendulum, and what helps.

    python -m experiments.parl.noise

κ = 0 is trained for a quarter of the run of `control.py`; there, policy and reward are
held fixed. Estimates of ∂_θG and of the implicit term from independent batches are
compared with a reference from many more trajectories and labels, whose two halves are
compared with each other. Writes `results/noise.json` (about four minutes of one core).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.parl import control
from experiments.records import origin, write

RESULTS = Path(__file__).parent / "results"
BATCHES, SEED, STEPS = 15, 100, 200
REPEATS, REFERENCES = 16, 8
FORMS = {
    "labelled pairs": (False, False),
    "centred": (True, False),
    "centred, unlabelled pairs": (True, True),
}
"""Whether weights are centred, whether unlabelled pairs are used."""
BEST = "centred, unlabelled pairs"
CASES = ((10, 10), (10, 100), (40, 10))
"""Trajectories and labelled pairs of an estimate."""
REFERENCE = (100, 2000)


class Fixed(NamedTuple):
    """What is held fixed."""

    method: Any
    learner: Any
    env: Any
    config: Any


def train() -> Fixed:
    """κ = 0, part of a run."""
    from envs import probe
    from rlx import train
    from rlx.data.rollout import rollout
    from rlx.methods import parl

    env, plan = probe.make("pendulum"), control.PLAN
    config = parl.Config(
        **plan.on_policy,
        **plan.labelled(num_candidates=plan.queries, kappa=0.0, solver="none"),
        num_labels=max(plan.budgets),
        session_interval=2.0,
        anneal_steps=80 * plan.on_policy_batches,
    )
    method = parl.make(env.spec, config)
    source = rollout(env, **plan.rollout)
    result = train.fit(
        method,
        source,
        num_steps=BATCHES * source.steps_per_batch,
        seeds=[SEED],
        settings=train.Settings(evaluations=1, episodes=16),
    )
    print("true return", result.returns[-1], flush=True)
    learner = jax.tree.map(lambda x: x[0], result.state.learner)
    return Fixed(method, learner, env, config)


def collector(fixed: Fixed, num_envs: int) -> Any:
    """A function from a key to whole episodes, and what the policy saw of them."""
    from rlx.data.rollout import rollout
    from rlx.methods import _on_policy, _parl
    from rlx.ops import segments
    from rlx.types import Policy

    method, learner = fixed.method, fixed.learner
    source = rollout(fixed.env, num_envs=num_envs, length=STEPS)

    def act(observation, carry, key):
        return method.act(learner.params, learner.stats, observation, carry, key)

    policy = Policy(act=act, init_carry=method.init_carry)

    def collect(key: jax.Array) -> tuple[Any, Any]:
        init_key, next_key = jax.random.split(key)
        batch = source.next(source.init(init_key, policy), policy, next_key)[1]
        seen = _on_policy._normalize_observation(
            learner.stats.policy, batch.observation
        )
        ended = segments.ends(batch)
        first = jnp.concatenate([jnp.ones_like(ended[:1]), ended[:-1]])
        choice = batch.extras["choice"]
        return batch.replace(extras={}), _parl.Trajectories(seen, choice, first)

    return collect


def estimator(fixed: Fixed, upper: str, size: tuple[int, int]) -> Any:
    """A function from keys to ∂_θG and the implicit term in each form, flat."""
    from rlx.methods import _on_policy, _parl, _preference
    from rlx.methods import _parl_learning as learning
    from rlx.ops import segments

    num_envs, number = size
    more = 200 if size != REFERENCE else number
    config = dataclasses.replace(fixed.config, unlabelled_pairs=more)
    spec, length = fixed.env.spec, config.segment_length
    agent = _on_policy.make_agent(spec, config)
    reward = _preference.make_reward(spec, config)
    collect, params = collector(fixed, num_envs), fixed.learner.params

    def estimate(key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        batch_key, draw_key, more_key = jax.random.split(key, 3)
        batch, seen = collect(batch_key)
        lower = _parl.Lower(
            learning.distribution(agent), params["policy"], seen, config.gamma,
            config.temperature,
        )  # fmt: skip
        where = segments.draw(draw_key, batch, number, length)
        pairs = segments.cut(batch, where, length)
        true = pairs.reward.sum(-1)
        label = (true[:, 0] > true[:, 1]).astype(jnp.float32)
        difference = learning.learned_difference(reward, params["reward"], pairs)
        utility = _parl.utilities(upper, difference, label)
        guess = _parl.expected_utilities(upper, difference)
        expected = learning.expected_slope(
            config, reward, params["reward"], lower, batch, more_key
        )

        def slope_of(utility: jax.Array) -> Any:
            return _parl.slope(lower, where, length, utility, jnp.ones(number))

        plain = slope_of(utility)
        helped = optax.tree.add(slope_of(utility - guess), expected)

        def implicit(slope: Any, centred: bool) -> tuple[jax.Array, jax.Array]:
            weight = _parl.implicit_weight(
                lower, slope, "cg_fisher", 10, config.damping, centred
            ).weight

            def through_policy(nu: Any) -> jax.Array:
                learned = reward.mean(nu, batch.observation, batch.action)
                scale = jax.lax.stop_gradient(jnp.std(learned))
                return jnp.sum(weight * learned) / scale

            found = jax.grad(through_policy)(params["reward"])
            return ravel_pytree(slope)[0], ravel_pytree(found)[0]

        return {
            name: implicit(helped if unlabelled else plain, centred)
            for name, (centred, unlabelled) in FORMS.items()
        }

    return jax.jit(lambda keys: jax.lax.map(estimate, keys))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of the angle between two vectors."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def compare(fixed: Fixed, upper: str) -> dict[str, Any]:
    """Cosines of estimates with a reference."""
    keys = jax.random.split(jax.random.key(1), REFERENCES)
    best = estimator(fixed, upper, REFERENCE)(keys)[BEST]
    halves = [[np.mean(x[i::2], 0) for i in (0, 1)] for x in best]
    reference = [np.mean(half, 0) for half in halves]
    found: dict[str, Any] = {
        "reference": {
            "slope_halves": round(cosine(*halves[0]), 3),
            "implicit_halves": round(cosine(*halves[1]), 3),
            "implicit_norm": round(float(np.linalg.norm(reference[1])), 2),
        }
    }
    keys = jax.random.split(jax.random.key(2), REPEATS)
    for size in CASES:
        for name, both in estimator(fixed, upper, size)(keys).items():
            estimates = [np.array(x) for x in both]
            slope, implicit = (
                [cosine(x, target) for x in each]
                for each, target in zip(estimates, reference, strict=True)
            )
            row = {
                "slope": round(float(np.mean(slope)), 3),
                "implicit": round(float(np.mean(implicit)), 3),
                "implicit_error": round(float(np.std(implicit) / REPEATS**0.5), 3),
                "implicit_norm": round(
                    float(np.linalg.norm(estimates[1], axis=1).mean()), 1
                ),
            }
            label = f"{size[0]} trajectories, {size[1]} labels, {name}"
            found[label] = row
            print(upper, label, row, flush=True)
    return found


def main() -> None:
    """Measures and writes."""
    fixed = train()
    record = {**origin("parl.noise"), "batches": BATCHES, "seed": SEED}
    for upper in ("utility", "likelihood"):
        record[upper] = compare(fixed, upper)
    write(RESULTS / "noise.json", record)


if __name__ == "__main__":
    main()
