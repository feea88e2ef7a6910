"""What every experiment's records share: statistics, the command, the machine."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Curve:
    """What `plot.curve` draws."""

    steps: np.ndarray
    returns: np.ndarray


def describe(returns: np.ndarray) -> dict[str, float]:
    """IQM over seeds with a 95 % bootstrap interval, mean, least and greatest."""
    from rlx.ops import statistics

    scores = np.asarray(returns, np.float64)[:, None]
    interval = statistics.stratified_bootstrap_interval(jax.random.key(0), scores)
    low, high = (float(x) for x in tuple(interval)[:2])
    return {
        "iqm": float(statistics.iqm(scores)),
        "low": low,
        "high": high,
        "mean": float(scores.mean()),
        "min": float(scores.min()),
        "max": float(scores.max()),
    }


def time_spent(result: Any) -> dict[str, Any]:
    """Wall-clock of all starts of a run together, from its rows."""
    spans = np.diff(result.steps)
    speeds = [row["time"]["steps_per_second"] for row in result.rows]
    training = float(np.sum(spans * len(result.runs) / np.array(speeds[1:])))
    evaluating = sum(row["time"]["evaluation_s"] for row in result.rows)
    return {
        "wall_seconds_of_training": round(training, 1),
        "wall_seconds_of_evaluation": round(evaluating, 1),
    }


def origin(module: str, words: list[str] | None = None) -> dict[str, Any]:
    """The command and the machine; both name the same command.

    Args:
      module: under `experiments`, such as `mdpo.on_policy`.
      words: of the command line; those of this process unless given.
    """
    from rlx import system

    words = sys.argv[1:] if words is None else words
    command = shlex.join(["python", "-m", f"experiments.{module}", *words])
    return {
        "command": command,
        "environment": {**system.describe(), "command": command},
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON with a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")
