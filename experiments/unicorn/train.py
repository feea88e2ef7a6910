"""Learned methods for conversational recommendation, against rules, on Last.fm.

    python -m experiments.unicorn.train lastfm.npz --arms rules scpr ear unicorn

Every arm learns in conversations about validation pairs and is scored on test pairs;
vectors come from training pairs alone. Writes `results/<arm>.json` with scores of every
seed, intervals, curve, settings, time and machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.records import origin, write
from experiments.unicorn import learned, scoring, world
from rlx.methods import unicorn
from rlx.types import Params

RESULTS = Path(__file__).parent / "results"
THRESHOLDS = (30, 100, 300, 1000)
EACH = 40
"""Iterations between two points of a learning curve."""


def score_rules(
    place: world.World, valid: np.ndarray, test: np.ndarray
) -> dict[str, Any]:
    """Rules without learning; the threshold is the best on validation pairs."""

    def play(rule: scoring.Rule, pairs: np.ndarray) -> dict[str, Any]:
        found = scoring.player(place, rule)((), pairs, jax.random.key(1))
        return scoring.scores(found)

    tuned = {m: play(scoring.threshold(place, m), valid) for m in THRESHOLDS}
    best = max(tuned, key=lambda m: tuned[m]["success"])
    return {
        "tuned_on_validation": {str(m): x["success"] for m, x in tuned.items()},
        "threshold": best,
        "threshold_rule": play(scoring.threshold(place, best), test),
        "always_recommend": play(scoring.threshold(place, float("inf")), test),
        "maximum_entropy": play(scoring.maximum_entropy(place), test),
    }


def train_one(
    place: world.World, name: str, seed: int, arguments: argparse.Namespace
) -> tuple[Params, scoring.Rule, list[Any], dict[str, Any]]:
    """Parameters, rule, learning curve on validation pairs, and settings."""
    if name == "ear":
        settings = {"imitation": 60, "updates": arguments.iterations}
        params, rule = learned.train_ear(place, seed, **settings)
        return params, rule, [], settings
    steps = arguments.iterations * arguments.minibatches
    if name == "scpr":
        parts = learned.scpr_parts(place, arguments.minibatches, steps)
        settings = {"minibatches": arguments.minibatches}
    else:
        arm = learned.ARMS[name]
        fields = {
            "learning_rate": arguments.learning_rate,
            "n_step": arguments.n_step,
            "tau": arguments.tau,
            "num_minibatches": arguments.minibatches,
            "epsilon_steps": steps // 2,
            **arm.fields,
        }
        config = unicorn.Config(**fields)
        parts = learned.unicorn_parts(place, arm, config, arguments.batch, steps)
        settings = {
            "config": dataclasses.asdict(config),
            "arm": dataclasses.asdict(arm),
            "batch_size": arguments.batch,
        }
    method, source, rule = parts
    curve: list[Any] = []
    play = scoring.player(place, rule)
    few = place.valid[np.random.default_rng(2).permutation(len(place.valid))[:500]]

    def report(iteration: int, params: Params) -> None:
        found = scoring.scores(play(params, few, jax.random.key(3)))
        point = {"updates": iteration * arguments.minibatches}
        point |= {key: found[key] for key in ("success", "turns", "questions")}
        curve.append(point)
        print(name, seed, point, flush=True)

    params = learned.trained(method, source, seed, arguments.iterations, EACH, report)
    return params, rule, curve, settings


def run_arm(
    place: world.World, name: str, test: np.ndarray, arguments: argparse.Namespace
) -> dict[str, Any]:
    """All seeds of an arm."""
    seeds = []
    settings: dict[str, Any] = {}
    for seed in range(arguments.seeds):
        started = time.perf_counter()
        params, rule, curve, settings = train_one(place, name, seed, arguments)
        seconds = time.perf_counter() - started
        found = scoring.player(place, rule)(params, test, jax.random.key(1))
        scores = scoring.scores(found)
        print(name, seed, {k: scores[k] for k in ("success", "turns", "gain")})
        seeds.append({**scores, "curve": curve, "seconds": round(seconds, 1)})
        kept = ("success", "turns", "gain", "questions")
        mean = {k: float(np.mean([x[k] for x in seeds])) for k in kept}
        spread = {k: float(np.std([x[k] for x in seeds])) for k in kept}
        content = {
            "arm": name,
            "mean": mean,
            "deviation_over_seeds": spread,
            "iterations": arguments.iterations,
            "settings": settings,
            "seeds": seeds,
        }
        save(name, content, arguments)
    return settings


def save(name: str, content: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Writes a result; places on this machine are left out of the command."""
    words = [word for word in sys.argv[1:] if word != str(arguments.out)]
    words = [arguments.data.name if w == str(arguments.data) else w for w in words]
    made = origin("unicorn.train", [word for word in words if word != "--out"])
    suffix = "fine" if arguments.fine else "coarse"
    write(arguments.out / f"{name}_{suffix}.json", {**content, **made})


def main() -> None:
    """Runs the arms that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help=".npz of edge lists")
    arms = ["rules", "scpr", "ear", *learned.ARMS]
    parser.add_argument("--arms", nargs="+", choices=arms, default=arms[:4])
    parser.add_argument("--fine", action="store_true", help="LastFM*, not LastFM-33")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--n-step", type=int, default=1)
    parser.add_argument("--tau", type=float, default=0.01)
    parser.add_argument("--conversations", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    place = world.lastfm(arguments.data, coarse=not arguments.fine)
    mixed = np.random.default_rng(0)
    test = place.test[mixed.permutation(len(place.test))][: arguments.conversations]
    valid = place.valid[mixed.permutation(len(place.valid))][:1000]
    for name in arguments.arms:
        if name == "rules":
            save("rules", score_rules(place, valid, test), arguments)
        else:
            run_arm(place, name, test, arguments)


if __name__ == "__main__":
    main()
