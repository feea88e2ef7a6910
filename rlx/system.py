"""What a run ran on: software, hardware, precision and the command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from typing import Any

PACKAGES = (
    "rlx",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "chex",
    "numpy",
    "orbax-checkpoint",
    "mujoco",
    "mujoco-mjx",
    "brax",
    "gymnasium",
)
"""Packages whose version can change a result."""


def describe() -> dict[str, Any]:
    """Return software, hardware and settings that can change a result.

    Starts the JAX backend, so that the devices are those the run will have.
    """
    import jax

    devices = jax.devices()
    config: Any = jax.config  # its options are made at run time
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
        "git_commit": git_commit(),
        "command": command(),
        "backend": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "default_matmul_precision": config.jax_default_matmul_precision,
        "enable_x64": bool(config.jax_enable_x64),
        "default_prng": config.jax_default_prng_impl,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def command() -> str:
    """The command line of this process, without the machine's own folders.

    `python -m package.module --option` stays what it was; a script or console command
    is named without the folder it lies in.
    """
    original = sys.orig_argv[1:]
    if original and original[0].startswith("-") and "-m" in original:
        return shlex.join(["python", *original[original.index("-m") :]])
    return shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])


def versions() -> dict[str, str | None]:
    """Return the version of each package of `PACKAGES`; None where it is missing."""
    return {name: version(name) for name in PACKAGES}


def version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of the working directory, `-dirty` if files have changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
