"""Return against labels on walker: A-PARL, its truncated gradient, PEBBLE, SURF.

    python -m experiments.parl.walker

The task of the paper's that runs here, `control/walker_walk`, with a scripted teacher
that is always right. A piece is one arm with one seed and all budgets; the record is
written after each, and pieces that it holds are not trained again. Writes
`results/walker.json` and `results/walker.png`; with `--plot` only summary and figure.
On an accelerator `--engine mjx` trains all seeds of an arm together, into
`results/walker_mjx.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.parl import arms
from experiments.parl.summary import draw, summarize
from experiments.records import origin

RESULTS = Path(__file__).parent / "results"
ARMS = (*arms.ON_POLICY, *arms.OFF_POLICY)
PLAN = arms.Plan(
    budgets=(100, 500),
    queries=25,
    length=50,
    asking=0.5,
    reward={
        "reward_hidden_sizes": (64, 64),
        "reward_batch_size": 128,
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
    oracle={"temperature": 0.1},
    bilevel={"cap": 0.3},  # about the cosine of an estimate with the truth: noise.py
    evaluations=6,
    episodes=6,
)
"""PPO: 204,800 steps. SAC: 72,000, a quarter of a gradient step each."""
TINY = {"on_policy_batches": 2, "off_policy_batches": 40, "pretraining": 5}
TINY |= {"budgets": (25, 50), "evaluations": 1, "episodes": 1}


def merge(pieces: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pieces of each arm side by side, in the order of their seeds."""
    found: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        own = [p for _, p in sorted(pieces.items()) if p["arm"] == arm]
        if not own:
            continue
        found[arm] = {
            "steps": own[0]["steps"],
            "seeds": [seed for piece in own for seed in piece["seeds"]],
            "returns": _beside([piece["returns"] for piece in own]),
            "wall_seconds": round(sum(piece["wall_seconds"] for piece in own), 1),
            "metrics": {
                name: _beside([piece["metrics"][name] for piece in own])
                for name in own[0]["metrics"]
            },
        }
        if own[0]["labels"]:
            found[arm]["labels"] = _beside([piece["labels"] for piece in own])
    return found


def _beside(values: list[Any]) -> list[Any]:
    return np.concatenate([np.array(x) for x in values], axis=-1).tolist()


def measure(arguments: argparse.Namespace, plan: arms.Plan, path: Path) -> None:
    """Trains the pieces that the record lacks."""
    from envs import control

    record = json.loads(path.read_text()) if path.exists() else {}
    record |= {**origin("parl.walker", []), "plan": dataclasses.asdict(plan)}
    pieces = record.setdefault("pieces", {})
    together = arguments.engine != "native"
    groups = [arguments.seeds] if together else [[seed] for seed in arguments.seeds]
    for seeds in groups:
        for arm in arguments.arms:
            name = f"{arm}/{'-'.join(map(str, seeds))}"
            if name in pieces:
                continue
            env = control.make("walker_walk", engine=arguments.engine)
            trained = arms.train(plan, arm, env, seeds)
            pieces[name] = {"arm": arm, "seeds": seeds, **trained}
            path.write_text(json.dumps(record) + "\n")
            final = np.mean(trained["returns"][-1], -1).round(1)
            print(name, final, trained["wall_seconds"], flush=True)


def report(plan: arms.Plan, path: Path) -> None:
    """Summary and figure of a record."""
    record = json.loads(path.read_text())
    merged = {"arms": merge(record["pieces"]), "budgets": plan.budgets}
    record["summary"] = summarize(merged)
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
