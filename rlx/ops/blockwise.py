"""Exact attention over long sequences, block by block: no `[S, S]` array is ever made.

The softmax is accumulated while blocks of keys come by (Milakov and Gimelshein 2018,
https://arxiv.org/abs/1805.02867; Dao et al. 2022, FlashAttention,
https://arxiv.org/abs/2205.14135). Blocks that a query block cannot see are never
visited, so that work follows the mask: half of all blocks for causal heads, a constant
number for streaming ones (Yang et al. 2025, LServe, https://arxiv.org/abs/2502.14866,
section 3.4).

For reading, not for learning: the loop's length depends on the data, so that it has no
reverse-mode derivative.
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array

MASKED, NOTHING = -1e30, -1e29
"""The score of what is not seen, and the greatest score before anything is: both are
finite, so that a query which may see nothing gives no NaN, and their difference is
large, so that what is masked weighs exactly 0."""
NEVER = 2**30
"""A slot after all queries."""
BLOCK = 256
"""Tokens of a block, of queries and of keys; the fastest of those tried on CPUs."""


def attention(  # noqa: PLR0913 (everything but the arrays is given by name)
    queries: Array,
    keys: Array,
    values: Array,
    valid: Array | None = None,
    *,
    begin: int | Array = 0,
    used: int | Array | None = None,
    streaming: tuple[int, int] | None = None,
    block: int = BLOCK,
) -> Array:
    """softmax(q kᵀ / √d) v, causal; scores and sums in float32.

    Query i stands in slot `begin + i` and sees key slots j <= begin + i that are valid
    and, with `streaming`, those alone with i − j < window or j < sink.

    Args:
      queries: `[B, H, S, d]`.
      keys: `[B, K, L, d]`, K divides H; head h reads that of h K / H.
      values: `[B, K, L, d]`.
      valid: `bool[B, L]`; None: all.
      begin: `int32[]` slot of the first query.
      used: `int32[]` queries that count; blocks of others cost nothing and give
        anything. None: all.
      streaming: sink and window, in tokens, >= 0 and >= 1; None: all before.
      block: tokens of a block.

    Returns:
      `[B, H, S, d]` of the values' type; 0 for a query that sees nothing.

    Raises:
      AssertionError: shapes do not fit.
      ValueError: heads do not group, or an empty window.
    """
    chex.assert_rank([queries, keys, values], 4)
    chex.assert_equal_shape([keys, values])
    batch, heads, size, width = queries.shape
    groups, length = keys.shape[1:3]
    if heads % groups:
        raise ValueError(f"{groups} key-value heads do not divide {heads} heads")
    if streaming is not None and (streaming[0] < 0 or streaming[1] < 1):
        raise ValueError(f"sink >= 0 and window >= 1 are needed, got {streaming}")
    share = heads // groups
    rows = min(block, size)
    columns = min(_columns(rows, block, streaming), length)
    count = -(-size // rows)
    padded = jnp.pad(queries, [(0, 0), (0, 0), (0, count * rows - size), (0, 0)])
    parts = padded.reshape(batch, groups, share, count, rows, width)
    parts = jnp.moveaxis(parts, 3, 0).reshape(count, batch, groups, share * rows, width)
    sink, window = (0, length + size) if streaming is None else streaming
    used = size if used is None else used

    def one(inputs: tuple[Array, Array]) -> Array:
        index, part = inputs
        first = jnp.int32(begin) + index * rows
        place = jnp.tile(first + jnp.arange(rows, dtype=jnp.int32), share)
        near = jnp.maximum(first - window + 1, 0)

        def visit(carry: tuple, at: int | Array, size: int, end: int | Array) -> tuple:
            """Slots `at` ... `at + size` as far as they come before `end`."""
            start = jnp.minimum(at, length - size)  # the last visit may be short
            key, value = (
                jax.lax.dynamic_slice_in_dim(x, start, size, axis=2)
                for x in (keys, values)
            )
            slot = (start + jnp.arange(size, dtype=jnp.int32))[None]
            real = (slot >= at) & (slot < end)
            if valid is not None:
                real &= jax.lax.dynamic_slice_in_dim(valid, start, size, axis=1)
            i, j = place[None, :, None], jnp.where(real, slot, NEVER)[:, None]
            seen = j <= i
            if streaming is not None and end is length:
                seen &= (i - j < window) | (j < sink)
            return accumulate(carry, part, key, value, seen[:, None])

        carry = nothing(part.shape)
        if sink:
            carry = visit(carry, 0, min(sink, length), near)
        visits = (jnp.minimum(first + rows, length) - near + columns - 1) // columns
        visits = jnp.where(index * rows < used, visits, 0)
        carry = jax.lax.fori_loop(
            0,
            visits,
            lambda step, carry: visit(carry, near + step * columns, columns, length),
            carry,
        )
        return finish(carry).astype(values.dtype)

    found = jax.lax.map(one, (jnp.arange(count, dtype=jnp.int32), parts))
    found = found.reshape(count, batch, groups, share, rows, width)
    found = jnp.moveaxis(found, 0, 3).reshape(batch, heads, count * rows, width)
    return found[:, :, :size]


def _columns(rows: int, block: int, streaming: tuple[int, int] | None) -> int:
    """Keys of one visit: a block, or a streaming head's whole window if it is short."""
    if streaming is None:
        return block
    span = streaming[1] - 1 + rows
    return -(-span // -(-span // (4 * block)))


# --------------------------------------------------------------- the running softmax


def nothing(shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Maximum `[..., S]`, sum `[..., S]` and mixture `[..., S, d]` of no keys."""
    return (
        jnp.full(shape[:-1], NOTHING, jnp.float32),
        jnp.zeros(shape[:-1], jnp.float32),
        jnp.zeros(shape, jnp.float32),
    )


def accumulate(
    carry: tuple[Array, Array, Array],
    queries: Array,
    keys: Array,
    values: Array,
    seen: Array,
) -> tuple[Array, Array, Array]:
    """The running softmax with some more keys in it.

    Args:
      carry: of `nothing` or of this function.
      queries: `[..., S, d]`.
      keys: `[..., L, d]`.
      values: `[..., L, d]`.
      seen: `bool`, broadcasts to `[..., S, L]`.
    """
    most, total, mixed = carry
    scores = jnp.einsum(
        "...sd,...ld->...sl", queries, keys, preferred_element_type=jnp.float32
    )
    scores = jnp.where(seen, scores / math.sqrt(queries.shape[-1]), MASKED)
    greater = jnp.maximum(most, jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - greater[..., None])  # 0 where masked: see NOTHING
    shrink = jnp.exp(most - greater)
    added = jnp.einsum(
        "...sl,...ld->...sd",
        weights.astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
    )
    return (
        greater,
        total * shrink + jnp.sum(weights, axis=-1),
        mixed * shrink[..., None] + added,
    )


def finish(carry: tuple[Array, Array, Array]) -> Array:
    """`float32[..., S, d]` what a running softmax has mixed; 0 if it saw nothing."""
    _, total, mixed = carry
    return mixed / jnp.where(total > 0, total, 1.0)[..., None]
