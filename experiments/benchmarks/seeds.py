"""Many seeds: total steps per second of 1, 8 and 64 seeds, in every form.

    python -m experiments.benchmarks.seeds [--quick] [--rows ...]

The forms: `map` trains one seed after another, `vmap` all together, both on one device;
`cores` makes one device of each processor core and maps on each of them; `cores vmap`
vmaps there. All run the very program that `train.fit` compiles, and learn the same
numbers. `rule` is the form that `fit` chooses by itself once `sharding.use_cpu_cores`
was called, as the `rlx` command does.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from experiments.benchmarks import race
from experiments.benchmarks.race import Entry
from experiments.benchmarks.training import HOPPER, SMALL
from rlx import sharding

RULE = "cores"

ROWS: dict[str, tuple[dict[str, Any], int]] = {
    "hopper_8": ({"env": "hopper", **HOPPER, "normalize": 1}, 8),
    "cartpole_8": ({"env": "probe/cartpole", **SMALL, "normalize": 0}, 8),
    "pendulum_8": ({"env": "probe/pendulum", **SMALL, "normalize": 0}, 8),
    "cartpole_64": ({"env": "probe/cartpole", **SMALL, "normalize": 0}, 64),
    "cartpole_small_8": (
        {
            "env": "probe/cartpole",
            **{"num_envs": 8, "length": 32, "num_epochs": 4, "num_minibatches": 4},
            "normalize": 0,
        },
        8,
    ),
}
"""Name -> setting and number of seeds. The last: 64 samples to a minibatch."""


def forms(setting: dict[str, Any], seeds: int, cores: int) -> dict[str, Entry]:
    """All ways to train `seeds` seeds, and one seed alone."""

    def entry(**options: Any) -> Entry:
        return Entry("rlx_training", {**setting, **options})

    found = {
        "one": entry(seeds=1),
        "map": entry(seeds=seeds, group=1),
        "vmap": entry(seeds=seeds, group=seeds),
    }
    if cores > 1 and seeds % cores == 0:
        found["cores"] = entry(seeds=seeds, devices=cores, group=1)
        found["cores vmap"] = entry(seeds=seeds, devices=cores, group=seeds // cores)
    return found


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    options = race.parse(parser, seconds=6.0)
    cores = sharding.available_cores()
    results: list[dict[str, Any]] = []
    for name in options.rows:
        setting, seeds = ROWS[name]
        entries = forms(setting, seeds, cores)
        pairs = [(label, "one") for label in entries if label != "one"]
        speeds = race.race(
            entries, pairs, seconds=options.seconds, repeats=options.repeats
        )
        ratios = speeds["ratio"]
        best = max(ratios, key=ratios.get).removesuffix("/one")
        rule = RULE if RULE in entries else "map"
        results.append(
            {
                "row": name,
                "seeds": seeds,
                "rule": rule,
                "best": best,
                "rule_over_best": round(
                    ratios[f"{rule}/one"] / ratios[f"{best}/one"], 3
                ),
                **speeds,
                "setting": setting,
            }
        )
        print(json.dumps(results[-1]), flush=True)
    content = {"cores": cores, "seconds": options.seconds, "rows": results}
    if not options.quick:
        race.save("seeds", content, sys.argv[1:])


if __name__ == "__main__":
    main()
