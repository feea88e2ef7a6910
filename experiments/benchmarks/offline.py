"""Offline training against PyTorch: gradient steps per second of IQL.

    python -m experiments.benchmarks.offline [--install-peers] [--quick] [--rows ...]

The same data, batch, networks and losses on both sides, one thread of PyTorch, each in
a process and Python of its own. Where rlx trains four seeds, the ratio compares the
gradient steps of all four with PyTorch's of one.
"""

from __future__ import annotations

import argparse
import sys

from experiments.benchmarks import peers, race
from experiments.benchmarks.race import Entry
from rlx import sharding

SIZES = {"small": {"width": 64}, "paper": {"width": 256}}
"""Two hidden layers of 64, and of 256 as the paper has them; batches of 256."""
SEEDS = 4


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    peers.add_options(parser)
    parser.add_argument("--rows", nargs="+", help="only these")
    options = race.parse(parser, seconds=8.0)
    python = peers.require("sb3", options)  # torch comes with Stable-Baselines3
    rows, cores = {}, sharding.available_cores()
    for name, size in SIZES.items():
        torch = Entry("torch_offline", size, python)
        many = Entry("rlx_offline", {**size, "seeds": SEEDS, "devices": cores})
        pairs = [("rlx", "torch")]
        rows[name] = {"rlx": Entry("rlx_offline", size), "torch": torch}, pairs
        rows[f"{name}_{SEEDS}_seeds"] = {"rlx": many, "torch": torch}, pairs
    results = race.run_rows(rows, options)
    if not options.quick:
        content = {"seconds": options.seconds, "unit": "gradient steps"}
        race.save("offline", {**content, "rows": results}, sys.argv[1:])


if __name__ == "__main__":
    main()
