"""The side of a contestant: runs when told to, and says how far it came.

Lines on standard input are seconds to run for; every answer is one line of JSON with
`steps`, `seconds` and `cpu_seconds` (of this process, its threads and its children).
Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any


def serve(contestant: Callable[[], int], packages: tuple[str, ...] = ()) -> None:
    """Answers until standard input ends.

    Args:
      contestant: runs for a moment and returns the environment steps it took. It is
        called twice before the first answer, to compile.
      packages: what to report the versions of.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")

    started = time.perf_counter()
    contestant()
    first = time.perf_counter() - started
    contestant()  # some programs compile again for the types of their own results
    versions = {name: _version(name) for name in packages}
    say({"first_seconds": round(first, 3), "versions": versions})
    for line in sys.stdin:
        say(timed(contestant, float(line)))


def timed(contestant: Callable[[], int], at_least: float) -> dict[str, float]:
    """Calls the contestant until `at_least` seconds have passed."""
    steps, processor = 0, _cpu_seconds()
    started = time.perf_counter()
    while True:
        steps += contestant()
        seconds = time.perf_counter() - started
        if seconds >= at_least:
            break
    return {
        "steps": steps,
        "seconds": seconds,
        "cpu_seconds": _cpu_seconds() - processor,
    }


def _cpu_seconds() -> float:
    """Processor time of this process and, on Linux, of its living children."""
    total = time.process_time()
    for task in pathlib.Path("/proc/self/task").glob("*/children"):
        for child in task.read_text().split():
            fields = pathlib.Path("/proc", child, "stat").read_text().rpartition(")")[2]
            user, system = fields.split()[11:13]
            total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
