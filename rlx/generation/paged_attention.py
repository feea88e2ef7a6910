"""Decode attention over pages of a pool: gather, softmax, merge. In XLA alone.

Yang et al. 2025 (LServe), https://arxiv.org/abs/2502.14866, sections 3.2 and 3.5: every
group of heads reads its own short list of pages, wherever in the pool they lie. Keys
have their positions turned in, so that the order of the list does not matter. This is
what every backend can run; `rlx.generation.pallas_decode` is the same as one kernel.

A list can be read in parts whose softmaxes are merged (Milakov & Gimelshein 2018,
https://arxiv.org/abs/1805.02867): each part gives its greatest score m, l = Σ e^(s − m)
and o = Σ e^(s − m) v; together they are Σ_i e^(m_i − m) o_i / Σ_i e^(m_i − m) l_i.

Shapes: B rows, K key-value heads, g heads in a group, N pages in the pool, P tokens of
a page, n pages of a list, d head width.
"""

from __future__ import annotations

import math

import chex
import jax.numpy as jnp

from rlx.ops import paged
from rlx.types import Array

MASKED = -1e30
"""A finite score, so that a part without a token gives no NaN."""
Scales = tuple[Array, Array]
"""Of keys and of values, `float32[N, K, P, 2]` each: scale and zero."""


def decode_xla(  # noqa: PLR0913 (what a kernel reads, by name)
    queries: Array,
    keys: Array,
    values: Array,
    pages: Array,
    counts: Array,
    *,
    scales: Scales | None = None,
    bits: int | None = None,
    split: int = 1,
) -> Array:
    """softmax(q kᵀ / √d) v over the first tokens of some pages; no token gives 0.

    Args:
      queries: `[B, K, g, d]`.
      keys: `[N, K, P, d]`, finite everywhere; with `bits` codes of
        `rlx.ops.paged.quantize`: `uint8[N, K, P, d]`, or `[N, K, P, d / 2]` for 4.
      values: as `keys`.
      pages: `int32[B, K, n]` in the pool; anything where the count is 0.
      counts: `int32[B, K, n]` tokens of each page that are read, its first ones.
      scales: of the codes.
      bits: 8 or 4, with `scales`; None: keys and values are numbers.
      split: parts of the list, each with a softmax of its own.

    Returns:
      `[B, K, g, d]` of the queries' type; all scores and sums are float32.

    Raises:
      AssertionError: shapes or types do not fit.
      ValueError: scales without bits or bits without scales, or `split` < 1.
    """
    check(queries, keys, values, pages, counts, scales=scales, bits=bits, split=split)
    pages, counts = parts(pages, counts, split)
    heads = jnp.arange(pages.shape[1]).reshape(1, -1, 1, 1)

    def gathered(x: Array) -> Array:
        return x.at[pages, heads].get(mode="clip")

    def read(codes: Array, scale: Array | None) -> Array:
        found = gathered(codes)
        if scale is not None:
            assert bits is not None  # `check` saw to it
            found = paged.dequantize(found, gathered(scale), bits)
        return found.reshape(*pages.shape[:-1], -1, found.shape[-1])

    key_scales, value_scales = (None, None) if scales is None else scales
    place = jnp.arange(keys.shape[2]).reshape(1, 1, 1, 1, -1)
    seen = place < counts[..., None]
    seen = seen.reshape(*pages.shape[:-1], 1, -1)
    scores = jnp.einsum(
        "bkgd,bkspd->bksgp",
        queries,
        read(keys, key_scales),
        preferred_element_type=jnp.float32,
    )
    scores = jnp.where(seen, scores / math.sqrt(queries.shape[-1]), MASKED)
    greatest = jnp.max(scores, axis=-1)
    weights = jnp.where(seen, jnp.exp(scores - greatest[..., None]), 0.0)
    content = read(values, value_scales)
    mixed = jnp.einsum(
        "bksgp,bkspd->bksgd",
        weights.astype(content.dtype),
        content,
        preferred_element_type=jnp.float32,
    )
    found = merge(greatest, jnp.sum(weights, axis=-1), mixed, axis=2)
    return found.astype(queries.dtype)


def merge(greatest: Array, total: Array, mixed: Array, axis: int) -> Array:
    """One softmax of several parts'; parts without a token do not count.

    Args:
      greatest: m, `float32[..., parts, ..., g]`, finite.
      total: l, as `greatest`; 0 where a part has no token.
      mixed: o, `float32[..., parts, ..., g, d]`.
      axis: of the parts, not negative.

    Returns:
      `mixed` without that axis; 0 where no part has a token.
    """
    chex.assert_equal_shape([greatest, total])
    scale = jnp.exp(greatest - jnp.max(greatest, axis=axis, keepdims=True))
    scale = jnp.where(total > 0, scale, 0.0)
    whole = jnp.sum(scale * total, axis=axis)[..., None]
    found = jnp.sum(scale[..., None] * mixed, axis=axis)
    return found / jnp.where(whole > 0, whole, 1.0)


def parts(pages: Array, counts: Array, split: int) -> tuple[Array, Array]:
    """Lists of pages as `[B, K, split, n / split]`, filled up with empty pages."""
    lack = -pages.shape[-1] % split

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, lack)))
        return x.reshape(*x.shape[:2], split, -1)

    return cut(pages), cut(counts)


def check(  # noqa: PLR0913 (what a kernel reads, by name)
    queries: Array,
    keys: Array,
    values: Array,
    pages: Array,
    counts: Array,
    *,
    scales: Scales | None,
    bits: int | None,
    split: int,
) -> None:
    """Raises what `decode_xla` says it raises."""
    if (scales is None) != (bits is None):
        raise ValueError("scales and bits go together: give both, or none")
    if split < 1:
        raise ValueError(f"split must be at least 1, got {split}")
    batch, heads, _, width = queries.shape
    pool, _, size, _ = keys.shape
    chex.assert_shape([pages, counts], (batch, heads, None))
    chex.assert_equal_shape([pages, counts])
    chex.assert_type([pages, counts], jnp.int32)
    if scales is None:
        chex.assert_shape([keys, values], (pool, heads, size, width))
        return
    narrow = width // 2 if bits == 4 else width
    chex.assert_shape([keys, values], (pool, heads, size, narrow))
    chex.assert_type([keys, values], jnp.uint8)
    chex.assert_shape(list(scales), (pool, heads, size, 2))
