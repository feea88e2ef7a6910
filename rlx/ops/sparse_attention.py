"""Attention that reads a part of the keys: plain definitions, the oracles of engines.

Yang et al. 2025 (LServe), https://arxiv.org/abs/2502.14866: *streaming* heads see the
first tokens and a window (Xiao et al. 2023, https://arxiv.org/abs/2309.17453; which
heads: Xiao et al. 2024, DuoAttention, https://arxiv.org/abs/2410.10819), the others
read selected pages. All scores are float32, whatever keys and values are.

Shapes: H heads, K key-value heads, S keys, T queries, head width d.
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlx.ops import paged
from rlx.types import Array

MASKED = -1e30
"""A finite score, so that a query which may see nothing gives no NaN."""


def streaming_mask(query: Array, key: Array, sink: int, window: int) -> Array:
    """Λ: key j is seen by query i if j <= i and (i − j < window or j < sink).

    Args:
      query: `int[T]` positions.
      key: `int[S]` positions.
      sink: first tokens that are always seen.
      window: last tokens that are seen, the query's own included.

    Returns:
      `bool[T, S]`.
    """
    chex.assert_rank([query, key], 1)
    i, j = query[:, None], key[None]
    return (j <= i) & ((i - j < window) | (j < sink))


def masked(queries: Array, keys: Array, values: Array, seen: Array) -> Array:
    """softmax(q kᵀ / √d) v over what is seen; nothing seen gives 0.

    Args:
      queries: `[..., T, d]`.
      keys: `[..., S, d]`.
      values: `[..., S, d]`.
      seen: `bool[..., T, S]`.

    Returns:
      `[..., T, d]` of the values' type.
    """
    chex.assert_equal_shape([keys, values])
    scores = jnp.einsum(
        "...td,...sd->...ts", queries, keys, preferred_element_type=jnp.float32
    )
    scores = jnp.where(seen, scores / math.sqrt(queries.shape[-1]), MASKED)
    weights = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0.0)
    return jnp.einsum("...ts,...sd->...td", weights.astype(values.dtype), values)


def prefill(
    queries: Array,
    keys: Array,
    values: Array,
    streaming: Array,
    *,
    sink: int,
    window: int,
) -> Array:
    """All of a prompt at once: causal heads beside streaming ones.

    Args:
      queries: `[B, S, H, d]`.
      keys: `[B, S, K, d]`; head h reads that of h K / H.
      values: `[B, S, K, d]`.
      streaming: `bool[K]`.
      sink: see `streaming_mask`.
      window: see `streaming_mask`.

    Returns:
      `[B, S, H, d]`.
    """
    chex.assert_rank([queries, keys, values], 4)
    chex.assert_shape(streaming, (keys.shape[2],))
    batch, size, heads, width = queries.shape
    place = jnp.arange(size)
    causal = place[None] <= place[:, None]
    narrow = streaming_mask(place, place, sink, window)
    seen = jnp.where(streaming[:, None, None], narrow[None], causal[None])
    group = heads // keys.shape[2]
    seen = jnp.repeat(seen, group, axis=0)
    keys, values = (jnp.repeat(x, group, axis=2) for x in (keys, values))
    queries, keys, values = (jnp.swapaxes(x, 1, 2) for x in (queries, keys, values))
    return jnp.swapaxes(masked(queries, keys, values, seen[None]), 1, 2)


def selected_pages(
    queries: Array, keys: Array, used: int, sizes: tuple[int, int], **rule: int
) -> Array:
    """The pages that the queries of one group of heads read together.

    The group's score of a page is the best of its heads', so that what one head needs
    most is read for all: one list, one gather.

    Args:
      queries: `[g, d]` of heads that share keys.
      keys: `[S, d]`, S a multiple of P; those from `used` on do not count.
      used: tokens that there are, >= 1.
      sizes: P and N, tokens of a physical and of a logical page.
      **rule: `budget`, `sink`, `recent`, `ahead` of `paged.select`.

    Returns:
      `int32[budget]`, S / P where there is no page.
    """
    page_size, logical = sizes
    valid = jnp.arange(keys.shape[0]) < used
    least, greatest = paged.key_bounds(keys, valid, logical)
    each = [paged.page_scores(query, least, greatest) for query in queries]
    scores = jnp.max(jnp.stack(each), axis=0)
    begun = jnp.arange(len(scores)) * logical < used
    physical = paged.physical_scores(scores, begun, page_size // logical)
    return paged.select(physical, jnp.int32(-(-used // page_size)), **rule)


def decode(
    queries: Array, keys: Array, values: Array, pages: Array, size: int, used: int
) -> Array:
    """One step of one group of heads, over the tokens of the selected pages.

    Args:
      queries: `[g, d]`.
      keys: `[S, d]`.
      values: `[S, d]`.
      pages: `int32[budget]`.
      size: P, tokens of a page.
      used: tokens that there are.

    Returns:
      `[g, d]`.
    """
    chex.assert_rank([queries, keys, values], 2)
    place = jnp.arange(keys.shape[0])
    seen = jnp.any((place // size)[:, None] == pages[None], axis=1) & (place < used)
    return masked(queries, keys, values, seen[None])


def blocks(size: int, block: int, sink: int, window: int) -> np.ndarray:
    """Which blocks of keys each block of queries of a streaming head reads.

    Args:
      size: tokens.
      block: tokens of a block.
      sink: see `streaming_mask`.
      window: see `streaming_mask`.

    Returns:
      `bool[S / block, S / block]`, rounded up: True where any token is seen.
    """
    count = -(-size // block)
    a, b = np.arange(count)[:, None], np.arange(count)[None]
    near = a * block - (b * block + block - 1) < window
    return (b <= a) & (near | (b * block < sink))
