"""Draws `results/accuracy.png` from the records of `experiments.lserve.accuracy`.

python -m experiments.lserve.figure
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
COLOURS = {
    "dense": "#333333",
    "streaming": "#D55E00",
    "quest": "#009E73",
    "lserve": "#0072B2",
}
NAMES = {
    "dense": "dense",
    "streaming": "streaming only",
    "quest": "Quest",
    "lserve": "LServe",
}


def read(part: str, model: str) -> dict[str, Any]:
    """A record of seed 0."""
    return json.loads((RESULTS / f"{part}-{model}-0.json").read_text())


def lengths(axis: Any, model: str, record: dict[str, Any]) -> None:
    """Passkeys by length, with intervals."""
    for name, rows in record["arms"].items():
        size = np.array([int(length) for length in rows])
        found = np.array([[r["share"], r["low"], r["high"]] for r in rows.values()])
        spread = np.abs(found[:, 1:] - found[:, :1]).T
        axis.errorbar(
            size,
            found[:, 0],
            yerr=spread,
            color=COLOURS[name],
            linewidth=4 if name == "dense" else 1.5,
            marker="o",
            capsize=3,
            elinewidth=1.5,
            label=NAMES[name],
        )
    axis.set_xscale("log", base=2)
    axis.set(title=f"{model}: passkeys", xlabel="words", ylabel="answers right")
    axis.set_ylim(-0.03, 1.05)


def depths(axis: Any, model: str, record: dict[str, Any]) -> None:
    """Passkeys by depth, at the longest text."""
    for name, rows in record["arms"].items():
        longest = str(max(int(length) for length in rows))
        axis.plot(
            record["depths"],
            rows[longest]["by_row"],
            color=COLOURS[name],
            marker="o",
        )
    axis.set(title=f"{model}: by depth, {longest} words", xlabel="depth of the passkey")
    axis.set_ylim(-0.03, 1.05)


def surprises(axis: Any, record: dict[str, Any]) -> None:
    """Perplexity of known values by position."""
    for name, rows in record["arms"].items():
        axis.plot(
            record["ends"],
            np.exp(rows["known"]),
            color=COLOURS.get(name, "#6BAED6"),
            linewidth=4 if name == "dense" else 1.5,
            marker=".",
            label=None if name in COLOURS else "LServe, chosen every step",
        )
    axis.legend(frameon=False, fontsize=8)
    axis.axvline(1024, color="#999999", linewidth=0.8, linestyle="--")
    axis.set_yscale("log")
    axis.set(
        title="recall: perplexity of values said before",
        xlabel="position (dashed: longest text in training)",
    )


def parts(axis: Any, model: str, record: dict[str, Any]) -> None:
    """Ablations: one bar for each setting."""
    names, shares, low, high = [], [], [], []
    for part, settings in record["parts"].items():
        for setting, row in settings.items():
            names.append(f"{part}: {setting}")
            shares.append(row["share"])
            low.append(row["share"] - row["low"])
            high.append(row["high"] - row["share"])
    place = np.arange(len(names))[::-1]
    axis.barh(place, shares, xerr=[low, high], color="#56B4E9", height=0.7)
    axis.set_yticks(place, names, fontsize=7)
    axis.set_xlim(0, 1.02)
    axis.set(
        title=f"{model}: one part changed",
        xlabel=f"passkeys right, {record['length']:,} words",
    )


def needles(axis: Any, model: str, record: dict[str, Any]) -> None:
    """Four questions back to back: right answers to each."""
    shades = iter(("#08306B", "#2171B5", "#6BAED6", "#C6DBEF"))
    for name, row in record["arms"].items():
        colour = COLOURS[name] if name in COLOURS else next(shades)
        label = None if name in COLOURS else name
        axis.plot(
            np.arange(1, 1 + len(row["by_question"])),
            row["by_question"],
            color=colour,
            linewidth=4 if name == "dense" else 1.5,
            marker="o",
            label=label,
        )
    axis.legend(frameon=False, fontsize=7)
    axis.set_xticks(np.arange(1, 1 + record["questions"]))
    axis.set(title=f"{model}: questions back to back", xlabel="question")
    axis.set_ylim(-0.03, 1.05)


def main() -> None:
    """A row of panels for each model; where induction has no curve, recall's."""
    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplots(2, 4)
    for row, model in zip(axes, ("recall", "induction"), strict=True):
        passkey, asked, changed = (
            read(part, model) for part in ("passkey", "needles", "ablations")
        )
        lengths(row[0], model, passkey)
        if model == "recall":
            depths(row[1], model, passkey)
        else:
            surprises(row[1], read("perplexity", "recall"))
        needles(row[2], model, asked)
        parts(row[3], model, changed)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(RESULTS / "accuracy.png", dpi=100)


if __name__ == "__main__":
    main()
