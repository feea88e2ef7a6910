"""Speeds measured alternately, and their ratios: what every table here is made of.

A repetition times each contestant once, one after another; ratios are taken within a
repetition, because the speed of a shared machine drifts, and their median is what
counts. Contestants that need another Python, or another number of JAX devices, live in
processes of their own, which sleep while another is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = pathlib.Path(__file__).parent / "results"

Answer = Mapping[str, float]
"""`steps` taken in `seconds`, at the price of `cpu_seconds`."""
Pairs = Iterable[tuple[str, str]]
"""Labels `(a, b)` whose ratio a/b is wanted."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """How to start one contestant."""

    module: str
    """Under `experiments.benchmarks.contestants`."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Its command-line options."""
    python: str = sys.executable

    def words(self) -> list[str]:
        """The command line."""
        words = [self.python, "-m", f"experiments.benchmarks.contestants.{self.module}"]
        for name, value in self.options.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        return words


class Contestant:
    """A contestant's process; a context manager that ends it."""

    def __init__(self, label: str, entry: Entry):
        self.label = label
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            entry.words(),
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def hear(self) -> dict[str, Any]:
        """The next answer.

        Raises:
          RuntimeError: the process ended; says what it wrote last.
        """
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:]
        raise RuntimeError(f"{self.label} ended with status {status}: {' '.join(last)}")

    def run(self, seconds: float) -> Answer:
        """Runs for about that long."""
        self._process.stdin.write(f"{seconds}\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self.hear()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def race(
    entries: Mapping[str, Entry], pairs: Pairs, *, seconds: float, repeats: int
) -> dict[str, Any]:
    """Times contestants in processes of their own.

    Args:
      entries: label to contestant.
      pairs: which ratios to report.
      seconds: of each timing, at least.
      repeats: timings of each.

    Returns:
      What `compare` returns, and the versions of what was compared.
    """
    with ExitStack() as stack:
        timers, versions = {}, {}
        for label, entry in entries.items():  # they compile one after another
            contestant = stack.enter_context(Contestant(label, entry))
            versions[label] = contestant.hear()["versions"]
            timers[label] = contestant.run
        answers = alternate(timers, seconds=seconds, repeats=repeats)
    return {**compare(answers, pairs), "versions": versions}


def alternate(
    timers: Mapping[str, Callable[[float], Answer]], *, seconds: float, repeats: int
) -> dict[str, list[Answer]]:
    """Calls every timer once per repetition, in alternating order."""
    answers: dict[str, list[Answer]] = {label: [] for label in timers}
    for i in range(repeats):
        for label in list(timers) if i % 2 == 0 else list(timers)[::-1]:
            answers[label].append(timers[label](seconds))
    return answers


def compare(answers: Mapping[str, Sequence[Answer]], pairs: Pairs) -> dict[str, Any]:
    """Medians of speeds, and of the ratios within each repetition, with their range."""
    speeds = _per("seconds", answers)
    ratios = {
        f"{a}/{b}": [x / y for x, y in zip(speeds[a], speeds[b], strict=True)]
        for a, b in pairs
    }
    processor = _per("cpu_seconds", answers)
    return {
        "repeats": len(next(iter(speeds.values()))),
        "steps_per_second": {k: round(statistics.median(v)) for k, v in speeds.items()},
        "steps_per_cpu_second": {
            k: round(statistics.median(v)) for k, v in processor.items()
        },
        "ratio": {k: round(statistics.median(v), 3) for k, v in ratios.items()},
        "ratio_range": {
            k: [round(min(v), 3), round(max(v), 3)] for k, v in ratios.items()
        },
    }


def _per(unit: str, answers: Mapping[str, Sequence[Answer]]) -> dict[str, list[float]]:
    return {
        label: [answer["steps"] / answer[unit] for answer in timings]
        for label, timings in answers.items()
    }


def parse(parser: argparse.ArgumentParser, *, seconds: float) -> argparse.Namespace:
    """Reads the command line, after adding the options that every race has.

    Args:
      parser: with the options of its own.
      seconds: of each timing, unless told otherwise.
    """
    add = parser.add_argument
    add("--seconds", type=float, default=seconds, help="of each timing")
    add("--repeats", type=int, default=5)
    add("--quick", action="store_true", help="2 repeats of 3 seconds, not saved")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.repeats = 3.0, 2
    return options


def run_rows(
    rows: Mapping[str, tuple[Mapping[str, Entry], Pairs]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Races the rows asked for (`options.rows`); prints each as it ends."""
    results = []
    for name, (entries, pairs) in rows.items():
        if options.rows and name not in options.rows:
            continue
        speeds = race(entries, pairs, seconds=options.seconds, repeats=options.repeats)
        settings = {label: dict(entry.options) for label, entry in entries.items()}
        results.append({"row": name, **speeds, "settings": settings})
        print(json.dumps(results[-1]), flush=True)
    return results


def save(name: str, content: Mapping[str, Any], words: Iterable[str]) -> None:
    """Writes `results/<name>.json` with the command, the date and the machine."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from rlx import system

    machine = system.describe()
    del machine["command"]  # of this process, which may not be what a person types
    module = f"experiments.benchmarks.{name}"
    whole = {
        "command": shlex.join(["python", "-m", module, *words]),
        "date": datetime.date.today().isoformat(),
        "machine": {**machine, "load": [round(x, 2) for x in os.getloadavg()]},
        **content,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(whole, indent=1, default=str)
    (RESULTS / f"{name}.json").write_text(text + "\n")
