"""Random orders of the samples of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx.types import Array, Key

_PACKED_BITS = 12
"""Widest index that shares a word with random bits: at least 20 are left to them, so
that at most about 1 in 500 neighbours of a permutation tie, and then keep their order.
"""


def permutations(key: Key, size: int, count: int) -> Array:
    """Independent permutations of `range(size)`.

    Sorts random words: up to 4,096 indices share their word with the random bits, so
    that one sort of single words does what `jax.random.permutation` does by two sorts
    of pairs, which are slow on a CPU.

    Args:
      key: a key.
      size: how many indices, at least 1.
      count: how many permutations.

    Returns:
      `int32[count, size]`.

    Raises:
      ValueError: `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    bits = jax.random.bits(key, (count, size), jnp.uint32)
    width = (size - 1).bit_length()
    if width > _PACKED_BITS:
        return jnp.argsort(bits, axis=1, stable=False).astype(jnp.int32)
    index = jnp.arange(size, dtype=jnp.uint32)[None]
    words = (bits >> width << width) | index
    order = jnp.sort(words, axis=1, stable=False) & jnp.uint32((1 << width) - 1)
    return order.astype(jnp.int32)
