"""What the control study says in few numbers: budgets, samples, intervals, a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.records import describe

ORACLE = {"truncated": "ppo", "likelihood": "ppo", "utility": "ppo"}
ORACLE |= {"pebble": "sac", "surf": "sac"}
SHARE = 0.9
"""Of the oracle's improvement: what counts as having learned the task."""
RESAMPLES = 2000
COLOURS = {
    "truncated": "#D55E00",
    "likelihood": "#0072B2",
    "utility": "#56B4E9",
    "pebble": "#009E73",
    "surf": "#CC79A7",
}
NAMES = {
    "truncated": "κ = 0: direct term alone",
    "likelihood": "A-PARL (likelihood)",
    "utility": "A-PARL (utility)",
    "pebble": "PEBBLE",
    "surf": "SURF",
}


def summarize(record: dict[str, Any]) -> dict[str, Any]:
    """Final returns, and how many labels and samples the full gradient saves."""
    arms = {name: np.array(arm["returns"]) for name, arm in record["arms"].items()}
    found: dict[str, Any] = {"final": {}, "labels": {}, "samples": {}}
    for name, returns in arms.items():
        found["final"][name] = [describe(cell) for cell in returns[-1]]
    pairs = [("likelihood", "truncated"), ("utility", "truncated"), ("surf", "pebble")]
    for full, plain in pairs:
        if not {full, plain, ORACLE[full]} <= set(arms):
            continue
        goal = target(arms[ORACLE[full]], arms[plain])
        found.setdefault("target", {})[full] = round(float(goal), 1)
        label = f"{full} / {plain}"
        found["labels"][label] = ratio(
            [arms[full][-1], arms[plain][-1]], np.array(record["budgets"], float), goal
        )
        found["samples"][label] = {}
        steps = np.array(record["arms"][full]["steps"], float)
        for i, budget in enumerate(record["budgets"]):
            curves = [arms[full][:, i], arms[plain][:, i]]
            found["samples"][label][str(budget)] = ratio(
                [np.maximum.accumulate(x) for x in curves], steps, goal
            )
    return found


def target(oracle: np.ndarray, start: np.ndarray) -> float:
    """The return at 90 % of the oracle's improvement over the first policies."""
    before = start[0].mean()
    return before + SHARE * (oracle[-1].mean() - before)


def needed(mean: np.ndarray, grid: np.ndarray, goal: float) -> float:
    """Where a curve first reaches the goal, between points in log of the grid."""
    above = np.flatnonzero(mean >= goal)
    if not len(above):
        return np.inf
    i = above[0]
    if i == 0:
        return float(max(grid[0], 1.0))
    part = (goal - mean[i - 1]) / (mean[i] - mean[i - 1])
    low = np.log(max(grid[i - 1], 1.0))
    return float(np.exp(low + part * (np.log(grid[i]) - low)))


def ratio(curves: list[np.ndarray], grid: np.ndarray, goal: float) -> dict[str, Any]:
    """What the first needs of what the second needs, with a bootstrap over seeds.

    Args:
      curves: `[points, seeds]` each, seeds in pairs.
      grid: `[points]`.
      goal: a return.

    Returns:
      The ratio (below 1: the first needs less), an 80 % and a 95 % interval over the
      resamples in which both arrive, and in which share of them each does.
    """
    generator = np.random.default_rng(0)
    seeds = curves[0].shape[1]

    def once(chosen: np.ndarray) -> list[float]:
        return [needed(curve[:, chosen].mean(1), grid, goal) for curve in curves]

    point = once(np.arange(seeds))
    draws = np.array(
        [once(generator.integers(0, seeds, seeds)) for _ in range(RESAMPLES)]
    )
    both = np.isfinite(draws).all(1)
    ratios = draws[both, 0] / draws[both, 1]

    def interval(low: float, high: float) -> list[float] | None:
        if both.mean() < 0.5:
            return None
        return np.quantile(ratios, (low, high)).round(3).tolist()

    arrived = np.isfinite(point).all()
    return {
        "needed": [round(x, 1) if np.isfinite(x) else None for x in point],
        "ratio": round(point[0] / point[1], 3) if arrived else None,
        "interval_80": interval(0.1, 0.9),
        "interval_95": interval(0.025, 0.975),
        "arrives": np.isfinite(draws).mean(0).round(3).tolist(),
    }


def draw(record: dict[str, Any], path: Path, steps: tuple[str, str]) -> None:
    """Final return against labels, and return against steps with the most labels.

    Args:
      record: its `arms` and `budgets`.
      path: of the figure.
      steps: what PPO and SAC were trained for, in words.
    """
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    for column, oracle in enumerate(("ppo", "sac")):
        arms = {
            arm: np.array(record["arms"][arm]["returns"])
            for arm, kind in ORACLE.items()
            if kind == oracle and arm in record["arms"]
        }
        best = record["arms"].get(oracle)
        top, low = axes[:, column]
        for arm, returns in arms.items():
            grid = np.array(record["arms"][arm]["steps"]) / 1000
            _band(top, arm, record["budgets"], returns[-1], "o-")
            _band(low, arm, grid, returns[:, -1], "-")
        if best:
            level = np.array(best["returns"])[:, 0].mean(-1)
            grey = {"color": "#333333", "ls": "--", "lw": 1, "label": "true reward"}
            top.axhline(level[-1], **grey)
            low.plot(np.array(best["steps"]) / 1000, level, **grey)
        words = f"lower level: {oracle.upper()}, {steps[column]} steps"
        top.set(title=words, xlabel="labels", xscale="log")
        top.set_xticks(record["budgets"], [str(x) for x in record["budgets"]])
        top.minorticks_off()
        low.set(xlabel=f"thousand steps, {max(record['budgets'])} labels")
        top.legend(frameon=False, fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("true return")
    figure.savefig(path, dpi=110)


def _band(axis: Any, arm: str, grid: Any, returns: np.ndarray, style: str) -> None:
    """The mean over seeds, within the least and the greatest."""
    axis.plot(grid, returns.mean(1), style, color=COLOURS[arm], label=NAMES[arm])
    axis.fill_between(
        grid, returns.min(1), returns.max(1), color=COLOURS[arm], alpha=0.15, lw=0
    )
