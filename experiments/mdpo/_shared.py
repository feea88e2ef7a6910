"""What the learning runs of this page share: a fit that tells how it goes, a record."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Curve:
    """What `plot.curve` draws."""

    steps: np.ndarray
    returns: np.ndarray


def fit(label: str, method: Any, source: Any, **options: Any) -> tuple[Any, dict]:
    """`train.fit` that prints a line per evaluation.

    Args:
      label: what each line begins with.
      method: a method.
      source: where its data comes from.
      **options: of `train.fit`.

    Returns:
      What `train.fit` returned, and its part of a record: seeds, curves, time.
    """
    from rlx import train

    def show(row: dict[str, Any]) -> None:
        returns = np.asarray(row["return"])
        speed = row["time"]["steps_per_second"]
        print(
            f"{label} {row['step']:>8} steps: return {returns.mean():7.0f} "
            f"({returns.min():.0f} to {returns.max():.0f}), {speed:.0f} steps/s",
            flush=True,
        )

    started = time.time()
    result = train.fit(method, source, on_row=show, **options)
    return result, {
        "seeds": [int(run["seed"]) for run in result.runs],
        "steps": result.steps.tolist(),
        "returns": result.returns.round(2).tolist(),
        "final": describe(result.returns[-1]),
        "wall_seconds_of_last_start": round(time.time() - started, 1),
        "steps_per_second": [
            round(row["time"]["steps_per_second"]) for row in result.rows
        ],
    }


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


def origin(module: str, words: list[str] | None = None) -> dict[str, Any]:
    """The command (of this process unless `words` are given) and the machine."""
    from rlx import system

    words = sys.argv[1:] if words is None else words
    command = shlex.join(["python", "-m", f"experiments.mdpo.{module}", *words])
    return {"command": command, "environment": system.describe()}


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON with a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")
