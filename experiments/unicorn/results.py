"""Records of the study: a file for each arm, to which seeds can be added one by one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import origin, write

RESULTS = Path(__file__).parent / "results"
KEPT = ("success", "turns", "gain", "questions")


def name_of(arm: str, arguments: argparse.Namespace) -> Path:
    """Where the record of an arm is."""
    parts = [arm, *([arguments.label] if arguments.label else [])]
    parts.append("fine" if arguments.fine else "coarse")
    parts += [] if arguments.vectors == "als" else [arguments.vectors]
    return arguments.out / f"{'_'.join(parts)}.json"


def add_seed(
    arm: str, settings: dict[str, Any], found: dict[str, Any], arguments: Any
) -> None:
    """Puts the scores of a seed into the record of its arm.

    Seeds that are there stay if they were made with the same settings, else they go.

    Args:
      arm: its name.
      settings: all that makes a seed what it is.
      found: scores, with the seed's number as `seed`.
      arguments: of `train`.
    """
    path = name_of(arm, arguments)
    settings = json.loads(json.dumps(settings))
    seeds = [found]
    if path.is_file():
        before = json.loads(path.read_text())
        if before.get("settings") == settings:
            others = (x for x in before["seeds"] if x.get("seed") != found["seed"])
            seeds = sorted([*others, found], key=lambda x: x["seed"])
    content = {"arm": arm, "settings": settings, **summary(seeds)}
    averaged = [x["averaged"] for x in seeds if "averaged" in x]
    if averaged:
        content["averaged"] = summary(averaged)
    first = seeds[0]["seed"]
    made = origin("unicorn.train", command(arm, arguments, first, len(seeds)))
    write(path, {**content, "seeds": seeds, **made})


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds and the deviation between them."""
    columns = {k: [x[k] for x in seeds] for k in KEPT}
    return {
        "mean": {k: float(np.mean(x)) for k, x in columns.items()},
        "deviation_over_seeds": {k: float(np.std(x)) for k, x in columns.items()},
    }


def save_rules(content: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Writes the record of the rules."""
    made = origin("unicorn.train", command("rules", arguments))
    write(name_of("rules", arguments), {**content, **made})


def command(
    arm: str, arguments: argparse.Namespace, first: int = 0, seeds: int = 0
) -> list[str]:
    """The words that make a record anew; places on this machine are left out."""
    words = [arguments.data.name, "--arms", arm, "--vectors", arguments.vectors]
    words += ["--fine"] if arguments.fine else []
    words += ["--conversations", str(arguments.conversations)]
    if arm == "rules":
        return words
    words += ["--seeds", str(seeds), "--first-seed", str(first)]
    names = ["label"] if arguments.label else []
    names += ["iterations"]
    names += [] if arm == "ear" else ["minibatches", "points"]
    if arm != "ear" and not arm.startswith("scpr"):
        names += ["batch", "learning_rate", "n_step", "tau"]
    for name in names:
        words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    return words
