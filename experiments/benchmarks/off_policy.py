"""Off-policy training against peers: gradient steps per second of SAC.

    python -m experiments.benchmarks.off_policy [--install-peers] [--quick] [--rows ...]

HalfCheetah, no evaluation on any side. Within a row all have the same batch, networks
and ratio of gradient steps to environment steps, each in a process and Python of its
own. The peers train one seed at a time: where rlx trains eight, the ratio compares the
gradient steps of all eight with the peer's of one.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from experiments.benchmarks import peers, race
from experiments.benchmarks.race import Entry
from experiments.mdpo.off_policy import Settings
from rlx import sharding

BUDGET = Settings()
SIZES = {
    "budget": {
        "num_envs": BUDGET.num_envs,
        "gradient_steps": BUDGET.gradient_steps,
        "batch_size": BUDGET.batch_size,
        "width": BUDGET.hidden_sizes[0],
    },
    "one_by_one": {
        "num_envs": 1,
        "gradient_steps": 1,
        "batch_size": BUDGET.batch_size,
        "width": BUDGET.hidden_sizes[0],
    },
    "paper": {"num_envs": 1, "gradient_steps": 1, "batch_size": 256, "width": 256},
}
"""The budget of `experiments.mdpo.off_policy`; the same networks with a gradient step
after every environment step; SAC's own sizes (Haarnoja et al. 2018b, table 1)."""
SEEDS = 8

Row = tuple[dict[str, Entry], list[tuple[str, str]]]


def rows(python: str) -> dict[str, Row]:
    """Name -> contestants and the ratios wanted."""
    found: dict[str, Row] = {}
    cores = sharding.available_cores()
    for size, setting in SIZES.items():

        def mine(setting: dict[str, int] = setting, **options: Any) -> Entry:
            return Entry(
                "rlx_off_policy", {"env": "half_cheetah", **setting, **options}
            )

        def theirs(
            library: str, setting: dict[str, int] = setting, **options: Any
        ) -> Entry:
            options = {"env": "HalfCheetah-v5", **setting, **options}
            return Entry("sb3_off_policy", {"library": library, **options}, python)

        pairs = [("rlx", "sbx"), ("rlx", "sb3")]
        sbx = theirs("sbx")
        whole = {"rlx": mine(), "sbx": sbx, "sb3": theirs("sb3")}
        updates = {
            "rlx": mine(updates=1),
            "sbx": theirs("sbx", updates=1),
            "sb3": theirs("sb3", updates=1),
        }
        many = {"rlx": mine(seeds=SEEDS, devices=cores), "sbx": sbx}
        found[size] = whole, pairs
        found[f"{size}_updates_alone"] = updates, pairs
        found[f"{size}_{SEEDS}_seeds"] = many, pairs[:1]
    return found


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    peers.add_options(parser)
    parser.add_argument("--rows", nargs="+", help="only these")
    options = race.parse(parser, seconds=8.0)
    results = race.run_rows(rows(peers.require("sb3", options)), options)
    if not options.quick:
        content = {"seconds": options.seconds, "unit": "gradient steps"}
        race.save("off_policy", {**content, "rows": results}, sys.argv[1:])


if __name__ == "__main__":
    main()
