"""Settings of the whole suite: one platform, strict shapes, cached compilation."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

# Unoptimised machine code compiles four times faster, and the suite mostly compiles.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_backend_optimization_level=0",
        os.environ.get("XLA_FLAGS", ""),
    )
).strip()

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# [B] - [B, 1] -> [B, B] is the silent bug of reinforcement learning: here it raises.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compilation is most of what the suite does: keep its results between runs. Put into
# the environment too, so that the processes which tests start share them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
for _name, _kind in (
    ("jax_compilation_cache_dir", str),
    ("jax_persistent_cache_min_compile_time_secs", float),
    ("jax_persistent_cache_min_entry_size_bytes", int),
):
    jax.config.update(_name, _kind(os.environ[_name.upper()]))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--slow`."""
    parser.addoption(
        "--slow", action="store_true", help="run the tests marked slow as well"
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Skips slow tests unless `--slow` or a marker expression asks for them."""
    if config.getoption("--slow") or "slow" in (config.option.markexpr or ""):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture
def key() -> jax.Array:
    """The same typed key in every test, in every run."""
    return jax.random.key(0)


@pytest.fixture
def generator() -> np.random.Generator:
    """The same NumPy generator in every test, in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def double_precision() -> Iterator[None]:
    """JAX in float64, for identities that rounding would hide."""
    with jax.enable_x64(True):
        yield
