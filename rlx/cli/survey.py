"""`rlx list` and `rlx doctor`: what is here, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import envs
from rlx import system
from rlx.cli import catalogue

_EXTRAS = {
    "h5py": ("offline datasets in HDF5", "rlx[data]"),
    "tensorboardX": ("TensorBoard writer", "rlx[tensorboard]"),
    "wandb": ("Weights & Biases writer", "rlx[wandb]"),
    "imageio_ffmpeg": ("MP4 films", "rlx[video]"),
}
_GIB = 2**30


def list_all(arguments: Any) -> int:
    """List methods, environments and data sources."""
    if arguments.what in (None, "methods"):
        _section("methods (rlx train METHOD --help)", catalogue.methods())
    if arguments.what in (None, "envs"):
        suites: dict[str, list[str]] = {}
        for name in envs.names():
            suites.setdefault(name.rpartition("/")[0] or "mujoco", []).append(name)
        _section("environments", {k: ", ".join(v) for k, v in suites.items()})
        for suite, line in envs.missing().items():
            print(f"  {suite} is missing: {line}")
    if arguments.what in (None, "sources"):
        _section("data sources", catalogue.sources())
    return 0


def _section(title: str, entries: dict[str, str]) -> None:
    print(f"{title}:")
    width = max(map(len, entries), default=0)
    for name, text in entries.items():
        print(f"  {name:<{width}}  {text}")


def doctor_all(arguments: Any) -> int:
    """Say what is installed and what works; 1 if something needed does not."""
    del arguments
    problems = _packages()
    problems += _devices()
    _machine()
    _extras()
    for problem in problems:
        print(f"PROBLEM  {problem}")
    print("something is wrong" if problems else "all that is needed is here")
    return 1 if problems else 0


def _packages() -> list[str]:
    print(f"python {sys.version.split()[0]} at {sys.executable}")
    found, problems = system.versions(), []
    print(", ".join(f"{name} {version}" for name, version in found.items() if version))
    for name, version in found.items():
        if version is None and name != "rlx":
            problems.append(f"{name} is missing: pip install {name}")
    return problems


def _devices() -> list[str]:
    try:
        import jax
        import jax.numpy as jnp

        from rlx.cli import start

        start.prepare()
        config: Any = jax.config
        devices = jax.devices()
        started = time.perf_counter()
        result = float(jax.jit(lambda x: jnp.sum(x @ x))(jnp.ones((64, 64))))
        seconds = time.perf_counter() - started
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        return [f"JAX does not start ({reason}): pip install -U jax"]
    kinds = {device.device_kind for device in devices}
    print(
        f"{len(devices)} {devices[0].platform} device(s) ({', '.join(sorted(kinds))}), "
        f"first program in {seconds:.2f} s, precision "
        f"{config.jax_default_matmul_precision or 'default'}, x64 "
        f"{'on' if config.jax_enable_x64 else 'off'}"
    )
    print(f"compiled programs are kept in {config.jax_compilation_cache_dir}")
    if devices[0].platform == "cpu" and _has_nvidia():
        print(
            "an NVIDIA GPU is here, but this JAX cannot use it: "
            "pip install -U 'jax[cuda13]' (drivers before 580: 'jax[cuda12]')"
        )
    return [] if result == 64**3 else [f"JAX computes {result}, not {64**3}"]


def _has_nvidia() -> bool:
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def _machine() -> None:
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    text = f"{cores} processor core(s)"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        text += f", {memory / _GIB:.0f} GiB of memory"
    free = shutil.disk_usage(".").free
    print(f"{text}, {free / _GIB:.0f} GiB free on the disk here")


def _extras() -> None:
    for suite, line in envs.missing().items():
        print(f"no {suite} environments: {line}")
    for module, (what, extra) in _EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            print(f"no {what}: pip install '{extra}'")
