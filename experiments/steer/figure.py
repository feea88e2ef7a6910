"""Draws `results/steer.png` from the summary: `python -m experiments.steer.figure`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from envs.language.style_reward import METRICS
from experiments.steer.arms import EVERY, OFFLINE, ROLLOUTS
from experiments.steer.run import RESULTS

COLOURS = {"strength": "#0072B2", "similarity": "#D55E00", "fluency": "#009E73"}
ONLINE = {
    "STEER": "#0072B2",
    "STEER, no anti-expert": "#56B4E9",
    "scalar word, online": "#D55E00",
    "Quark": "#E69F00",
    "one bin, online": "#777777",
}


def main() -> None:
    """Reads the summary and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    folder = parser.parse_args().folder
    found = json.loads((folder / "summary.json").read_text())
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    bars, rounds, told = figure.subplots(1, 3, width_ratios=[1.5, 1, 1])
    _bars(bars, found)
    _rounds(rounds, found)
    _obedience(told, found)
    figure.savefig(folder / "steer.png", dpi=110)


def _bars(axis: Any, found: dict[str, Any]) -> None:
    """V of each arm: the mean, the seeds, and what the learned reward believes."""
    order = sorted(found["arms"], key=lambda arm: found["arms"][arm]["value"])
    for place, arm in enumerate(order):
        row = found["arms"][arm]
        ours = arm.startswith("STEER")
        axis.barh(
            place, row["value"], color="#0072B2" if ours else "#BBBBBB", height=0.7
        )
        seeds = row["value_of_seeds"]
        axis.plot(seeds, [place] * len(seeds), "|", color="black", ms=7)
        believed = row["learned_value"]
        axis.plot(believed, place, "o", color="#D55E00", mfc="none", ms=5)
    axis.set_yticks(range(len(order)), order, fontsize=8)
    axis.set_xlabel("V, closed form (bars; seeds: ticks), by the learned reward (o)")


def _rounds(axis: Any, found: dict[str, Any]) -> None:
    """The product of rewards of what policies write in each round."""
    for arm, colour in ONLINE.items():
        if arm not in found["rollout_rewards"]:
            continue
        rows = np.array(found["rollout_rewards"][arm])
        # Until the first round what is recorded are the rewards of the start.
        first = OFFLINE // EVERY
        value = rows.prod(axis=1)[first:]
        steps = EVERY * np.arange(first, len(rows))
        axis.plot(steps, value, "o-", ms=3, color=colour, label=arm)
    axis.set_xlabel("gradient steps")
    axis.set_ylabel(f"product of mean rewards, {ROLLOUTS} texts")
    axis.set_title("rounds, by the learned reward", fontsize=10)
    axis.legend(frameon=False, fontsize=7)


def _obedience(axis: Any, found: dict[str, Any]) -> None:
    """What becomes of each metric when its word asks for a level."""
    rows = found["obedience"]["STEER"]
    for name in METRICS:
        levels = rows[name]["mean"]
        axis.plot(range(len(levels)), levels, "o-", color=COLOURS[name], label=name)
    axis.set_xticks(range(5))
    axis.set_xlabel("level that its word asks for")
    axis.set_ylabel("metric, closed form")
    axis.set_title("STEER: asked for, and realised", fontsize=10)
    axis.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
