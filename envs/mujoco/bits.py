"""Exact float64 values as uint32 pairs, where JAX has only 32 bits.

A float64 array of shape `[...]` is carried as `uint32[..., 2]`, low word first: on the
host that is `array.view(float64)`. JAX never computes with it, only moves it.
"""

from __future__ import annotations

import sys

import numpy as np

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("rlx carries MuJoCo states in little-endian order only.")


def pack(values: np.ndarray) -> np.ndarray:
    """Return float64 `[..., n]` as `uint32[..., n, 2]` (host)."""
    values = np.ascontiguousarray(values, np.float64)
    return values.view(np.uint32).reshape(*values.shape, 2)


def unpack(words: np.ndarray) -> np.ndarray:
    """Return `uint32[..., n, 2]` as float64 `[..., n]` (host); a view if contiguous."""
    words = np.ascontiguousarray(words, np.uint32)
    return words.view(np.float64)[..., 0]
