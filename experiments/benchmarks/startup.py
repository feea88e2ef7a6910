"""Starting: what `import rlx` costs beside `import jax`, and the second start of a run.

    python -m experiments.benchmarks.startup [--quick]

Every repetition starts one batch of PPO on Hopper twice, each in a new process: first
with an empty compilation cache, then with the one that the first left behind. Seconds
are given as wall-clock and as processor time: on a busy machine the latter says more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from experiments.benchmarks import race

STARTS = ("first", "second")
CLOCKS = ("wall", "processor")


def start(cache: str) -> dict[str, Any]:
    """Starts a process with the cache in a folder; its own account of the time."""
    module = "experiments.benchmarks.contestants.start"
    completed = subprocess.run(
        [sys.executable, "-m", module, cache],
        cwd=race.ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if completed.returncode:
        raise RuntimeError(f"a start failed: {completed.stderr.strip()[-500:]}")
    return json.loads(completed.stdout.splitlines()[-1])


def measure(repeats: int) -> dict[str, Any]:
    """Medians of seconds, and of ratios within a repetition."""
    starts: dict[str, list[dict[str, Any]]] = {label: [] for label in STARTS}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for label in STARTS:
                starts[label].append(start(cache))
    result: dict[str, Any] = {"repeats": repeats}
    for i, clock in enumerate(CLOCKS):
        seconds = {
            f"{label}_{part}": [x[part][i] for x in starts[label]]
            for label in STARTS
            for part in ("import_jax", "import_rlx", "fit")
        }
        ratios = [
            second / first
            for first, second in zip(
                seconds["first_fit"], seconds["second_fit"], strict=True
            )
        ]
        result[clock] = {
            "seconds": {k: round(statistics.median(v), 2) for k, v in seconds.items()},
            "second_fit/first_fit": round(statistics.median(ratios), 3),
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    compiling = {k: [x["compile_s"] for x in v] for k, v in starts.items()}
    result["compile_wall_seconds"] = {
        k: round(statistics.median(v), 2) for k, v in compiling.items()
    }
    result["compile_second/first"] = round(
        statistics.median(
            b / a for a, b in zip(compiling["first"], compiling["second"], strict=True)
        ),
        3,
    )
    return result


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="2 repeats")
    options = parser.parse_args()
    result = measure(2 if options.quick else options.repeats)
    print(json.dumps(result, indent=1))
    if not options.quick:
        race.save("startup", result, sys.argv[1:])


if __name__ == "__main__":
    main()
