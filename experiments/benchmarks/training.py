"""Whole training against peers: steps per second of PPO, no evaluation on any side.

    python -m experiments.benchmarks.training [--install-peers] [--quick] [--rows ...]

Within a row all train the same task with the same batch, epochs, minibatches and
networks (two torsos of 64, 64 tanh units), each in a process and Python of its own.
"""

from __future__ import annotations

import argparse
import sys

from experiments.benchmarks import peers, race
from experiments.benchmarks.race import Entry
from rlx import sharding

SMALL = {"num_envs": 64, "length": 64, "num_epochs": 8, "num_minibatches": 16}
"""Batch and passes of the small tasks: rejax's own defaults."""
HOPPER = {"num_envs": 40, "length": 50, "num_epochs": 10, "num_minibatches": 8}
"""Batch and passes on Hopper: rlx's own defaults."""

Row = tuple[dict[str, Entry], list[tuple[str, str]]]


def against_rejax(task: str, theirs: str, seeds: int, python: str) -> Row:
    """A pure-JAX task, all compiled; several seeds in each library's own way."""
    shared = {**SMALL, "normalize": 0, "seeds": seeds}
    cores = sharding.available_cores() if seeds > 1 else 1
    entries = {"rlx": Entry("rlx_training", {"env": task, **shared, "devices": cores})}
    for form in ("vmap", "map") if seeds > 1 else ("vmap",):
        options = {"env": theirs, **shared, "form": form, "iterations": 8}
        label = "rejax" if seeds == 1 else f"rejax {form}"
        entries[label] = Entry("rejax_training", options, python)
    return entries, [("rlx", label) for label in entries if label != "rlx"]


def against_sb3(python: str) -> Row:
    """Hopper with running normalisation, one seed."""
    few = {**HOPPER, "num_envs": 4, "length": 500}  # the same batch, in 4 processes
    peer = {"env": "Hopper-v5", "normalize": 1}
    entries = {
        "rlx": Entry("rlx_training", {"env": "hopper", **HOPPER, "normalize": 1}),
        "sbx": Entry("sb3_training", {**peer, **HOPPER, "library": "sbx"}, python),
        "sb3": Entry("sb3_training", {**peer, **HOPPER, "library": "sb3"}, python),
        "sb3 processes": Entry(
            "sb3_training",
            {**peer, **few, "library": "sb3", "vector": "subproc"},
            python,
        ),
    }
    return entries, [("rlx", label) for label in entries if label != "rlx"]


def against_envpool(python: str) -> Row:
    """Hopper's physics alone; EnvPool's threads against rlx's engine inside `jit`."""
    shared = {"num_envs": 64, "length": 100}
    entries = {
        "rlx": Entry("physics_alone", {"env": "hopper", **shared}),
        "envpool": Entry("envpool_physics", {"env": "Hopper-v4", **shared}, python),
    }
    return entries, [("rlx", "envpool")]


def rows(pythons: dict[str, str]) -> dict[str, Row]:
    """All rows whose peers are there."""
    found: dict[str, Row] = {}
    if python := pythons.get("rejax"):
        found["cartpole"] = against_rejax("probe/cartpole", "CartPole-v1", 1, python)
        found["pendulum"] = against_rejax("probe/pendulum", "Pendulum-v1", 1, python)
        found["cartpole_8_seeds"] = against_rejax(
            "probe/cartpole", "CartPole-v1", 8, python
        )
    if python := pythons.get("sb3"):
        found["hopper"] = against_sb3(python)
    if python := pythons.get("envpool"):
        found["hopper_physics"] = against_envpool(python)
    return found


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    peers.add_options(parser)
    parser.add_argument("--rows", nargs="+", help="only these")
    options = race.parse(parser, seconds=8.0)
    results = race.run_rows(rows(peers.find(options)), options)
    if not options.quick:
        race.save(
            "training", {"seconds": options.seconds, "rows": results}, sys.argv[1:]
        )


if __name__ == "__main__":
    main()
