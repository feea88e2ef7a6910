"""How much of A-PARL's implicit term is noise, on pendulum, and what helps.

    python -m experiments.parl.noise

κ = 0 is trained for a quarter of the run of `control.py`; there, policy and reward are
held fixed. Estimates of the implicit term from independent batches are compared with a
reference from many more trajectories and labels, of which one half is compared with the
other. Writes `results/noise.json` (about four minutes of one core).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.parl import control
from experiments.records import origin, write

RESULTS = Path(__file__).parent / "results"
BATCHES, SEED, STEPS = 15, 100, 200
REPEATS, REFERENCES = 16, 12
FORMS = {
    "labelled pairs": (False, False, False),
    "crossed": (True, False, False),
    "crossed, centred": (True, True, False),
    "crossed, centred, unlabelled pairs": (True, True, True),
}
"""Whether halves are crossed, weights centred, and unlabelled pairs used."""
BEST = "crossed, centred, unlabelled pairs"
CASES = ((10, 10), (40, 40))
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
    """A function from keys to the implicit term in each form, flat."""
    from rlx.methods import _on_policy, _parl, _parl_implicit, _preference
    from rlx.methods import _parl_learning as learning
    from rlx.ops import segments

    num_envs, number = size
    more = 200 if size != REFERENCE else number
    config = dataclasses.replace(
        fixed.config, unlabelled_pairs=more, upper=upper, solver="cg_fisher"
    )
    spec, length = fixed.env.spec, config.segment_length
    agent = _on_policy.make_agent(spec, config)
    reward = _preference.make_reward(spec, config)
    collect, params = collector(fixed, num_envs), fixed.learner.params

    def estimate(key: jax.Array) -> dict[str, jax.Array]:
        batch_key, draw_key, more_key = jax.random.split(key, 3)
        batch, seen = collect(batch_key)
        lower = _parl.Lower(
            learning.distribution(agent), params["policy"], seen, config.gamma,
            config.temperature,
        )  # fmt: skip
        where = _parl_implicit.draw(config, draw_key, batch, number)
        pairs = segments.cut(batch, where, length)
        true = pairs.reward.sum(-1)
        label = (true[:, 0] > true[:, 1]).astype(jnp.float32)
        difference = learning.learned_difference(reward, params["reward"], pairs)
        utility = _parl.utilities(upper, difference, label)
        guess = _parl.expected_utilities(upper, difference)
        labelled = _parl_implicit.Evidence(where, utility, jnp.ones(number))
        helped = [
            labelled._replace(utility=utility - guess),
            learning.expectations(config, reward, params["reward"], batch, more_key),
        ]

        def implicit(crossed: bool, centred: bool, unlabelled: bool) -> jax.Array:
            how = dataclasses.replace(config, crossed=crossed, centred=centred)
            evidence = helped if unlabelled else [labelled]
            weight = _parl_implicit.solution(how, lower, evidence).weight

            def through_policy(nu: Any) -> jax.Array:
                learned = reward.mean(nu, batch.observation, batch.action)
                scale = jax.lax.stop_gradient(jnp.std(learned))
                return jnp.sum(weight * learned) / scale

            return ravel_pytree(jax.grad(through_policy)(params["reward"]))[0]

        return {name: implicit(*form) for name, form in FORMS.items()}

    return jax.jit(lambda keys: jax.lax.map(estimate, keys))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of the angle between two vectors."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def compare(fixed: Fixed, upper: str) -> dict[str, Any]:
    """Cosines of estimates with a reference."""
    keys = jax.random.split(jax.random.key(1), REFERENCES)
    best = np.array(estimator(fixed, upper, REFERENCE)(keys)[BEST])
    reference = best.mean(0)
    found: dict[str, Any] = {
        "reference": {
            "halves": round(cosine(best[::2].mean(0), best[1::2].mean(0)), 3),
            "norm": round(float(np.linalg.norm(reference)), 2),
        }
    }
    keys = jax.random.split(jax.random.key(2), REPEATS)
    for size in CASES:
        for name, estimates in estimator(fixed, upper, size)(keys).items():
            cosines = [cosine(x, reference) for x in np.array(estimates)]
            row = {
                "cosine": round(float(np.mean(cosines)), 3),
                "error": round(float(np.std(cosines) / REPEATS**0.5), 3),
                "norm": round(float(np.linalg.norm(estimates, axis=1).mean()), 1),
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
