"""Language models against PyTorch and transformers: tokens per second on a CPU.

    python -m experiments.benchmarks.language [--install-peers] [--quick] [--rows ...]

The same network, batches and objectives on both sides, each in a process and Python of
its own, all cores for either.
"""

from __future__ import annotations

import argparse
import sys

from experiments.benchmarks import peers, race
from experiments.benchmarks.race import Entry

TASKS = ("sampling", "sft", "dpo")


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    peers.add_options(parser)
    parser.add_argument("--rows", nargs="+", help="only these")
    options = race.parse(parser, seconds=8.0)
    python = peers.require("transformers", options)
    rows = {}
    for task in TASKS:
        entries = {
            "rlx": Entry("rlx_language", {"task": task}),
            "transformers": Entry("torch_language", {"task": task}, python),
        }
        rows[task] = entries, [("rlx", "transformers")]
    results = race.run_rows(rows, options)
    if not options.quick:
        content = {"seconds": options.seconds, "unit": "tokens"}
        race.save("language", {**content, "rows": results}, sys.argv[1:])


if __name__ == "__main__":
    main()
