"""The tables and plots of this page, from the records there are.

    python -m experiments.uni_o4.summary

Writes `results/summary.json`: the final scores of every arm and phase on every set; all
sets together, with the differences of ours to the other arms; what the online phase
keeps of its start; and a plot per set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from experiments.records import Curve, describe, origin, write
from experiments.uni_o4.offline import RESULTS
from rlx import plot
from rlx.ops import statistics

Records: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Set -> arm -> record."""
OURS = ("uni_o4", "short", "near")
"""Arms whose differences to the others are counted."""
PLOTS = {
    "online": ("short", "uni_o4", "iql", "awac", "ppo"),
    "hand_over": ("uni_o4", "warm", "fast_steps", "moving"),
}
"""Plot of a set -> the arms in it."""
START = 0.1
"""The part of the online phase in which a collapse is looked for (specification)."""


def read() -> dict[str, dict[str, Any]]:
    """Every record of a training run, by set and arm."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text())
        if "phases" in record:
            where = f"{record['task']}_{record['kind']}"
            found.setdefault(where, {})[record["arm"]] = record
    # PPO from scratch sees no dataset: one run serves every set of a task.
    for arms in found.values():
        for others in found.values():
            task = next(iter(arms.values()))["task"]
            if "ppo" in others and others["ppo"]["task"] == task:
                arms.setdefault("ppo", others["ppo"])
    return found


def final(record: Mapping[str, Any], phase: str) -> np.ndarray | None:
    """Last normalised scores `[seeds]` of a phase, if the arm has it."""
    curve = record["phases"].get(phase)
    return None if curve is None else np.array(curve["scores"][-1])


def table(records: Records) -> list[dict[str, Any]]:
    """A row per set, arm and phase."""
    return [
        {
            "set": where,
            "arm": arm,
            "phase": phase,
            "seeds": len(record["seeds"]),
            **describe(np.array(curve["scores"][-1])),
        }
        for where, arms in records.items()
        for arm, record in arms.items()
        for phase, curve in record["phases"].items()
    ]


def columns(records: Records, arm: str, phase: str) -> np.ndarray | None:
    """Final scores `[seeds, sets]`, if the arm was run on all sets with all seeds."""
    found = [
        final(arms[arm], phase) if arm in arms else None for arms in records.values()
    ]
    if any(x is None for x in found) or len({len(x) for x in found}) > 1:
        return None
    return np.stack(found, axis=1)


def together(records: Records) -> dict[str, Any]:
    """All sets as one: IQM of every arm, and differences of ours to the others.

    A difference is the mean over seeds and sets of what `OURS` score more. Where both
    arms have the same seeds, its interval resamples them together, within each set;
    else independently. The behaviour that is compared is the arm's own.
    """
    names = {
        (arm, phase)
        for arms in records.values()
        for arm, record in arms.items()
        for phase in record["phases"]
    }
    scores: dict[str, Any] = {}
    differences: dict[str, Any] = {arm: {} for arm in OURS}
    for arm, phase in sorted(names):
        theirs = columns(records, arm, phase)
        if theirs is None:
            continue
        scores[f"{arm} {phase}"] = interval(theirs, statistics.iqm)
        for ours in OURS:
            mine = columns(records, ours, "online" if phase == "online" else "offline")
            another = phase == "behaviour" if arm == ours else phase != "behaviour"
            if mine is not None and another:
                paired = seeds_of(records, arm) == seeds_of(records, ours)
                found = paired_gain(mine, theirs) if paired else gain(mine, theirs)
                each = np.round(mine.mean(axis=0) - theirs.mean(axis=0), 2)
                found["per_set"] = each.tolist()
                differences[ours][f"{arm} {phase}"] = found
    return {"sets": list(records), "scores": scores, "minus": differences}


def seeds_of(records: Records, arm: str) -> list[list[int]]:
    """The seeds of an arm on every set."""
    return [arms[arm]["seeds"] for arms in records.values()]


def paired_gain(mine: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """The mean difference `[seeds, sets]` of arms that share their seeds."""
    return {"paired": True, **interval(mine - theirs, statistics.mean)}


def gain(mine: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """The difference of the means of arms with seeds of their own."""

    def difference(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return statistics.mean(one) - statistics.mean(two)

    found = statistics.stratified_bootstrap_interval(
        jax.random.key(0), (mine, theirs), difference
    )
    low, high = (round(float(x), 2) for x in tuple(found)[:2])
    estimate = round(float(difference(mine, theirs)), 2)
    return {"paired": False, "estimate": estimate, "low": low, "high": high}


def interval(
    scores: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> dict[str, float]:
    """A statistic of `[seeds, sets]` with its 95 % stratified bootstrap interval."""
    found = statistics.stratified_bootstrap_interval(
        jax.random.key(0), scores, statistic
    )
    low, high = (float(x) for x in tuple(found)[:2])
    estimate = float(statistic(scores))
    return {
        "estimate": round(estimate, 2),
        "low": round(low, 2),
        "high": round(high, 2),
    }


def kept(records: Records) -> list[dict[str, Any]]:
    """What the online phase does to its start; scores averaged over seeds.

    `least` is the lowest mean over the whole phase and `least_early` over its first
    tenth; `area` is the mean over all evaluations.
    """
    rows = []
    for where, arms in records.items():
        for arm, record in arms.items():
            if "online" not in record["phases"]:
                continue
            curve = record["phases"]["online"]
            mean = np.array(curve["scores"]).mean(axis=1)
            early = np.array(curve["steps"]) <= START * curve["steps"][-1]
            rows.append(
                {
                    "set": where,
                    "arm": arm,
                    "start": round(float(mean[0]), 2),
                    "least": round(float(mean.min()), 2),
                    "least_early": round(float(mean[early].min()), 2),
                    "final": round(float(mean[-1]), 2),
                    "area": round(float(mean.mean()), 2),
                }
            )
    return rows


def draw(records: Records) -> None:
    """The online phases of a set: methods in one plot, hand-overs in another."""
    for where, arms in records.items():
        for name, drawn in PLOTS.items():
            curves = {
                arm: Curve(
                    np.array(arms[arm]["phases"]["online"]["steps"]),
                    np.array(arms[arm]["phases"]["online"]["returns"]),
                )
                for arm in drawn
                if arm in arms and "online" in arms[arm]["phases"]
            }
            if len(curves) > 1:
                plot.curve(curves, RESULTS / f"{where}_{name}.png")


def main() -> None:
    """Summarises, prints and draws."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    records = read()
    content = {
        "rows": table(records),
        "together": together(records),
        "online": kept(records),
        **origin("uni_o4.summary", []),
    }
    write(RESULTS / "summary.json", content)
    draw(records)
    for row in content["rows"]:
        print(
            f"{row['set']:24} {row['arm']:16} {row['phase']:10} {row['seeds']} seeds  "
            f"{row['iqm']:6.1f} [{row['low']:.1f}, {row['high']:.1f}]"
        )
    for ours, others in content["together"]["minus"].items():
        for name, row in others.items():
            print(
                f"{ours} - {name:26} {row['estimate']:+6.1f} "
                f"[{row['low']:+.1f}, {row['high']:+.1f}]  {row['per_set']}"
            )
    for row in content["online"]:
        print(
            f"{row['set']:24} {row['arm']:12} start {row['start']:6.1f}  least "
            f"{row['least']:6.1f} (early {row['least_early']:.1f})  final "
            f"{row['final']:6.1f}  area {row['area']:6.1f}"
        )


if __name__ == "__main__":
    main()
