"""How soon critics know what the data were worth: their step sizes, on the data alone.

    python -m experiments.uni_o4.values --task hopper --kind medium --seeds 2

IQL with several step sizes of the critics and of their targets, each for as many
gradient steps as the other arms of this page, and what comes out beside the discounted
returns of the dataset, which nobody was told: Q on average, its correlation with the
returns, and that of the advantages with what the returns leave over. No environment is
needed for these, so that they may choose settings; the policy's return is there to see
whether the choice was good. Writes `results/values_<task>_<kind>.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import envs
from experiments.records import origin, write
from experiments.uni_o4.offline import RESULTS
from experiments.uni_o4.tasks import BUDGET, CONFIG, KINDS, TASKS, file_of
from rlx import sharding, train
from rlx.data import dataset
from rlx.methods import _offline, iql
from rlx.networks.ensemble import member

SETTINGS = ((3e-4, 0.005), (1e-3, 0.005), (1e-3, 0.02))
"""Adam's step size of the critics, and the share by which targets follow."""
STATES = 20_000
"""Transitions that are looked at."""


def one_setting(
    task: str, data: dataset.Dataset, seeds: int, rate: float, tau: float
) -> dict[str, Any]:
    """Trains IQL and compares its values with the returns of the data."""
    env = envs.make(task)
    rounds = CONFIG.num_minibatches
    config = iql.Config(
        hidden_sizes=CONFIG.hidden_sizes,
        actor_learning_rate=CONFIG.actor_learning_rate,
        critic_learning_rate=rate,
        tau=tau,
        normalize_observations=CONFIG.normalize_observations,
        num_minibatches=rounds,
        anneal_steps=BUDGET.foundation_steps,
    )
    moments = dataset.observation_statistics(data)
    result = train.fit(
        iql.make(env.spec, config, moments),
        dataset.sample(
            data, env=env, batch_size=BUDGET.batch_size, num_minibatches=rounds
        ),
        num_steps=BUDGET.foundation_steps // rounds,
        seeds=seeds,
        settings=train.Settings(evaluations=1, episodes=10),
    )
    learners = sharding.gather(result.state.learner)
    known = data.metadata
    score = dataset.normalized_score(
        result.returns[-1], known.random_return, known.expert_return
    )
    found = [compared(env, config, data, member(learners, i)) for i in range(seeds)]
    return {
        "critic_learning_rate": rate,
        "tau": tau,
        **{name: [round(x[name], 4) for x in found] for name in found[0]},
        "score": np.round(score, 2).tolist(),
    }


def compared(
    env: Any, config: iql.Config, data: dataset.Dataset, learner: Any
) -> dict[str, float]:
    """Values of one seed beside the returns, over a fixed part of the data."""
    agent = _offline.make_agent(
        env.spec, config, config.policy, config.initial_log_scale
    )
    whole = dataset.with_returns_to_go(data, config.gamma).transitions
    chosen = np.random.default_rng(0).choice(data.num_steps, STATES, replace=False)
    rows = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[chosen]), whole)
    seen = _offline.normalize(learner.stats, rows.observation)
    params, action = learner.params, agent.from_env(rows.action)
    both = agent.critics.apply(params["critics"], seen, action)
    worth = np.asarray(jnp.min(both, axis=0))
    value = np.asarray(agent.value.apply(params["value"], seen))
    returns = np.asarray(rows.extras["return_to_go"])
    left = np.corrcoef(worth - value, returns - value)[0, 1]
    return {
        "action_value": float(worth.mean()),
        "return_to_go": float(returns.mean()),
        "correlation": float(np.corrcoef(worth, returns)[0, 1]),
        "advantage_correlation": float(left),
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="hopper", choices=list(TASKS))
    parser.add_argument("--kind", default="medium", choices=KINDS)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    data = dataset.load(file_of(arguments.task, arguments.kind))
    rows = []
    for rate, tau in SETTINGS:
        rows.append(one_setting(arguments.task, data, arguments.seeds, rate, tau))
        print(rows[-1], flush=True)
    path = RESULTS / f"values_{arguments.task}_{arguments.kind}.json"
    write(
        path,
        {
            "rows": rows,
            "budget": dataclasses.asdict(BUDGET),
            **origin("uni_o4.values"),
        },
    )


if __name__ == "__main__":
    main()
