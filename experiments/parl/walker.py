"""Return against labels on walker: A-PARL, its truncated gradient, PEBBLE, SURF.

    python -m experiments.parl.walker

The task of the paper's that runs here, `control/walker_walk`, with a scripted teacher
that is always right. A piece is one arm with one seed and one budget; the record is
written after each, and pieces that it holds are not trained again. Writes
`results/walker.json` and `results/walker.png`; with `--plot` only summary and figure.
On an accelerator `--engine mjx` trains all seeds of an arm together, into
`results/walker_mjx.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.parl import arms
from experiments.parl.summary import draw, summarize
from experiments.records import describe, origin

RESULTS = Path(__file__).parent / "results"
ARMS = (*arms.ON_POLICY, *arms.OFF_POLICY)
PLAN = arms.Plan(
    budgets=(40, 200),
    queries=20,
    length=50,
    asking=0.5,
    reward={
        "reward_hidden_sizes": (64, 64),
        "reward_batch_size": 32,
        "label_capacity": 200,  # of every budget, which so share a program
        "reward_learning_rate": 1e-3,
    },
    on_policy={"learning_rate": 5e-4, "num_epochs": 10, "num_minibatches": 8},
    rollout={"num_envs": 32, "length": 64},
    on_policy_batches=100,
    off_policy={
        "hidden_sizes": (64, 64),
        "num_minibatches": 4,
        "actor_learning_rate": 5e-4,
        "critic_learning_rate": 5e-4,
    },
    replay={
        "num_envs": 16,
        "capacity": 80_000,
        "warmup": 4_000,
        "batch_size": 128,
        "num_minibatches": 4,
    },
    off_policy_batches=4_500,
    pretraining=500,
    temperature=0.1,
    crop=5,
    semi={"unlabelled_ratio": 1, "reward_epochs": 20},  # for its cost
    oracle={"temperature": 0.1},
    bilevel={"cap": 0.3},  # not tuned: the term is mostly noise, see noise.py
    evaluations=6,
    episodes=6,
)
"""PPO: 204,800 steps. SAC: 72,000, a quarter of a gradient step each."""
TINY = {"on_policy_batches": 4, "off_policy_batches": 40, "pretraining": 5}
TINY |= {"budgets": (20, 40), "evaluations": 1, "episodes": 1}


def merge(pieces: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The pieces side by side: arms with `returns [points, budgets, seeds]`.

    Budgets and seeds are those of which no arm lacks a piece.
    """
    table: dict[str, dict[int, dict[int, dict[str, Any]]]] = {}
    for piece in pieces.values():
        row = table.setdefault(piece["arm"], {}).setdefault(piece["budget"], {})
        row.update({seed: piece for seed in piece["seeds"]})
    labelled = [rows for arm, rows in table.items() if arm not in ("ppo", "sac")]
    budgets = sorted(set.intersection(*(set(rows) for rows in labelled)))
    found: dict[str, Any] = {"budgets": budgets, "arms": {}}
    for arm in (arm for arm in ARMS if arm in table):
        rows = [table[arm][b] for b in (budgets if 0 not in table[arm] else [0])]
        seeds = sorted(set.intersection(*(set(row) for row in rows)))
        cells = [[_column(row[seed], seed) for seed in seeds] for row in rows]
        some = rows[0][seeds[0]]
        found["arms"][arm] = {
            "seeds": seeds,
            "steps": some["steps"],
            "returns": np.moveaxis(cells, 2, 0).tolist(),
            "metrics": {
                name: [
                    [_metric(row[seed], name, seed) for seed in seeds] for row in rows
                ]
                for name in some["metrics"]
            },
            "wall_seconds": round(sum(p["wall_seconds"] for p in _distinct(rows)), 1),
        }
    return found


def _column(piece: dict[str, Any], seed: int) -> list[float]:
    """One seed's returns `[points]`."""
    i = piece["seeds"].index(seed)
    return [point[0][i] for point in piece["returns"]]


def _metric(piece: dict[str, Any], name: str, seed: int) -> float:
    """Of the last session."""
    return piece["metrics"][name][0][piece["seeds"].index(seed)]


def _distinct(rows: list[dict[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    return list({id(piece): piece for row in rows for piece in row.values()}.values())


def measure(arguments: argparse.Namespace, plan: arms.Plan, path: Path) -> None:
    """Trains the pieces that the record lacks, those of the most labels first."""
    from envs import control

    record = json.loads(path.read_text()) if path.exists() else {}
    record |= {**origin("parl.walker", []), "plan": dataclasses.asdict(plan)}
    pieces = record.setdefault("pieces", {})
    together = arguments.engine != "native"
    groups = [arguments.seeds] if together else [[seed] for seed in arguments.seeds]
    for budget in sorted(arguments.budgets or plan.budgets, reverse=True):
        own = dataclasses.replace(plan, budgets=(budget,))
        for seeds, arm in itertools.product(groups, arguments.arms):
            labels = 0 if arm in ("ppo", "sac") else budget
            name = f"{arm}/{labels}/{'-'.join(map(str, seeds))}"
            if name in pieces:
                continue
            env = control.make("walker_walk", engine=arguments.engine)
            trained = arms.train(own, arm, env, seeds)
            piece = {"arm": arm, "budget": labels, "seeds": seeds, **trained}
            pieces[name] = piece
            path.write_text(json.dumps(record) + "\n")
            final = np.mean(trained["returns"][-1]).round(1)
            print(name, final, trained["wall_seconds"], flush=True)


def report(plan: arms.Plan, path: Path) -> None:
    """Summary and figure of a record."""
    record = json.loads(path.read_text())
    merged = merge(record["pieces"])
    record["summary"] = summarize(merged)
    record["summary"]["late"] = {  # single evaluations are of few episodes
        arm: [describe(row) for row in np.mean(found["returns"][-3:], 0)]
        for arm, found in merged["arms"].items()
    }
    path.write_text(json.dumps(record) + "\n")
    print(json.dumps(record["summary"], indent=1))
    batches = plan.on_policy_batches, plan.off_policy_batches
    sizes = np.prod(list(plan.rollout.values())), plan.replay["num_envs"]
    steps = tuple(f"{b * s:,}" for b, s in zip(batches, sizes, strict=True))
    draw(merged, path.with_suffix(".png"), steps)


def main() -> None:
    """Measures, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--budgets", type=int, nargs="+", help="some of them")
    parser.add_argument("--engine", default="native", choices=("native", "mjx"))
    parser.add_argument("--plot", action="store_true", help="draw, do not measure")
    parser.add_argument("--record", type=Path, help="where to, instead of results/")
    parser.add_argument("--tiny", action="store_true", help="only see that it runs")
    arguments = parser.parse_args()
    plan = dataclasses.replace(PLAN, **TINY) if arguments.tiny else PLAN
    name = "walker.json" if arguments.engine == "native" else "walker_mjx.json"
    path = arguments.record or RESULTS / name
    if not arguments.plot:
        measure(arguments, plan, path)
    report(plan, path)


if __name__ == "__main__":
    main()
