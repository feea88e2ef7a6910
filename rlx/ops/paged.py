"""Pages of a key-value cache: their key bounds, their scores, which are read, in bits.

Yang et al. 2025 (LServe), https://arxiv.org/abs/2502.14866, section 3.5: a decode step
reads a fixed number of pages, those whose keys could match the query best. How well a
page could match is bounded by the least and greatest key of each channel (Tang et al.
2024, Quest, https://arxiv.org/abs/2406.10774). Bounds are kept for small *logical*
pages, memory is read by large *physical* ones of several logical pages each.

Shapes: n physical pages of P tokens, each of m logical pages of N = P / m tokens, head
width d.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array

LEVELS = {8: 255, 4: 15}
"""Greatest code of each number of bits."""


# --------------------------------------------------------------------------- bounds


def key_bounds(keys: Array, valid: Array, size: int) -> tuple[Array, Array]:
    """Least and greatest key of every logical page, channel by channel.

    Args:
      keys: `[..., S, d]`, positions already turned in; S a multiple of `size`.
      valid: `bool[..., S]`; a page without any valid token gets zeros.
      size: N, tokens of a logical page.

    Returns:
      Two arrays `[..., S / N, d]`.

    Raises:
      AssertionError: shapes do not fit.
      ValueError: S is no multiple of N.
    """
    chex.assert_equal_shape_prefix([keys, valid], valid.ndim)
    chex.assert_rank(valid, keys.ndim - 1)
    *lead, length, width = keys.shape
    if length % size:
        raise ValueError(f"{length} keys are no whole number of pages of {size}")
    pages = keys.reshape(*lead, length // size, size, width)
    seen = valid.reshape(*lead, length // size, size)[..., None]
    some = jnp.any(seen, axis=-2)
    least = jnp.min(jnp.where(seen, pages, jnp.inf), axis=-2)
    greatest = jnp.max(jnp.where(seen, pages, -jnp.inf), axis=-2)
    return jnp.where(some, least, 0), jnp.where(some, greatest, 0)


def page_scores(query: Array, least: Array, greatest: Array) -> Array:
    """Bounds on the products: u = Σ_c max(q_c k_c^min, q_c k_c^max) of each page.

    Equation 2 of LServe. Because max(q k^min, q k^max) is q k^max where q >= 0 and
    q k^min elsewhere, u is one product with the positive and one with the negative
    part of the query.

    Args:
      query: `[..., d]`.
      least: `[..., l, d]`, of `key_bounds`.
      greatest: `[..., l, d]`.

    Returns:
      `float32[..., l]`.
    """
    chex.assert_equal_shape([least, greatest])
    chex.assert_equal_shape_prefix([query, least], query.ndim - 1)

    return group_scores(query[..., None, :], least, greatest)


def group_scores(queries: Array, least: Array, greatest: Array) -> Array:
    """The best score of each page among queries that share their keys.

    What one of a group's heads needs most is read for all of them: one list of pages,
    one gather.

    Args:
      queries: `[..., g, d]`.
      least: `[..., l, d]`, of `key_bounds`.
      greatest: `[..., l, d]`.

    Returns:
      `float32[..., l]`, the greatest u of `page_scores`.
    """
    chex.assert_equal_shape([least, greatest])
    chex.assert_equal_shape_prefix([queries, least], queries.ndim - 2)

    def product(q: Array, k: Array) -> Array:
        return jnp.einsum(
            "...gd,...ld->...gl", q, k, preferred_element_type=jnp.float32
        )

    positive, negative = jnp.maximum(queries, 0), jnp.minimum(queries, 0)
    scores = product(positive, greatest) + product(negative, least)
    return jnp.max(scores, axis=-2)


def physical_scores(scores: Array, valid: Array, parts: int) -> Array:
    """A physical page is as good as the best of its logical pages.

    Args:
      scores: `[..., n m]` of logical pages.
      valid: `bool[..., n m]`, whether a logical page holds a token.
      parts: m.

    Returns:
      `[..., n]`; −∞ for pages without a token.
    """
    chex.assert_equal_shape([scores, valid])
    scores = jnp.where(valid, scores, -jnp.inf)
    *lead, count = scores.shape
    return jnp.max(scores.reshape(*lead, count // parts, parts), axis=-1)


# ------------------------------------------------------------------------- selection


def select(
    scores: Array, used: Array, *, budget: int, sink: int, recent: int, ahead: int = 0
) -> Array:
    """Which pages are read: first, last, and those of the greatest scores.

    A selection can be used again while the sequence grows: its last `ahead` entries
    are the pages that come after the newest one, empty now and read once they fill.

    Args:
      scores: `[..., n]` of physical pages.
      used: `int32[...]` pages that hold a token, >= 1.
      budget: entries of a selection.
      sink: first pages, which are always read.
      recent: last pages, which are always read; >= 1.
      ahead: pages to come.

    Returns:
      `int32[..., budget]`, no page twice; n stands where there is no page.

    Raises:
      ValueError: `budget` does not hold what is always read, or exceeds n.
    """
    chex.assert_equal_shape_prefix([scores, used], used.ndim)
    chex.assert_rank(scores, used.ndim + 1)
    count = scores.shape[-1]
    kept = sink + recent + ahead
    if recent < 1 or budget < kept:
        raise ValueError(
            f"a budget of {budget} pages does not hold {sink} sink pages, {recent} "
            f"recent pages (at least 1) and {ahead} pages ahead"
        )
    if budget > count + ahead:
        raise ValueError(f"a budget of {budget} pages, but there are {count}")
    page = jnp.arange(count, dtype=jnp.int32).reshape((1,) * used.ndim + (count,))
    end = used[..., None]
    always = (page < sink) | (page >= end - recent)
    ranked = jnp.where(always, jnp.inf, jnp.nan_to_num(scores.astype(jnp.float32)))
    ranked = jnp.where(page < end, ranked, -jnp.inf)
    best, chosen = jax.lax.top_k(ranked, budget - ahead)
    chosen = jnp.where(best == -jnp.inf, count, chosen).astype(jnp.int32)
    following = end + jnp.arange(ahead, dtype=jnp.int32).reshape(
        (1,) * used.ndim + (ahead,)
    )
    return jnp.concatenate([chosen, jnp.minimum(following, count)], axis=-1)


def pages_ahead(interval: int, page_size: int) -> int:
    """Pages that a sequence may begin before its selection is made anew."""
    return -(-(interval - 1) // page_size)


# ---------------------------------------------------------------------- quantisation


def quantize(x: Array, bits: int) -> tuple[Array, Array]:
    """Codes of `bits` bits for each vector, with its own scale and zero.

    code = round((x − min) / scale), scale = (max − min) / (2^bits − 1), over the last
    axis: what is read back is at most scale / 2 away.

    Args:
      x: `[..., d]`; d even for 4 bits.
      bits: 8, or 4: two codes in a byte, channel c beside channel c + d / 2.

    Returns:
      Codes `uint8[..., d]` or `[..., d / 2]`, and `float32[..., 2]` scale and zero.

    Raises:
      ValueError: another number of bits, or an odd d with 4.
    """
    chex.assert_type(x, float)
    top = _levels(bits)
    if bits == 4 and x.shape[-1] % 2:
        raise ValueError(f"4 bits need an even head width, got {x.shape[-1]}")
    x = x.astype(jnp.float32)
    zero, most = jnp.min(x, axis=-1), jnp.max(x, axis=-1)
    scale = (most - zero) / top
    divisor = jnp.where(scale > 0, scale, 1.0)
    codes = jnp.round((x - zero[..., None]) / divisor[..., None])
    codes = jnp.clip(codes, 0, top).astype(jnp.uint8)
    if bits == 4:
        low, high = jnp.split(codes, 2, axis=-1)
        codes = low | (high << 4)
    return codes, jnp.stack([scale, zero], axis=-1)


def dequantize(codes: Array, scale: Array, bits: int) -> Array:
    """`float32[..., d]` from what `quantize` returned."""
    _levels(bits)
    codes = unpack(codes, bits).astype(jnp.float32)
    return codes * scale[..., :1] + scale[..., 1:]


def unpack(codes: Array, bits: int) -> Array:
    """`uint8[..., d]`, one code to a byte."""
    if bits != 4:
        return codes
    return jnp.concatenate([codes & 15, codes >> 4], axis=-1)


def _levels(bits: int) -> int:
    if bits not in LEVELS:
        raise ValueError(f"bits must be one of {tuple(LEVELS)}, got {bits}")
    return LEVELS[bits]
