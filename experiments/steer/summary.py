"""Merges the seeds: `results/summary.json` and the tables of the page.

python -m experiments.steer.summary
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from envs.language.style_reward import METRICS
from experiments import records
from experiments.steer.run import RESULTS

DRAWS = 4000
OURS = "STEER"
SHOWN = (
    *METRICS,
    "value",
    "learned_strength",
    "learned_value",
    "accuracy",
    "copies",
    "length_ratio",
    "distinct_2",
)
PAIRS = (
    (OURS, "SFT, filtered"),
    (OURS, "STEER, offline"),
    (OURS, "scalar word, online"),
    (OURS, "Quark"),
    (OURS, "one bin, online"),
    (OURS, "STEER, no anti-expert"),
    (OURS, "SFT, unfiltered"),
    (OURS, "product of experts"),
    (OURS, "product of experts, best of 8"),
    (OURS, "product of experts, tuned"),
    (OURS, "product of experts, tuned, best of 8"),
    (OURS, "SFT, filtered, then GRPO"),
    (OURS, "paraphrase only"),
    (OURS, "copy"),
    ("STEER, offline", "SFT, filtered"),
    ("SFT, filtered", "product of experts"),
)


def values(run: dict[str, Any], arm: str) -> np.ndarray:
    """V of each test input."""
    return np.array(run["arms"][arm]["values"].split(), np.float64) / 1000


def paired(runs: list[dict[str, Any]], one: str, other: str) -> dict[str, Any]:
    """One less the other on the same inputs: a bootstrap of inputs in each seed.

    The interval is that of the mean over seeds, for these worlds.
    """
    generator = np.random.default_rng(0)
    means, drawn = [], []
    for run in runs:
        apart = values(run, one) - values(run, other)
        means.append(float(apart.mean()))
        place = generator.integers(0, len(apart), (DRAWS, len(apart)))
        drawn.append(apart[place].mean(axis=1))
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return {
        "first": one,
        "second": other,
        "difference": round(float(np.mean(means)), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "seeds": [round(x, 4) for x in means],
    }


def spearman(levels: list[float]) -> float:
    """Rank correlation of 0, 1, 2 … with what was measured; ties share ranks."""
    found = np.asarray(levels)
    ranks = np.array([np.sum(found < x) + (np.sum(found == x) - 1) / 2 for x in found])
    if np.all(ranks == ranks[0]):
        return 0.0
    return float(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1])


def obedience(runs: list[dict[str, Any]], arm: str) -> dict[str, Any]:
    """Each metric by the level that was asked for: its means, and its Spearman's ρ."""
    found = {}
    for name in runs[0]["arms"][arm]["obedience"]:
        rows = [run["arms"][arm]["obedience"][name] for run in runs]
        found[name] = {
            "mean": np.round(np.mean(rows, axis=0), 4).tolist(),
            "spearman_of_mean": round(spearman(np.mean(rows, axis=0).tolist()), 3),
            "spearman_of_seeds": [round(spearman(row), 3) for row in rows],
        }
    return found


def having(runs: list[dict[str, Any]], *arms: str) -> list[dict[str, Any]]:
    """The seeds in which all of these arms were run."""
    return [run for run in runs if all(arm in run["arms"] for arm in arms)]


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that the page says."""
    names = list(dict.fromkeys(arm for run in runs for arm in run["arms"]))
    rows = {arm: [run["arms"][arm] for run in having(runs, arm)] for arm in names}
    table = {
        arm: {name: _mean([row[name] for row in rows[arm]]) for name in SHOWN}
        | {"value_of_seeds": [row["value"] for row in rows[arm]]}
        for arm in names
    }
    pairs = [
        paired(having(runs, *pair), *pair) for pair in PAIRS if having(runs, *pair)
    ]
    told = [arm for arm in names if "obedience" in rows[arm][0]]
    seen = {
        arm: _mean([_rollouts(row) for row in rows[arm]])
        for arm in names
        if "seen" in rows[arm][0] and _rollouts(rows[arm][0])
    }
    return {
        "seeds": [run["seed"] for run in runs],
        "inputs": len(values(runs[0], "copy")),
        "arms": table,
        "paired_differences_of_value": pairs,
        "obedience": {arm: obedience(having(runs, arm), arm) for arm in told},
        "rollout_rewards": seen,
    }


def _mean(seeds: list[Any]) -> Any:
    return np.mean(seeds, axis=0).round(4).tolist()


def _rollouts(arm: dict[str, Any]) -> list[list[float]]:
    """`[rounds, M]` mean rewards of what the policy wrote, as learning saw them."""
    names = [name for name in arm["seen"][0] if name.startswith("rollout_reward")]
    return [[row[name] for name in names] for row in arm["seen"] if names[0] in row]


def tables(found: dict[str, Any]) -> str:
    """Markdown."""
    names = ("value", *METRICS, "learned_value", "accuracy", "copies", "length_ratio")
    heads = (*[name.replace("_", " ") for name in (*names, "distinct_2")],)
    lines = ["| arm | seeds | " + " | ".join(heads) + " |"]
    lines += ["|---" * (len(heads) + 2) + "|"]
    order = sorted(found["arms"].items(), key=lambda item: item[1]["value"])
    for arm, row in order:
        cells = [f"{row[name]:.3f}" for name in (*names, "distinct_2")]
        count = len(row["value_of_seeds"])
        lines.append(f"| {arm} | {count} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| first | second | first - second | each seed |",
        "|---|---|---|---|",
    ]
    for pair in found["paired_differences_of_value"]:
        seeds = " ".join(f"{x:+.3f}" for x in pair["seeds"])
        lines.append(
            f"| {pair['first']} | {pair['second']} | {pair['difference']:+.3f} "
            f"[{pair['low']:+.3f}, {pair['high']:+.3f}] | {seeds} |"
        )
    lines += ["", "| arm | metric | levels 0 … 4 | ρ of the mean | ρ of each seed |"]
    lines += ["|---|---|---|---|---|"]
    for arm, metrics in found["obedience"].items():
        for name, row in metrics.items():
            levels = " ".join(f"{x:.3f}" for x in row["mean"])
            seeds = " ".join(f"{x:.2f}" for x in row["spearman_of_seeds"])
            lines.append(
                f"| {arm} | {name.replace('_', ' ')} | {levels} | "
                f"{row['spearman_of_mean']:.2f} | {seeds} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Reads the seeds, writes the summary, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    folder = parser.parse_args().folder
    paths = sorted(folder.glob("seed_*.json"))
    found = summary([json.loads(path.read_text()) for path in paths])
    records.write(
        folder / "summary.json", {**records.origin("steer.summary", []), **found}
    )
    print(tables(found))


if __name__ == "__main__":
    main()
