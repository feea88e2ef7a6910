"""Return against labels on pendulum: A-PARL, its truncated gradient, PEBBLE, SURF.

    python -m experiments.parl.control

Every arm is trained with several budgets of labels, spread evenly over its run, and
judged by the true return, which it never sees. Writes `results/control.json` and
`results/control.png`. With `--plot` only summary and figure are made again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.parl.summary import draw, summarize
from experiments.records import origin

RESULTS = Path(__file__).parent / "results"
BUDGETS = (10, 40, 160)
"""Labels."""
QUERIES = 10
"""Asked in a session."""
LENGTH = 25
ON_POLICY_BATCHES = 60
"""Of 10 whole episodes: 120,000 steps."""
OFF_POLICY_BATCHES = 1_500
"""Of 8 steps, with 4 gradient steps each: 12,000 steps."""
PRETRAINING = 100
OFF_POLICY = {
    "hidden_sizes": (64, 64),
    "num_minibatches": 4,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "gamma": 0.95,
    "automatic_temperature": False,
}
ON_POLICY = {
    "gamma": 0.95,
    "learning_rate": 1e-3,
    "num_epochs": 10,
    "num_minibatches": 8,
    "anneal_steps": 10 * 8 * ON_POLICY_BATCHES,
}
REWARD = {
    "segment_length": LENGTH,
    "queries_per_session": QUERIES,
    "label_capacity": max(BUDGETS),
    "reward_hidden_sizes": (64, 64),
    "reward_batch_size": 64,
    "reward_learning_rate": 1e-3,
}
ARMS = ("ppo", "truncated", "likelihood", "sac", "pebble", "utility", "surf")


def intervals(batches: int) -> list[float]:
    """Batches between sessions that spread each budget evenly over as many batches."""
    return [float(batches * QUERIES // budget) for budget in BUDGETS]


def on_policy(arm: str, env: Any) -> tuple[Any, Any, dict[str, list[float]] | None]:
    """Method or its maker, source and settings."""
    from rlx.data.rollout import rollout
    from rlx.methods import parl, ppo

    source = rollout(env, num_envs=10, length=200)
    if arm == "ppo":
        return ppo.make(env.spec, ppo.Config(**ON_POLICY)), source, None
    fixed = {"num_candidates": QUERIES, "upper": "likelihood", "kappa": 1.0}
    if arm == "utility":
        fixed["upper"] = "utility"
    if arm == "truncated":
        fixed |= {"kappa": 0.0, "solver": "none"}

    def make(hyper: dict[str, jax.Array]) -> Any:
        config = parl.Config(**{**ON_POLICY, **REWARD, **fixed, **hyper})
        return parl.make(env.spec, config)

    every = intervals(ON_POLICY_BATCHES)
    return make, source, {"num_labels": list(BUDGETS), "session_interval": every}


def off_policy(arm: str, env: Any) -> tuple[Any, Any, dict[str, list[float]] | None]:
    """Method or its maker, source and settings."""
    from rlx.data.replay import replay
    from rlx.data.segments import segments
    from rlx.methods import pebble, sac, surf

    sizes = {"num_envs": 8, "capacity": 16_000, "warmup": 800}
    sizes |= {"batch_size": 128, "num_minibatches": 4}
    if arm == "sac":
        config = sac.Config(**OFF_POLICY, temperature=0.2, reward_scale=0.1)
        return sac.make(env.spec, config), replay(env, **sizes), None
    module = {"pebble": pebble, "surf": surf}[arm]
    fixed = {"temperature": 0.1, "pretraining_batches": PRETRAINING}
    length = LENGTH
    if arm == "surf":
        fixed["crop"] = 3
        length += 6

    def make(hyper: dict[str, jax.Array]) -> Any:
        config = module.Config(**{**OFF_POLICY, **REWARD, **fixed, **hyper})
        return module.make(env.spec, config)

    source = segments(env, segment_length=length, num_candidates=10 * QUERIES, **sizes)
    every = intervals(OFF_POLICY_BATCHES - PRETRAINING)
    return make, source, {"num_labels": list(BUDGETS), "session_interval": every}


def train_arm(arm: str, seeds: int) -> dict[str, Any]:
    """Trains one arm with all budgets and seeds."""
    from envs import probe
    from rlx import train

    env = probe.make("pendulum")
    off = arm in ("pebble", "surf", "sac")
    method, source, hyper = (off_policy if off else on_policy)(arm, env)
    batches = OFF_POLICY_BATCHES if off else ON_POLICY_BATCHES
    began = time.perf_counter()
    result = train.fit(
        method,
        source,
        num_steps=batches * source.steps_per_batch,
        seeds=seeds,
        hyper=hyper,
        settings=train.Settings(evaluations=15, episodes=16),
    )
    settings = len(BUDGETS) if hyper else 1
    shape = (-1, settings, seeds)
    kept = ("agreement", "direct_norm", "implicit_norm", "cosine", "implicit_scale")
    last = result.rows[-1]["train"]
    return {
        "steps": result.steps.tolist(),
        "returns": np.round(result.returns.reshape(shape), 2).tolist(),
        "labels": np.reshape(last["asked"], (settings, seeds)).tolist()
        if "asked" in last
        else None,
        "metrics": {
            name: np.round(np.reshape(last[name], (settings, seeds)), 4).tolist()
            for name in kept
            if name in last
        },
        "wall_seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Measures, writes and draws."""
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
        record |= {**origin("parl.control"), "budgets": BUDGETS}
        record["seeds"] = arguments.seeds
        for arm in arguments.arms:
            record.setdefault("arms", {})[arm] = train_arm(arm, arguments.seeds)
            final = np.mean(record["arms"][arm]["returns"][-1], -1)
            print(arm, final.round(1), record["arms"][arm]["wall_seconds"], flush=True)
            path.write_text(json.dumps(record) + "\n")
    record["summary"] = summarize(record)
    path.write_text(json.dumps(record) + "\n")
    print(json.dumps(record["summary"], indent=1))
    draw(record, RESULTS / "control.png")


if __name__ == "__main__":
    main()
