"""Return against labels on pendulum: A-PARL, its truncated gradient, PEBBLE, SURF.

    python -m experiments.parl.control

Every arm is trained with several budgets of labels, spread evenly over its run, and
judged by the true return, which it never sees. Writes `results/control.json` and
`results/control.png`. With `--plot` only summary and figure are made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from experiments.parl import arms
from experiments.parl.summary import draw, summarize
from experiments.records import origin

RESULTS = Path(__file__).parent / "results"
ARMS = ("ppo", "truncated", "likelihood", "sac", "pebble", "utility", "surf")
PLAN = arms.Plan(
    budgets=(10, 40, 160),
    queries=10,
    length=25,
    reward={
        "reward_hidden_sizes": (64, 64),
        "reward_batch_size": 64,
        "reward_learning_rate": 1e-3,
    },
    on_policy={
        "gamma": 0.95,
        "learning_rate": 1e-3,
        "num_epochs": 10,
        "num_minibatches": 8,
    },
    rollout={"num_envs": 10, "length": 200},  # whole episodes
    on_policy_batches=60,
    off_policy={
        "hidden_sizes": (64, 64),
        "num_minibatches": 4,
        "actor_learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "gamma": 0.95,
        "automatic_temperature": False,
    },
    replay={
        "num_envs": 8,
        "capacity": 16_000,
        "warmup": 800,
        "batch_size": 128,
        "num_minibatches": 4,
    },
    off_policy_batches=1_500,
    pretraining=100,
    temperature=0.1,
    crop=3,
    oracle={"temperature": 0.2, "reward_scale": 0.1},
    # As it was measured, before `noise.py` said what else to do.
    bilevel={"crossed": False, "centred": False, "unlabelled_pairs": 0},
)


def main() -> None:
    """Measures, writes and draws."""
    from envs import probe

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--plot", action="store_true", help="draw, do not measure")
    arguments = parser.parse_args()
    path = RESULTS / "control.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    if not arguments.plot:
        if arguments.arms == ARMS:
            record = {}
        record |= {**origin("parl.control"), "budgets": PLAN.budgets}
        record["seeds"] = arguments.seeds
        for arm in arguments.arms:
            trained = arms.train(PLAN, arm, probe.make("pendulum"), arguments.seeds)
            record.setdefault("arms", {})[arm] = trained
            final = np.mean(record["arms"][arm]["returns"][-1], -1)
            print(arm, final.round(1), record["arms"][arm]["wall_seconds"], flush=True)
            path.write_text(json.dumps(record) + "\n")
    record["summary"] = summarize(record)
    path.write_text(json.dumps(record) + "\n")
    print(json.dumps(record["summary"], indent=1))
    draw(record, RESULTS / "control.png", ("120,000", "12,000"))


if __name__ == "__main__":
    main()
