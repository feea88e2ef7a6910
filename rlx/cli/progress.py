"""What a person sees of a training: rows that stay, and a live line on a terminal.

Written to a file or a pipe there is no live line: a row per evaluation, and a sign of
life when nothing else has been printed for a minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.ops import statistics

_QUIET_SECONDS = 60.0


class Display:
    """Prints the rows and the progress of a fit; a context manager."""

    def __init__(self, labels: Sequence[str], total_steps: int) -> None:
        """Begin.

        Args:
          labels: `[N]` the setting of each run; runs of one setting differ in seed.
          total_steps: environment steps per run.
        """
        self.labels, self.total = list(labels), total_steps
        self.bar = _bar(total_steps) if sys.stdout.isatty() else None
        self.printed = time.monotonic()
        self.returns = ""

    def __enter__(self) -> Display:
        if self.bar is not None:
            self.bar[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar[0].stop()

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if self.bar is not None:
            self.bar[0].console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)
        self.printed = time.monotonic()

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a row of the record."""
        parts = [f"{short(row['step']):>6} steps"]
        if "return" in row:
            self.returns = f"return {self._describe(row['return'])}"
            parts.append(self.returns)
        speed = row.get("time", {}).get("steps_per_second", 0.0)
        if speed:
            parts.append(f"{short(speed)} steps/s")
        self.line("   ".join(parts))

    def progress(self, report: Mapping[str, Any]) -> None:
        """Show how far it is, how fast, and how long it will take."""
        speed, left = report["steps_per_second"], duration(report["seconds_left"])
        pace = f"{short(speed)} steps/s   {left} left"
        if self.bar is not None:
            bar, task = self.bar
            details = f"{short(report['step'])} steps   {self.returns}   {pace}"
            bar.update(task, completed=report["step"], details=details)
        elif time.monotonic() - self.printed > _QUIET_SECONDS:
            self.line(f"{short(report['step']):>6} steps   {pace}")

    def _describe(self, returns: Sequence[float]) -> str:
        scores = np.asarray(returns, float).ravel()
        settings = list(dict.fromkeys(self.labels))
        if len(settings) == 1:
            return spread(scores)
        groups = {s: scores[[label == s for label in self.labels]] for s in settings}
        best = max(settings, key=lambda s: _middle(groups[s]))
        return f"{spread(groups[best])} at {best}, the best of {len(settings)} settings"


def spread(scores: np.ndarray) -> str:
    """Return `1834 (1502 to 2103)`: interquartile mean, least and most over runs."""
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return "nan"
    text = number(_middle(finite))
    if len(scores) > 1:
        text += f" ({number(finite.min())} to {number(finite.max())})"
    lost = len(scores) - len(finite)
    return text + (f", {lost} diverged" if lost else "")


def _middle(scores: np.ndarray) -> float:
    finite = scores[np.isfinite(scores)]
    return float(statistics.iqm(finite[:, None])) if len(finite) else -np.inf


def number(value: float) -> str:
    """Return four digits: `1834`, `12.35`, `-0.1234`."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def short(value: float) -> str:
    """Return `950`, `21.3k`, `1M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return `45 s`, `2 min 10 s`, `1 h 5 min`, `2 d 3 h`."""
    if not np.isfinite(seconds):
        return "?"
    whole = round(seconds)
    for size, unit, smaller, below in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def _bar(total: int) -> Any:
    from rich import progress

    bar = progress.Progress(
        progress.BarColumn(bar_width=16),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[details]}"),
        transient=True,
    )
    return bar, bar.add_task("train", total=total, details="compiling")
