"""What the learning runs of this page share: a fit that tells how it goes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import describe

RESULTS = Path(__file__).parent / "results"


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
