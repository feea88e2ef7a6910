"""Learning curves: interquartile means over seeds, with their uncertainty.

One figure answers how good, how certain and how different the seeds are: the IQM is
the heavy line, its 95 % bootstrap interval the band (Agarwal et al. 2021,
https://arxiv.org/abs/2108.13264), and every seed is a thin line of its own.

This module is the only door to matplotlib. It draws on figures of its own and never
touches pyplot's global state.
"""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from rlx import files
from rlx.ops import statistics
from rlx.record import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by readers with any kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_INK, _FAINT = "#333333", "#DDDDDD"
_RESAMPLES = 2_000


class Curve(NamedTuple):
    """One line of the figure."""

    name: str
    steps: np.ndarray
    """`[K]` environment steps."""
    values: np.ndarray
    """`[K, N]` the metric at each evaluation, per seed; NaN where there is none."""


def curve(
    runs: Any, path: str | os.PathLike[str] | None = None, metric: str = "return"
) -> Figure:
    """Draw a metric against environment steps, for one run or several.

    Args:
      runs: a result of `train.fit`, a `RunFolder`, the path of one, a list of these, or
        a mapping from names to these. The settings of a sweep are lines of their own.
      path: where to write the figure as a PNG, if anywhere.
      metric: a name in the rows of the record, such as "return" or "train/entropy".

    Returns:
      The figure; in a notebook it shows itself.

    Raises:
      ValueError: nothing was evaluated, or no row has the metric; names the nearest.
      RunFolderError: a path is no run folder, or the figure cannot be written.
    """
    from matplotlib.figure import Figure

    curves = list(_curves(runs, metric))
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for index, line in enumerate(curves):
        _draw(axes, line, index, crowded=len(curves) > 4)
    _decorate(axes, curves, metric)
    _label(axes, curves)
    # IPython's protocol: a figure made without pyplot would otherwise not be shown.
    figure._repr_png_ = lambda: _png(figure)  # type: ignore[attr-defined]
    if path is not None:
        with files.explained(Path(path)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        files.replace(Path(path), _png(figure))
    return figure


# -------------------------------------------------------------------------------- data


def _curves(runs: Any, metric: str) -> Iterator[Curve]:
    if isinstance(runs, Mapping):
        named = [(str(name), run) for name, run in runs.items()]
    elif isinstance(runs, Sequence) and not isinstance(runs, str):
        named = [(_name(run), run) for run in runs]
    else:
        named = [(_name(runs), runs)]
    if not named:
        raise ValueError("nothing to plot: give at least one run")
    for name, run in named:
        steps, values, labels = _series(name, run, metric)
        for setting, columns in _settings(labels, values.shape[1]).items():
            title = ", ".join(part for part in (name, setting) if part)
            if len(named) == 1 and setting:
                title = setting
            yield Curve(title, steps, values[:, columns])


def _name(run: Any) -> str:
    if isinstance(run, str | os.PathLike):
        return Path(run).name
    folder = getattr(run, "folder", None) or getattr(run, "path", None)
    return Path(folder).name if folder else ""


def _series(name: str, run: Any, metric: str) -> tuple[np.ndarray, np.ndarray, list]:
    """Return steps `[K]`, values `[K, N]` and the labels of the N runs."""
    if isinstance(run, str | os.PathLike):
        run = RunFolder.open(run)
    if metric == "return" and hasattr(run, "returns"):
        steps, values = np.asarray(run.steps), np.asarray(run.returns, np.float64)
        if not len(steps):
            raise ValueError("nothing to plot: the run was never evaluated")
        return steps, values.reshape(len(steps), -1), list(getattr(run, "runs", []))
    if isinstance(run, RunFolder):
        rows, labels = run.rows(), run.config().get("runs", [])
    else:
        rows, labels = run.rows, run.runs
    found = [(row["step"], value) for row in rows if (value := _at(row, metric))]
    if not found:
        raise ValueError(_absent(name, rows, metric))
    return (
        np.array([step for step, _ in found]),
        np.array([value for _, value in found], np.float64),
        labels,
    )


def _at(row: Mapping[str, Any], metric: str) -> list[float] | None:
    value: Any = row
    for part in metric.split("/"):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None or isinstance(value, Mapping | str):
        return None
    return np.ravel(value).tolist()


def _absent(name: str, rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    known = sorted({key for row in rows for key in _names(row)} - {"step"})
    if not known:
        return f"{name}: nothing has been recorded yet"
    near = difflib.get_close_matches(metric, known, 1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{name}: no metric {metric!r}; {hint}there are {', '.join(known)}"


def _names(row: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}"


def _settings(labels: list[Mapping[str, Any]], num_runs: int) -> dict[str, list[int]]:
    """Group the runs of a sweep: those that differ in the seed alone, together."""
    if len(labels) != num_runs:
        return {"": list(range(num_runs))}
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        hyper = [f"{k} {v:g}" for k, v in label.items() if k != "seed"]
        groups.setdefault(", ".join(hyper), []).append(index)
    return groups


# -------------------------------------------------------------------------- statistics


def _summary(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return IQM and 95 % interval of each row of `[K, N]`, NaN entries left out."""
    rows = [_row_summary(row[~np.isnan(row)]) for row in values]
    middle, low, high = np.array(rows, np.float64).reshape(-1, 3).T
    return middle, low, high


def _row_summary(scores: np.ndarray) -> tuple[float, float, float]:
    if len(scores) < 2:
        return (*(float(scores[0]) if len(scores) else np.nan,) * 3,)
    scores = scores[:, None]  # `[N, 1]`: one task
    low, high = statistics.stratified_bootstrap_interval(
        jax.random.key(0), scores, statistics.iqm, num_resamples=_RESAMPLES
    )
    return float(statistics.iqm(scores)), float(low), float(high)


# ----------------------------------------------------------------------------- drawing


def _draw(axes: Axes, line: Curve, index: int, crowded: bool) -> None:
    steps, values = line.steps, line.values
    colour = _COLOURS[index % len(_COLOURS)]
    style = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    if values.shape[1] > 1 and not crowded:
        axes.plot(steps, values, color=colour, lw=0.6, alpha=0.3, zorder=1)
    middle, low, high = _summary(values)
    alpha = 0.1 if crowded else 0.18
    axes.fill_between(steps, low, high, color=colour, alpha=alpha, lw=0, zorder=2)
    marker = "o" if len(steps) == 1 else None
    axes.plot(steps, middle, color=colour, lw=2, ls=style, marker=marker, zorder=3)


def _decorate(axes: Axes, curves: Sequence[Curve], metric: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=_INK, labelsize=9, width=0.6, color="#999999")
    axes.grid(axis="y", color=_FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("environment steps", color=_INK)
    axes.set_ylabel(metric.replace("_", " "), color=_INK)
    axes.margins(x=0)
    axes.set_title(_caption(curves), loc="left", fontsize=9, color="#666666")


def _caption(curves: Sequence[Curve]) -> str:
    counts = sorted({line.values.shape[1] for line in curves})
    if counts == [1]:
        text = "one seed"
    else:
        seeds = " to ".join(str(count) for count in (counts[0], counts[-1]))
        seeds = str(counts[0]) if len(counts) == 1 else seeds
        text = f"interquartile mean of {seeds} seeds with 95 % bootstrap interval"
    lost = sum(int(np.isnan(line.values[-1]).sum()) for line in curves)
    return text + (f"; {lost} ended in NaN" if lost else "")


def _label(axes: Axes, curves: Sequence[Curve]) -> None:
    """Write each name where its line ends; names that would overlap move apart."""
    names = [line.name for line in curves]
    if len(names) == 1:
        axes.text(0, 1.08, names[0], transform=axes.transAxes, color=_INK, size=12)
        return
    low, high = axes.get_ylim()
    ends = [_end(line) for line in curves]
    heights = [(y - low) / (high - low) for _, y in ends]
    for x in {x for x, _ in ends}:
        here = [index for index, end in enumerate(ends) if end[0] == x]
        moved = _apart([heights[index] for index in here], gap=0.05)
        for index, height in zip(here, moved, strict=True):
            heights[index] = height
    size = 9 if len(names) <= 18 else 9 * 18 / len(names)
    for index, (name, (x, _), height) in enumerate(
        zip(names, ends, heights, strict=True)
    ):
        axes.annotate(
            name,
            (x, height),
            xycoords=axes.get_xaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            size=size,
            color=_darker(_COLOURS[index % len(_COLOURS)]),
            annotation_clip=False,
        )


def _end(line: Curve) -> tuple[float, float]:
    middle = _summary(line.values)[0]
    known = np.flatnonzero(~np.isnan(middle))
    last = known[-1] if len(known) else -1
    return float(line.steps[last]), float(np.nan_to_num(middle[last]))


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move numbers as little as needed for neighbours to differ by `gap`, in order."""
    gap = min(gap, 1.0 / max(len(heights), 1))
    order = np.argsort(heights, kind="stable")
    ranks = np.arange(len(heights)) * gap
    free = np.asarray(heights)[order] - ranks  # must not decrease: isotonic regression
    blocks: list[list[float]] = []  # mean and length of each pool
    for value in free:
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            other, before = blocks[-1]
            total = before + count
            blocks[-1] = [(other * before + mean * count) / total, total]
    pooled = np.concatenate([np.full(int(n), mean) for mean, n in blocks]) + ranks
    moved = np.empty(len(heights))
    moved[order] = pooled
    return moved.tolist()


def _darker(colour: str) -> str:
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{int(0.8 * part):02x}" for part in parts)


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
