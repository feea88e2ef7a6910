"""Draws `results/exact.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

COLOURS = {"full": "#0072B2", "truncated": "#D55E00", "buffer": "#009E73"}
NAMES = {
    "full": "A-PARL: both terms",
    "truncated": "truncated: direct term",
    "buffer": "PEBBLE-like: all labels, refitted",
}


def draw(record: dict[str, Any], path: Path) -> None:
    """The lure's fields, then true return against the number of queries."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    _fields(axes[0], record["landscape"])
    for axis, name in zip(axes[1:], record["sampled"], strict=True):
        _curves(axis, record, name)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110)


def _fields(axis: Any, field: dict[str, list[float]]) -> None:
    nu = np.array(field["nu"])
    axis.axhline(0, color="#999999", linewidth=0.8)
    for arm, key in (("full", "full"), ("truncated", "direct")):
        slope = np.array(field[key])
        axis.plot(nu, slope, color=COLOURS[arm])
        # Where an ascent ends: the sign goes from plus to minus.
        ends = np.flatnonzero((slope[:-1] > 0) & (slope[1:] <= 0))
        axis.plot(nu[ends], 0 * nu[ends], "o", color=COLOURS[arm])
    axis.set(
        title="lure: where each gradient leads",
        xlabel="ν (ν < 0: A is chosen, which is right)",
        ylabel="gradient",
    )


def _curves(axis: Any, record: dict[str, Any], name: str) -> None:
    batch = record["plan"][name][1]
    for arm, found in record["sampled"][name].items():
        queries = batch * np.array(found["steps"])
        returns = np.array(found["true_return"])
        low, middle, high = np.quantile(returns, (0.25, 0.5, 0.75), axis=0)
        axis.plot(queries, middle, color=COLOURS[arm], label=NAMES[arm])
        axis.fill_between(queries, low, high, color=COLOURS[arm], alpha=0.2, lw=0)
    for style, (label, value) in zip(
        ("--", ":"), record["bounds"][name].items(), strict=True
    ):
        axis.axhline(value, color="#333333", linestyle=style, lw=1, label=label)
    axis.set(
        title=f"{name}: true return, sampled answers",
        xlabel="preference queries",
        ylabel="true return of a segment",
    )
