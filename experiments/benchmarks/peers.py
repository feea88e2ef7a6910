"""Pythons of the peers: other libraries need other versions than rlx."""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tempfile
import venv

PEERS = {
    # rejax 0.1.3 unpacks five results of an environment's step; gymnax 1 returns six.
    "rejax": ("rejax", "gymnax<1"),
    "sb3": ("stable-baselines3", "sbx-rl", "gymnasium[mujoco]"),
    "transformers": ("torch", "transformers"),
    "envpool": ("envpool", "gymnasium[mujoco]"),
}
"""What pip installs into the virtual environment of each."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--peers` and `--install-peers`."""
    parser.add_argument(
        "--peers",
        type=pathlib.Path,
        default=pathlib.Path(tempfile.gettempdir(), "rlx-peers"),
        help="folder with a virtual environment per peer (default: %(default)s)",
    )
    parser.add_argument(
        "--install-peers",
        action="store_true",
        help="make the virtual environments that are missing there, with pip",
    )


def find(options: argparse.Namespace) -> dict[str, str]:
    """The Python of each peer that is there, made first if `--install-peers`."""
    found = {}
    for name, packages in PEERS.items():
        python = options.peers / name / "bin" / "python"
        if not python.exists() and options.install_peers:
            _install(python, packages)
        if python.exists():
            found[name] = str(python)
        else:
            print(f"no {name}: --install-peers would make {python.parents[1]}")
    return found


def require(name: str, options: argparse.Namespace) -> str:
    """The Python of one peer; without it there is no race, and the program ends."""
    python = find(options).get(name)
    if python is None:
        sys.exit(
            f"nothing to compare with: --install-peers installs "
            f"{', '.join(PEERS[name])}"
        )
    return python


def _install(python: pathlib.Path, packages: tuple[str, ...]) -> None:
    print(f"installing {' '.join(packages)} into {python.parents[1]}", flush=True)
    venv.create(python.parents[1], with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *packages]
    if subprocess.run(command).returncode:
        sys.exit(f"pip could not install {' '.join(packages)}: see above")
