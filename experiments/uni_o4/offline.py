"""Uni-O4 and its baselines on fixed datasets, then those that go on online.

    python -m experiments.uni_o4.data --tasks hopper --kinds medium
    python -m experiments.uni_o4.offline --tasks hopper --kinds medium --seeds 4

Trains every arm of `ARMS` on every set and writes `results/<task>_<kind>_<arm>.json`
(returns and normalised scores of every seed at every evaluation, settings, time,
machine). All arms take as many gradient steps on the data, and as many environment
steps online; nothing is tuned per set. `experiments.uni_o4.summary` makes the table and
the plots.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

import envs
from experiments.records import describe, origin, time_spent, write
from experiments.uni_o4.tasks import BUDGET, CONFIG, KINDS, TASKS, file_of
from rlx import offline_to_online, sharding, train
from rlx.data import dataset
from rlx.data.mixed import mixed
from rlx.data.rollout import rollout
from rlx.methods import ppo

RESULTS = Path(__file__).parent / "results"
BASELINES = ("bc", "iql", "td3_bc", "cql", "awac")
FINE_TUNED = ("iql", "awac")
"""Baselines that go on online with their own losses."""
SHARED = (
    "hidden_sizes",
    "actor_learning_rate",
    "critic_learning_rate",
    "tau",
    "normalize_observations",
)
"""Fields of Uni-O4 that its baselines take over, so that the losses alone differ."""
ENVIRONMENTS = 16
"""Stepped together by them, with 2 gradient steps per 16 environment steps."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "uni_o4": {},
    "one_member": {"num_members": 1},
    "no_diversity": {"diversity": "none"},
    "always_replace": {"gate": "always"},
    "one_step": {"gate": "never"},
    "visited": {"score": "visited"},
    "near": {"horizon": 10},
    "moving": {},
    "fast_steps": {},
    "warm": {},
    "short": {},
}
"""Arm -> fields of Uni-O4 that differ."""
SHORT = {"short": 200}
"""Arm -> gradient steps of the offline improvement, where they are not those of all."""
FRESH_SEEDS = {"short": 3}
"""Arm -> its first seed: what seeds 0 to 2 of Uni-O4 showed chose its setting."""
SAME_IMPROVEMENT = ("moving", "fast_steps", "warm")
"""Arms that differ only online: they take over the first two phases."""
SAME_FOUNDATION = (
    *("always_replace", "one_step", "visited", "near"),
    *SAME_IMPROVEMENT,
)
"""Arms that differ from Uni-O4 only after its first phase, which they take over."""
ONLINE: dict[str, dict[str, Any]] = {
    "uni_o4": {},
    "moving": {"update_observation_moments": True},
    "fast_steps": {"learning_rate": 1e-4, "clip": 0.1},
    "warm": {"policy_warmup_steps": 400},
    "short": {},
    "near": {},
}
"""Arms that go on online -> fields of PPO that differ."""
ARMS = (*BASELINES, *ABLATIONS, "ppo")
SETTINGS = train.Settings(evaluations=20, episodes=10, keep=1)
"""Of every fit; the last evaluation counts, no checkpoint is chosen."""


def curve_of(result: Any, data: Any) -> dict[str, Any]:
    """A fit's curve, raw and normalised by the dataset's random and expert returns."""
    known = data.metadata
    score = dataset.normalized_score(
        result.returns, known.random_return, known.expert_return
    )
    return {
        "steps": result.steps.tolist(),
        "returns": np.round(result.returns, 2).tolist(),
        "scores": np.round(score, 2).tolist(),
        "final_score": describe(score[-1]),
        **time_spent(result),
    }


