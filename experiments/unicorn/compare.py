"""What one policy gains on another in the same conversations, and when they succeed.

    python -m experiments.unicorn.compare sharp_coarse_transe --against RECORD...

Reads records of `experiments.unicorn.train`. Writes the paired differences with 95 %
intervals, over conversations and seeds, to `results/compare_<record>.json`, and success
by turn, of these and others, to `results/turns_<record>.png`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.records import origin, write
from experiments.unicorn.benchmark import TURNS
from experiments.unicorn.results import RESULTS

RESAMPLES = 4000
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


class Outcomes(NamedTuple):
    """What became of the same conversations with every seed of a policy."""

    name: str
    turns: np.ndarray
    """`[S, N]` the turn of success, from 1; `TURNS` + 1 where there was none."""


def read(folder: Path, record: str) -> Outcomes:
    """The outcomes in a record; of rules as `rules_coarse_transe:threshold_rule`.

    Averaged parameters are taken where there are any.

    Raises:
      ValueError: the record does not say what became of each conversation.
    """
    name, found = _scores(folder, record)
    if any("found_with" not in x for x in found):
        raise ValueError(f"{record} has no `found_with`: make it anew")
    turns = [
        [TURNS + 1 if sign == "-" else int(sign, 16) + 1 for sign in x["found_with"]]
        for x in found
    ]
    return Outcomes(name, np.array(turns))


def success_by_turn(folder: Path, record: str) -> tuple[str, np.ndarray]:
    """A name and `[S, TURNS]` SR@t of every seed."""
    name, found = _scores(folder, record)
    return name, np.array([x["by_turn"] for x in found])


def _scores(folder: Path, record: str) -> tuple[str, list[dict[str, Any]]]:
    file, _, rule = record.partition(":")
    content = json.loads((folder / f"{file}.json").read_text())
    found = [content[rule]] if rule else content["seeds"]
    name = rule or content["arm"]
    return name, [x.get("averaged", x) for x in found]


def difference(one: np.ndarray, other: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Mean of `one` minus mean of `other`, with a 95 % interval.

    The bootstrap draws conversations, the same of both, and seeds, of each its own.

    Args:
      one: `[S, N]` a number of every conversation.
      other: `[S', N']`; the first min(N, N') conversations are compared.
      seed: of the draws.
    """
    number = min(one.shape[1], other.shape[1])
    one, other = one[:, :number], other[:, :number]
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        columns = generator.integers(0, number, number)
        means = []
        for values in (one, other):
            rows = generator.integers(0, len(values), len(values))
            means.append(values[rows].mean(axis=0)[columns].mean())
        draws.append(means[0] - means[1])
    low, high = np.quantile(draws, (0.025, 0.975))
    return {
        "mean": float(one.mean() - other.mean()),
        "low": float(low),
        "high": float(high),
        "conversations": number,
        "seeds": len(one),
        "seeds_of_the_other": len(other),
    }


def compared(one: Outcomes, other: Outcomes) -> dict[str, Any]:
    """Differences in SR@15 and AT."""

    def pair(change: Any) -> dict[str, float]:
        return difference(change(one.turns), change(other.turns))

    return {
        "success": pair(lambda t: (t <= TURNS).astype(float)),
        "turns": pair(lambda t: np.minimum(t, TURNS).astype(float)),
    }


def draw(policies: list[tuple[str, np.ndarray]], path: Path) -> None:
    """SR@t by turn: means over seeds, and the range of the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=110)
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    limit = np.arange(1, TURNS + 1)
    ends = []
    for (name, share), colour in zip(policies, COLOURS, strict=False):
        axis.plot(limit, share.mean(axis=0), color=colour, lw=2)
        axis.fill_between(
            limit, share.min(axis=0), share.max(axis=0), color=colour, alpha=0.2, lw=0
        )
        ends.append((share.mean(axis=0)[-1], name, colour))
    height = -1.0
    for end, name, colour in sorted(ends):
        height = max(end, height + 0.045)
        text = name.replace("_", " ")
        axis.text(TURNS + 0.2, height, text, color=colour, va="center", fontsize=9)
    axis.set(xlabel="turn t", ylabel="SR@t", xlim=(1, TURNS), ylim=(0, None))
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(axis="y", color="#DDDDDD")
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    """Compares a record with others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", help="without .json; a rule as record:rule")
    parser.add_argument("--against", nargs="+", required=True)
    parser.add_argument("--beside", nargs="*", default=[], help="only drawn")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    first = read(arguments.folder, arguments.record)
    others = [read(arguments.folder, name) for name in arguments.against]
    found = {other.name: compared(first, other) for other in others}
    mark = arguments.record.replace(":", "_")
    shown = [arguments.record, *arguments.against, *arguments.beside]
    curves = [success_by_turn(arguments.folder, record) for record in shown]
    draw(curves, arguments.folder / f"turns_{mark}.png")
    words = [arguments.record, "--against", *arguments.against]
    words += ["--beside", *arguments.beside] if arguments.beside else []
    content = {"record": arguments.record, "against": found}
    path = arguments.folder / f"compare_{mark}.json"
    write(path, {**content, **origin("unicorn.compare", words)})
    for name, values in found.items():
        print(name, values["success"], values["turns"])


if __name__ == "__main__":
    main()
