"""How a command that computes starts JAX."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import jax

from rlx import sharding


def prepare(cores: bool = False) -> None:
    """Keep compiled programs between commands, and use all cores for many runs.

    Args:
      cores: make one device of each processor core, so that runs train side by side.
    """
    if cores:
        # Where JAX runs already (a notebook, a test), its devices have to do.
        with contextlib.suppress(RuntimeError):
            sharding.use_cpu_cores()
    config: Any = jax.config  # its options are made at run time
    if config.jax_compilation_cache_dir is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base, "rlx", "jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
