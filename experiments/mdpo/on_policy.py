"""PPO and on-policy MDPO on MuJoCo tasks: the learning curves of this page.

    python -m experiments.mdpo.on_policy --tasks hopper --methods ppo mdpo --seeds 8

Trains every task with every method (resuming what was begun), and writes
`results/<task>_<method>.json` (steps, returns of every seed, IQM with its 95 %
interval, settings, machine) and `results/<task>.png`; with `--first-seed`, in records
of their own that the table and the plots join with the others of the task. With
`--summary` it only rewrites the table `results/summary.json` and the plots from the
results there are.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.mdpo._shared import RESULTS, fit
from experiments.records import Curve, describe, origin, write

BUDGETS = {
    "hopper": 1_000_000,
    "half_cheetah": 1_000_000,
    "inverted_double_pendulum": 500_000,
    "walker2d": 1_000_000,
}
"""Environment steps per seed."""
TARGETS = {
    "hopper": 2200.0,
    "half_cheetah": 1800.0,
    "inverted_double_pendulum": 8000.0,
}
"""Ordinary final returns of these methods with these budgets."""


def train_one(
    task: str,
    method_name: str,
    seeds: range,
    steps: int,
    out: Path,
    learning_rate: float | None = None,
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Trains one task with one method, or goes on where it stopped.

    Returns:
      The environment, the method, what `train.fit` returned, and the record to write.
    """
    import envs
    from rlx import train
    from rlx.data.rollout import rollout

    module = importlib.import_module(f"rlx.methods.{method_name}")
    env = envs.make(task)
    source = rollout(env, num_envs=40, length=50)
    config = module.Config()
    name = f"{task}_{method_name}"
    if learning_rate is not None:
        config = dataclasses.replace(config, learning_rate=learning_rate)
        name = f"{name}_{learning_rate:g}"
    if seeds.start:
        name = f"{name}_from_seed_{seeds.start}"
    config = dataclasses.replace(
        config, anneal_steps=train.gradient_steps(config, source, steps)
    )
    settings = train.Settings(
        evaluations=20,
        episodes=8,
        config={
            "method": method_name,
            "env": task,
            "num_steps": steps,
            "config": config,
            "num_envs": 40,
            "length": 50,
        },
    )

    method = module.make(env.spec, config)
    result, outcome = fit(
        f"{task} {method_name}",
        method,
        source,
        num_steps=steps,
        seeds=seeds,
        save_to=out / name,
        resume=True,
        settings=settings,
    )
    content = {
        "name": name,
        "task": task,
        "method": method_name,
        **outcome,
        "config": dataclasses.asdict(config),
        "num_envs": 40,
        "length": 50,
        "episodes_per_evaluation": settings.episodes,
        **origin("mdpo.on_policy"),
    }
    return env, method, result, content


def summarize() -> None:
    """The table of final returns and a plot per task, from the results there are."""
    from rlx import plot

    table: list[dict[str, Any]] = []
    by_task: dict[str, dict[str, Any]] = {}
    for (task, method, rate, _), parts in _by_setting().items():
        steps, returns = join(parts)
        label = method.upper()
        if rate != _own_learning_rate(method):
            label = f"{label} at {rate:g}"
        by_task.setdefault(task, {})[label] = Curve(steps, returns)
        table.append(
            {
                "task": task,
                "method": method,
                "learning_rate": rate,
                "seeds": returns.shape[1],
                "num_steps": int(steps[-1]),
                "target": TARGETS.get(task),
                "wall_seconds_per_million_steps": _wall_seconds(parts),
                **describe(returns[-1]),
            }
        )
    write(
        RESULTS / "summary.json",
        {"rows": table, **origin("mdpo.on_policy", ["--summary"])},
    )
    for task, curves in by_task.items():
        plot.curve(curves, RESULTS / f"{task}.png")
    for row in table:
        print(
            f"{row['task']:26} {row['method']:5} {row['learning_rate']:g} "
            f"{row['seeds']} seeds  IQM "
            f"{row['iqm']:7.0f} [{row['low']:.0f}, {row['high']:.0f}]"
        )


def join(parts: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The seeds of several records as one curve, at the steps of the first record.

    Records of other evaluation steps are interpolated linearly in between; their last
    evaluations stay as they are, for all records must end at the same step.

    Args:
      parts: records, each with `steps` [K], `returns` [K, N] and `seeds` [N].

    Returns:
      Steps `[K]` of the first record, and returns `[K, all seeds]`.

    Raises:
      ValueError: two records hold the same seed, or end at different steps.
    """
    seeds = [seed for part in parts for seed in part["seeds"]]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"records hold a seed twice: {sorted(seeds)}; remove one")
    steps = np.array(parts[0]["steps"])
    ends = {part["steps"][-1] for part in parts}
    if len(ends) > 1:
        raise ValueError(f"records end at different steps: {sorted(ends)}")
    columns = [
        np.interp(steps, part["steps"], column)
        for part in parts
        for column in np.array(part["returns"]).T
    ]
    return steps, np.stack(columns, axis=1)


def _by_setting() -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The records there are; those that differ in their seeds alone lie together."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("*_*.json")):
        content = json.loads(path.read_text())
        if "returns" in content and "task" in content:
            rate = content["config"]["learning_rate"]
            setting = (content["task"], content["method"], rate, content["steps"][-1])
            found.setdefault(setting, []).append(content)
    return found


def _own_learning_rate(method: str) -> float:
    return importlib.import_module(f"rlx.methods.{method}").Config().learning_rate


def _wall_seconds(parts: list[dict[str, Any]]) -> float:
    """Of a million steps of all seeds together, at the intervals' median speed."""
    speeds = np.concatenate([part["steps_per_second"] for part in parts])
    return round(1e6 / float(np.median(speeds)), 1)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(BUDGETS), choices=BUDGETS)
    parser.add_argument("--methods", nargs="+", default=["ppo", "mdpo"])
    parser.add_argument("--seeds", type=int, default=8, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the task's budget")
    parser.add_argument("--learning-rate", type=float, help="instead of 3e-4")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments/mdpo"))
    parser.add_argument("--summary", action="store_true", help="no training")
    arguments = parser.parse_args()
    if not arguments.summary:
        from rlx import sharding

        sharding.use_cpu_cores()
        first = arguments.first_seed
        for task in arguments.tasks:
            steps = arguments.steps or BUDGETS[task]
            for method in arguments.methods:
                *_, content = train_one(
                    task,
                    method,
                    range(first, first + arguments.seeds),
                    steps,
                    arguments.out,
                    arguments.learning_rate,
                )
                write(RESULTS / f"{content.pop('name')}.json", content)
    summarize()


if __name__ == "__main__":
    main()
