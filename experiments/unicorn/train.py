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
from experiments.unicorn import benchmark, ear, learned, rules, scoring
from experiments.unicorn.benchmark import Benchmark
from rlx.methods import unicorn
from rlx.ops.catalogue import Catalogue
from rlx.types import LearnerState

RESULTS = Path(__file__).parent / "results"
THRESHOLDS = (30, 100, 200, 300, 500, 1000)
SHARPNESS = (0.0, 2.0, 5.0)
"""Tried on validation pairs."""
EACH = 40
"""Iterations between two points of a learning curve."""


def score_rules(
    catalogue: Catalogue, valid: np.ndarray, test: np.ndarray
) -> dict[str, Any]:
    """Rules without learning; their numbers are the best on validation pairs."""

    def play(act: scoring.Act, pairs: np.ndarray) -> dict[str, Any]:
        player = scoring.player(catalogue, benchmark.plain, act)
        return scoring.scores(player((), pairs, jax.random.key(1)))

    def tune(make: Any, values: tuple[float, ...]) -> dict[float, float]:
        return {x: play(make(catalogue, x), valid)["success"] for x in values}

    def ahead(catalogue: Catalogue, sharpness: float) -> scoring.Act:
        return rules.lookahead(catalogue, 0, sharpness)

    sizes, sharp = tune(rules.threshold, THRESHOLDS), tune(ahead, SHARPNESS)
    size, sharpest = (max(found, key=found.__getitem__) for found in (sizes, sharp))
    return {
        "threshold_on_validation": {str(m): x for m, x in sizes.items()},
        "sharpness_on_validation": {str(m): x for m, x in sharp.items()},
        "threshold": size,
        "sharpness": sharpest,
        "threshold_rule": play(rules.threshold(catalogue, size), test),
        "lookahead_to_the_end": play(ahead(catalogue, sharpest), test),
        "lookahead_one_list": play(rules.lookahead(catalogue, 1), test),
        "always_recommend": play(rules.threshold(catalogue, float("inf")), test),
        "maximum_entropy": play(rules.maximum_entropy(catalogue), test),
    }


def parts_of(
    catalogue: Catalogue, name: str, arguments: argparse.Namespace
) -> tuple[learned.Parts, dict[str, Any]]:
    """What an arm consists of, and its settings."""
    steps = arguments.iterations * arguments.minibatches
    if name == "scpr":
        parts = learned.scpr_parts(catalogue, arguments.minibatches, steps)
        return parts, {"minibatches": arguments.minibatches}
    arm = learned.ARMS[name]
    fields = {
        "learning_rate": arguments.learning_rate,
        "n_step": arguments.n_step,
        "tau": arguments.tau,
        "num_minibatches": arguments.minibatches,
        "batch_size": arguments.batch,
        "epsilon_steps": steps // 2,
        **arm.fields,
    }
    config = unicorn.Config(**fields)
    settings = {"config": dataclasses.asdict(config), "arm": dataclasses.asdict(arm)}
    return learned.unicorn_parts(catalogue, arm, config, steps), settings


def train_one(
    place: Benchmark,
    name: str,
    seed: int,
    test: np.ndarray,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Scores on test pairs, learning curve on validation pairs, and settings."""
    catalogue, key = place.catalogue, jax.random.key(1)
    if name == "ear":
        settings = {"imitation": 60, "updates": arguments.iterations}
        params = ear.train(catalogue, seed, **settings)
        play = scoring.player(catalogue, learned.told, ear.rule(catalogue))
        return {**scoring.scores(play(params, test, key)), "settings": settings}
    parts, settings = parts_of(catalogue, name, arguments)
    curve: list[Any] = []
    play = scoring.player(catalogue, parts.make_env, parts.act)
    few = place.valid[np.random.default_rng(2).permutation(len(place.valid))[:1000]]

    def report(iteration: int, learner: LearnerState) -> None:
        point: dict[str, Any] = {"updates": iteration * arguments.minibatches}
        for net in ("params", "target_params"):
            found = scoring.scores(play(getattr(learner, net), few, jax.random.key(3)))
            point[net] = {k: found[k] for k in ("success", "turns", "questions")}
        curve.append(point)
        print(name, seed, point, flush=True)

    learner = learned.trained(parts, seed, arguments.iterations, EACH, report)
    averaged = scoring.scores(play(learner.target_params, test, key))
    last = scoring.scores(play(learner.params, test, key))
    return {**last, "averaged": averaged, "curve": curve, "settings": settings}


def run_arm(
    place: Benchmark, name: str, test: np.ndarray, arguments: argparse.Namespace
) -> None:
    """All seeds of an arm; what is there is saved after each."""
    seeds: list[dict[str, Any]] = []
    kept = ("success", "turns", "gain", "questions")
    for seed in range(arguments.seeds):
        started = time.perf_counter()
        scores = train_one(place, name, seed, test, arguments)
        settings = scores.pop("settings")
        print(name, seed, {k: scores[k] for k in kept}, flush=True)
        seconds = round(time.perf_counter() - started, 1)
        seeds.append({**scores, "seconds": seconds})
        content = {"arm": name, "iterations": arguments.iterations}
        content |= {"settings": settings, **_summary(seeds, kept)}
        averaged = [x["averaged"] for x in seeds if "averaged" in x]
        if averaged:
            content["averaged"] = _summary(averaged, kept)
        save(name, {**content, "seeds": seeds}, arguments)


def _summary(seeds: list[dict[str, Any]], kept: tuple[str, ...]) -> dict[str, Any]:
    columns = {k: [x[k] for x in seeds] for k in kept}
    return {
        "mean": {k: float(np.mean(x)) for k, x in columns.items()},
        "deviation_over_seeds": {k: float(np.std(x)) for k, x in columns.items()},
    }


def save(name: str, content: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Writes a result; places on this machine are left out of the command."""
    words = [word for word in sys.argv[1:] if word != str(arguments.out)]
    words = [arguments.data.name if w == str(arguments.data) else w for w in words]
    made = origin("unicorn.train", [word for word in words if word != "--out"])
    suffix = "fine" if arguments.fine else "coarse"
    suffix += "" if arguments.vectors == "als" else f"_{arguments.vectors}"
    write(arguments.out / f"{name}_{suffix}.json", {**content, **made})


def main() -> None:
    """Runs the arms that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help=".npz of edge lists")
    arms = ["rules", "scpr", "ear", *learned.ARMS]
    parser.add_argument("--arms", nargs="+", choices=arms, default=arms[:4])
    parser.add_argument("--vectors", choices=("als", "transe"), default="als")
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
    place = benchmark.lastfm(
        arguments.data, coarse=not arguments.fine, vectors=arguments.vectors
    )
    mixed = np.random.default_rng(0)
    test = place.test[mixed.permutation(len(place.test))][: arguments.conversations]
    valid = place.valid[mixed.permutation(len(place.valid))][:1000]
    for name in arguments.arms:
        if name == "rules":
            save("rules", score_rules(place.catalogue, valid, test), arguments)
        else:
            run_arm(place, name, test, arguments)


if __name__ == "__main__":
    main()
