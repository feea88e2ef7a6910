"""Draws `results/curves.png` from the records: `python -m experiments.vpo.figure`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.vpo.common import RESULTS

COLOURS = {"DPO": "#D55E00", "IPO": "#E69F00", "SFT on chosen": "#777777"}
OURS, WRONG = "#0072B2", "#CC79A7"
OPTIMISM = {
    "-0.3": "#CC79A7",
    "0.0": "#D55E00",
    "0.1": "#56B4E9",
    "0.3": "#0072B2",
    "1.0": "#009E73",
}


def main() -> None:
    """Reads the records and draws."""
    records = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("offline", "online", "markov")
    }
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    axes = figure.subplots(2, 3)
    cells = [cell for cell in records["offline"]["cells"] if cell["pairs"] == 100]
    for axis, cell in zip(axes[0], cells, strict=False):
        arms = {name: row["gap"] for name, row in cell["arms"].items()}
        best = cell["chosen_on_validation"]
        _offline(axis, records["offline"]["steps"], arms, best)
        axis.axhline(cell["reference"]["mean"], color="#333333", ls=":", lw=1)
        axis.set_title(f"offline bandit, 100 pairs, β = {cell['beta']}")
    markov = records["markov"]
    arms = {name: row["gap"] for name, row in markov["offline"].items()}
    _offline(axes[0, 2], markov["steps"], arms, markov["chosen_on_validation"])
    axes[0, 2].axhline(markov["reference_gap"]["mean"], color="#333333", ls=":", lw=1)
    axes[0, 2].set_title("offline Markov language")
    for axis, (place, fit) in zip(
        axes[1], (("reference", "strong"), ("policy", "strong")), strict=False
    ):
        _regret(axis, records["online"], place, fit)
    _markov_online(axes[1, 2], markov)
    figure.savefig(RESULTS / "curves.png", dpi=110)


def _offline(axis: Any, steps: list[int], arms: dict[str, list], best: str) -> None:
    kind = best.split()[1]
    shown = {**COLOURS, best: OURS, f"VPO {kind} wrong sign 0.1": WRONG}
    for name, colour in shown.items():
        _line(axis, steps, arms[name], name, colour)
    axis.set(xscale="log", xlabel="gradient steps", ylabel="gap to the optimum")
    axis.legend(frameon=False, fontsize=7)


def _regret(axis: Any, record: dict[str, Any], second: str, fit: str) -> None:
    wanted = ("hidden best", second, "several starts", fit)
    keys = ("world", "second_response", "solver", "fit")
    cell = next(
        cell for cell in record["cells"] if tuple(cell[key] for key in keys) == wanted
    )
    for name, row in cell["arms"].items():
        axis.plot(row["mean_regret"], color=OPTIMISM[name], label=f"sα = {name}")
    axis.set(
        title=f"online bandit, best hidden, against the {second}",
        xlabel="rounds",
        ylabel="cumulative regret",
    )
    axis.legend(frameon=False, fontsize=7)


def _markov_online(axis: Any, record: dict[str, Any]) -> None:
    shown = {
        "online DPO": "#D55E00",
        "VPO 0.01": OURS,
        "VPO wrong sign 0.03": WRONG,
        "online DPO against reference": "#E69F00",
        "XPO 0.03": "#009E73",
    }
    rounds = list(range(1, record["rounds"] + 1))
    for name, colour in shown.items():
        _line(axis, rounds, record["online"][name]["gap"], name, colour)
    axis.set(
        title="online Markov language", xlabel="rounds", ylabel="gap to the optimum"
    )
    axis.legend(frameon=False, fontsize=7)


def _line(axis: Any, x: list[int], rows: list[dict], name: str, colour: str) -> None:
    middle, low, high = (
        np.array([row[key] for row in rows]) for key in ("mean", "low", "high")
    )
    axis.plot(x, middle, color=colour, label=name)
    axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


if __name__ == "__main__":
    main()
