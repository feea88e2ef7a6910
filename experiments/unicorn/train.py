"""Learned methods for conversational recommendation, against rules, on Last.fm.

    python -m experiments.unicorn.train lastfm.npz --arms rules scpr ear unicorn

Every arm learns in conversations about validation pairs and is scored on test pairs;
vectors come from training pairs alone. Writes `results/<arm>_<view>_<vectors>.json`
with scores of every seed, intervals, curve, settings, time and machine. Seeds can be
run one by one: a record takes up what is new (`--first-seed 1 --seeds 1`).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.unicorn import benchmark, ear, learned, results, rules, scoring
from experiments.unicorn.benchmark import Benchmark
from rlx.methods import unicorn
from rlx.ops.catalogue import Catalogue
from rlx.types import Env, LearnerState

THRESHOLDS = (30, 100, 200, 300, 500, 1000)
SHARPNESS = (0.0, 2.0, 5.0)
"""Tried on validation pairs."""
SCPR = {"scpr": 0.0, "scpr_share": 5.0}
"""The sharpness of its share; 0: it has none, as published."""
HELD = 500
"""Conversations held at each point of a learning curve."""
IMITATION = 60
"""Batches that EAR imitates."""


def score_rules(
    catalogue: Catalogue, valid: np.ndarray, test: np.ndarray
) -> dict[str, Any]:
    """Rules without learning; their numbers are the best on validation pairs."""

    def play(
        act: scoring.Act, pairs: np.ndarray, questions: int = rules.QUESTIONS
    ) -> dict[str, Any]:
        def make_env(about: Catalogue) -> Env:
            return benchmark.plain(about, questions)

        player = scoring.player(catalogue, make_env, act)
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
        "maximum_entropy": play(rules.maximum_entropy(catalogue), test, 0),
    }


def parts_of(
    catalogue: Catalogue, name: str, arguments: argparse.Namespace
) -> tuple[learned.Parts, dict[str, Any]]:
    """What an arm consists of, and its settings."""
    steps = arguments.iterations * arguments.minibatches
    if name in SCPR:
        sharpness, number = SCPR[name], arguments.minibatches
        parts = learned.scpr_parts(catalogue, number, steps, sharpness)
        return parts, {"minibatches": number, "sharpness": sharpness}
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
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores on test pairs with a learning curve on validation pairs; settings."""
    catalogue, key = place.catalogue, jax.random.key(1)
    if name == "ear":
        settings = {"imitation": IMITATION, "updates": arguments.iterations}
        params = ear.train(catalogue, seed, **settings)
        play = scoring.player(catalogue, learned.told, ear.rule(catalogue))
        return scoring.scores(play(params, test, key)), settings
    parts, settings = parts_of(catalogue, name, arguments)
    curve: list[Any] = []
    play = scoring.player(catalogue, parts.make_env, parts.act)
    few = place.valid[np.random.default_rng(2).permutation(len(place.valid))[:HELD]]

    def report(iteration: int, learner: LearnerState) -> None:
        point: dict[str, Any] = {"updates": iteration * arguments.minibatches}
        found = scoring.scores(play(learner.target_params, few, jax.random.key(3)))
        point |= {k: found[k] for k in ("success", "turns", "questions")}
        curve.append(point)
        print(name, seed, point, flush=True)

    learner = learned.trained(
        parts, seed, arguments.iterations, arguments.points, report
    )
    averaged = scoring.scores(play(learner.target_params, test, key))
    last = scoring.scores(play(learner.params, test, key))
    return {**last, "averaged": averaged, "curve": curve}, settings


def run_arm(
    place: Benchmark, name: str, test: np.ndarray, arguments: argparse.Namespace
) -> None:
    """The seeds of an arm; each is saved when it is there."""
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        started, worked = time.perf_counter(), time.process_time()
        load = os.getloadavg()[0]
        scores, settings = train_one(place, name, seed, test, arguments)
        settings["iterations"] = arguments.iterations
        settings["conversations"] = scores["conversations"]
        print(name, seed, {k: scores[k] for k in results.KEPT}, flush=True)
        spent = {
            "seconds": round(time.perf_counter() - started, 1),
            "seconds_of_cpu": round(time.process_time() - worked, 1),
            "load_before": load,
        }
        found = {"seed": seed, **scores, **spent}
        results.add_seed(name, settings, found, arguments)


def main() -> None:
    """Runs the arms that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help=".npz of edge lists")
    arms = ["rules", *SCPR, "ear", *learned.ARMS]
    parser.add_argument("--arms", nargs="+", choices=arms, default=["rules"])
    parser.add_argument("--vectors", choices=("als", "transe"), default="als")
    parser.add_argument("--fine", action="store_true", help="LastFM*, not LastFM-33")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=480)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--n-step", type=int, default=1)
    parser.add_argument("--tau", type=float, default=0.01)
    parser.add_argument("--points", type=int, default=8, help="of a learning curve")
    parser.add_argument("--conversations", type=int, default=2000)
    parser.add_argument("--label", default="", help="becomes part of the file's name")
    parser.add_argument("--kept", type=Path, help="folder to keep vectors in")
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    arguments = parser.parse_args()
    worked = time.process_time()
    place = benchmark.lastfm(
        arguments.data,
        coarse=not arguments.fine,
        vectors=arguments.vectors,
        kept=arguments.kept,
    )
    print(f"vectors: {time.process_time() - worked:.0f} s of CPU", flush=True)
    mixed = np.random.default_rng(0)
    test = place.test[mixed.permutation(len(place.test))][: arguments.conversations]
    valid = place.valid[mixed.permutation(len(place.valid))][:1000]
    for name in arguments.arms:
        if name == "rules":
            worked = time.process_time()
            content = score_rules(place.catalogue, valid, test)
            content["seconds_of_cpu"] = round(time.process_time() - worked, 1)
            results.save_rules(content, arguments)
        else:
            run_arm(place, name, test, arguments)


if __name__ == "__main__":
    main()
