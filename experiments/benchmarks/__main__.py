"""Runs the benchmarks: `python -m experiments.benchmarks [--quick] [names]`.

Each is a module that runs alone too, with options of its own; what is not known here
is passed on to all of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

NAMES = ("physics", "training", "off_policy", "seeds", "parts", "startup")
TAKE_PEERS = ("training", "off_policy")


def main() -> int:
    """Runs what was asked for, one after another; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NAMES))
    parser.add_argument(
        "--quick", action="store_true", help="short and rough, saves nothing"
    )
    parser.add_argument(
        "--install-peers",
        action="store_true",
        help="make virtual environments for the peers of training, with pip",
    )
    options = parser.parse_args()
    for name in options.names:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}: choose from {', '.join(NAMES)}")
    failed = []
    for name in options.names or NAMES:
        words = [sys.executable, "-m", f"experiments.benchmarks.{name}"]
        words += ["--quick"] * options.quick
        words += ["--install-peers"] * (options.install_peers and name in TAKE_PEERS)
        print(f"== {name}", flush=True)
        if subprocess.run(words).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
