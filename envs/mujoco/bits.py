"""Exact float64 values as uint32 pairs, where JAX has only 32 bits.

A float64 array of shape `[...]` is carried as `uint32[..., 2]`, low word first: on the
host that is `array.view(float64)`. JAX never computes with it, only moves it.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
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


def widen(values: jax.Array) -> jax.Array:
    """Return the float64 bits, `uint32[..., 2]`, of float32 `[...]`, without x64.

    Exact for every normal number, infinity and NaN; subnormal float32 (below 1.2e-38)
    become zero.
    """
    word = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    sign = word & jnp.uint32(0x80000000)
    exponent = (word >> 23) & jnp.uint32(0xFF)
    mantissa = word & jnp.uint32(0x7FFFFF)
    # Bias 127 -> 1023; all ones (infinity, NaN) stay all ones.
    wide = jnp.where(exponent == 0xFF, jnp.uint32(0x7FF), exponent + jnp.uint32(896))
    high = sign | (wide << 20) | (mantissa >> 3)
    low = mantissa << 29
    zero = exponent == 0
    high = jnp.where(zero, sign, high)
    low = jnp.where(zero, jnp.uint32(0), low)
    return jnp.stack([low, high], axis=-1)