def metrics_of(result: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Metrics between evaluations, a list over seeds for each."""
    rows = [row["train"] for row in result.rows if row["step"]]
    return {name: np.round([row[name] for row in rows], 4).tolist() for name in names}


def baseline(arm: str, task: str, data: Any, seeds: range, out: Path) -> dict:
    """One of the offline methods; online too where it goes on."""
    env = envs.make(task)
    module = importlib.import_module(f"rlx.methods.{arm}")
    rounds = CONFIG.num_minibatches
    config = module.Config(
        **{name: getattr(CONFIG, name) for name in SHARED if name in fields_of(module)},
        num_minibatches=rounds,
    )
    anneals = hasattr(config, "anneal_steps")
    if anneals:
        config = dataclasses.replace(config, anneal_steps=BUDGET.foundation_steps)
    normalizes = getattr(config, "normalize_observations", False)
    moments = dataset.observation_statistics(data) if normalizes else None
    result = train.fit(
        module.make(env.spec, config, moments),
        dataset.sample(
            data, env=env, batch_size=BUDGET.batch_size, num_minibatches=rounds
        ),
        num_steps=BUDGET.foundation_steps // rounds,
        seeds=seeds,
        save_to=out / "offline",
        resume=True,
        on_row=lambda row: show(arm, row),
        settings=SETTINGS,
    )
    found = {"offline": curve_of(result, data)}
    if arm in FINE_TUNED:
        changes = {"num_minibatches": 2, **({"anneal_steps": 0} if anneals else {})}
        method = module.make(env.spec, dataclasses.replace(config, **changes), moments)
        online = fine_tune(arm, method, data, result, seeds, out / "online", env)
        found["online"] = curve_of(online, data)
    return {"phases": found, "config": vars(config)}


def fields_of(module: Any) -> set[str]:
    """The names of a method's fields."""
    return {field.name for field in dataclasses.fields(module.Config)}


def fine_tune(
    arm: str, method: Any, data: Any, offline: Any, seeds: range, out: Path, env: Any
) -> train.Result:
    """The same losses online, half of each minibatch from the dataset (RLPD)."""
    source = mixed(
        env,
        data,
        num_envs=ENVIRONMENTS,
        batch_size=BUDGET.batch_size,
        num_minibatches=method.num_minibatches,
        capacity=BUDGET.online_steps,
    )
    learned = sharding.gather(offline.state.learner)
    start = {"params": learned.params, "stats": learned.stats}
    return train.fit(
        method,
        source,
        num_steps=BUDGET.online_steps,
        seeds=seeds,
        save_to=out,
        resume=True,
        start={name: tree for name, tree in start.items() if jax.tree.leaves(tree)},
        on_row=lambda row: show(f"{arm} online", row),
        settings=SETTINGS,
    )


def phases(arm: str, task: str, data: Any, seeds: range, out: Path) -> dict:
    """Uni-O4 and its ablations; online too where the arm goes on."""
    config = dataclasses.replace(CONFIG, **ABLATIONS[arm])
    shared = out.with_name(out.name.removesuffix(arm) + "uni_o4")
    for phase, arms in (
        ("foundation", SAME_FOUNDATION),
        ("improvement", SAME_IMPROVEMENT),
    ):
        if arm in arms and (shared / phase).exists() and not (out / phase).exists():
            shutil.copytree(shared / phase, out / phase)
    budget = dataclasses.replace(
        BUDGET,
        improvement_steps=SHORT.get(arm, BUDGET.improvement_steps),
        online_steps=BUDGET.online_steps if arm in ONLINE else 0,
    )
    outcome = offline_to_online.fit(
        data,
        envs.make(task),
        config=config,
        online=offline_to_online.online_config(config, **ONLINE.get(arm, {})),
        budget=budget,
        is_terminal=TASKS[task],
        seeds=seeds,
        save_to=out,
        resume=True,
        on_row=lambda phase, row: show(f"{arm} {phase}", row),
        settings=SETTINGS,
    )
    fits = {
        "behaviour": outcome.foundation,
        "offline": outcome.improvement,
        "online": outcome.online,
    }
    gate = ("accepted", "score", "incumbent_score", "steps_alive")
    return {
        "phases": {k: curve_of(fit, data) for k, fit in fits.items() if fit},
        "gate": metrics_of(outcome.improvement, gate),
        "foundation": metrics_of(outcome.foundation, ("model_error", "action_value")),
        "config": vars(config),
        "budget": dataclasses.asdict(budget),
    }


def from_scratch(task: str, data: Any, seeds: range, out: Path) -> dict:
    """PPO without the data: the same networks, and PPO's own step sizes."""
    env = envs.make(task)
    source = rollout(env, num_envs=BUDGET.num_envs, length=BUDGET.length)
    config = ppo.Config(hidden_sizes=CONFIG.hidden_sizes)
    steps = train.gradient_steps(config, source, BUDGET.online_steps)
    config = dataclasses.replace(config, anneal_steps=steps)
    result = train.fit(
        ppo.make(env.spec, config),
        source,
        num_steps=BUDGET.online_steps,
        seeds=seeds,
        save_to=out,
        resume=True,
        on_row=lambda row: show("ppo", row),
        settings=SETTINGS,
    )
    return {"phases": {"online": curve_of(result, data)}, "config": vars(config)}


def show(label: str, row: Any) -> None:
    """A line per evaluation."""
    returns = np.asarray(row["return"])
    print(f"{label} {row['step']:>7}: return {returns.mean():7.0f}", flush=True)


def train_one(arm: str, task: str, kind: str, seeds: range, out: Path) -> dict:
    """One arm on one set, as a record."""
    data = dataset.load(file_of(task, kind))
    folder = out / f"{task}_{kind}_{arm}"
    if arm in BASELINES:
        found = baseline(arm, task, data, seeds, folder)
    elif arm == "ppo":
        found = from_scratch(task, data, seeds, folder)
    else:
        found = phases(arm, task, data, seeds, folder)
    behaviour = data.episode_returns[data.complete]
    return {
        "task": task,
        "kind": kind,
        "arm": arm,
        "seeds": list(seeds),
        "budget": dataclasses.asdict(BUDGET),
        **found,
        "dataset": {
            "transitions": data.num_steps,
            "mean_return": float(np.mean(behaviour)),
            "random_return": data.metadata.random_return,
            "expert_return": data.metadata.expert_return,
        },
        **origin("uni_o4.offline"),
    }


def main() -> None:
    """Runs what the command line asks for; records that are there are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["hopper"], choices=list(TASKS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, default=4, help="how many")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments/uni_o4"))
    arguments = parser.parse_args()
    sharding.use_cpu_cores()
    for task in arguments.tasks:
        for kind in arguments.kinds:
            for arm in arguments.arms:
                path = RESULTS / f"{task}_{kind}_{arm}.json"
                if path.exists():
                    print(f"{path.name}: there already", flush=True)
                    continue
                first = FRESH_SEEDS.get(arm, 0)
                seeds = range(first, first + arguments.seeds)
                write(path, train_one(arm, task, kind, seeds, arguments.out))


if __name__ == "__main__":
    main()
