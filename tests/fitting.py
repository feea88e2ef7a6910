"""What the tests of `fit` share: comparing runs, and fits in other processes."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rlx.json_values import to_json
from rlx.types import PyTree
from tests.fit_process import leaves

ROOT = pathlib.Path(__file__).resolve().parent.parent
UNREPEATABLE = ("time", "memory_mib")


def assert_same(left: PyTree, right: PyTree) -> None:
    """Every leaf equal to the bit (NaN to NaN), with its shape and dtype."""
    a, b = (x if isinstance(x, dict) else leaves(x) for x in (left, right))
    assert set(a) == set(b) and a
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


def assert_close(left: PyTree, right: PyTree, rtol: float = 1e-5) -> None:
    """Every leaf equal up to rounding; what is no float, to the bit."""
    a, b = (x if isinstance(x, dict) else leaves(x) for x in (left, right))
    assert set(a) == set(b) and a
    for name in a:
        exact = a[name].dtype.kind != "f"
        np.testing.assert_allclose(
            a[name], b[name], rtol=0 if exact else rtol, atol=rtol, err_msg=name
        )


def assert_same_rows(
    left: Iterable[Mapping[str, Any]], right: Iterable[Mapping[str, Any]]
) -> None:
    """Rows equal but for times and memory; as JSON, so that NaN equals NaN."""
    a, b = ([repeatable(row) for row in rows] for rows in (left, right))
    assert a == b and a


def assert_close_rows(
    left: Iterable[Mapping[str, Any]], right: Iterable[Mapping[str, Any]]
) -> None:
    """Rows equal up to the last bits of float32, but for times and memory."""
    for a, b in zip(left, right, strict=True):
        assert set(a) == set(b) and set(a["train"]) == set(b["train"])
        assert a["step"] == b["step"]
        for name in ("return", "episode_length"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6)
        for name, value in a["train"].items():
            other = b["train"][name]
            np.testing.assert_allclose(value, other, 1e-6, 1e-7, err_msg=name)


def repeatable(row: Mapping[str, Any]) -> Any:
    """What a row says again when the run is repeated."""
    return to_json({k: v for k, v in row.items() if k not in UNREPEATABLE})


def start(options: Mapping[str, Any], *, devices: int = 1) -> subprocess.Popen[str]:
    """Starts `tests.fit_process` with as many virtual devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.fit_process", json.dumps(options)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    """What the processes print; fails if one of them does."""
    try:
        outputs = [process.communicate(timeout=540)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), (
        "\n".join(outputs)
    )
    return outputs
