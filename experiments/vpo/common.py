"""What the studies share: statistics over seeds, optimisation by Adam."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from rlx.types import Array, PyTree

RESULTS = Path(__file__).parent / "results"


def mean(values: Any) -> dict[str, float]:
    """The mean over seeds with a 95 % interval (1.96 standard errors)."""
    values = np.asarray(values, np.float64)
    middle = float(values.mean())
    half = float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
    return {"mean": middle, "low": middle - half, "high": middle + half}


def paired(first: Any, second: Any) -> dict[str, float]:
    """First less second on the same seeds, and in standard errors (`z`)."""
    apart = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    error = float(apart.std(ddof=1) / np.sqrt(len(apart)))
    return {**mean(apart), "z": float(apart.mean() / max(error, 1e-12))}


def descend(
    objective: Callable[[PyTree], Array], start: PyTree, steps: int, rate: float
) -> PyTree:
    """`steps` steps of Adam from `start`, with fresh moments."""
    begin, step = _adam(lambda x, _: objective(x), start, rate)
    return jax.lax.scan(step, begin, length=steps)[0][0]


def trace(
    objective: Callable[[PyTree, Array], Array],
    measure: Callable[[PyTree], Any],
    start: PyTree,
    marks: tuple[int, ...],
    rate: float,
    key: Array,
) -> Any:
    """Adam on a random objective; what `measure` says after each of `marks` steps.

    Args:
      objective: `(x, key) -> scalar`.
      measure: of x.
      start: x before the first step.
      marks: growing numbers of steps.
      rate: Adam's.
      key: for the objective.

    Returns:
      Leaves `[len(marks), ...]`.
    """
    carry, step = _adam(objective, start, rate)
    found, before = [], 0
    for index, mark in enumerate(marks):
        keys = jax.random.split(jax.random.fold_in(key, index), mark - before)
        carry, _ = jax.lax.scan(step, carry, keys)
        found.append(measure(carry[0]))
        before = mark
    return jax.tree.map(lambda *x: jax.numpy.stack(x), *found)


def _adam(
    objective: Callable[[PyTree, Any], Array], start: PyTree, rate: float
) -> tuple[tuple, Callable[[tuple, Any], tuple]]:
    """What a scan over Adam's steps begins with, and its step."""
    optimizer = optax.adam(rate)

    def step(carry: tuple, key: Any) -> tuple:
        x, state = carry
        updates, state = optimizer.update(jax.grad(objective)(x, key), state)
        return (optax.apply_updates(x, updates), state), None

    return (start, optimizer.init(start)), step
