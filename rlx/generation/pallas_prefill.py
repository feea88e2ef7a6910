"""Attention over a prompt as one kernel: every block of queries has a list of keys.

Yang et al. 2025 (LServe), https://arxiv.org/abs/2502.14866: causal heads
and streaming heads run in the same kernel; what differs is the list. A program loops
over the blocks on its list and over no other, so that work is proportional to the
list's length, with the online softmax of FlashAttention (Dao et al. 2022,
https://arxiv.org/abs/2205.14135). For NVIDIA GPUs, through Triton; elsewhere
`interpret=True`. What it must equal is `rlx.ops.sparse_attention.prefill`.

Shapes: B rows, H heads, K key-value heads, S tokens, d head width; a block of tokens,
C = S / block of them, rounded up.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from rlx.generation.paged_attention import MASKED
from rlx.generation.pallas_decode import check_sizes
from rlx.ops import sparse_attention
from rlx.types import Array

_exact = functools.partial(triton.dot, precision=jax.lax.Precision.HIGHEST)


def block_lists(
    size: int, block: int, streaming: Any, *, sink: int, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """The blocks that the queries of each head read: all before them, or Λ's.

    Args:
      size: S.
      block: tokens of a block.
      streaming: `bool[K]`.
      sink: first tokens that streaming heads see.
      window: last tokens that they see.

    Returns:
      `int32[K, C, longest list]`, in order and filled up with 0, and `int32[K, C]`.
    """
    few = sparse_attention.blocks(size, block, sink, window)
    every = np.tri(len(few), dtype=bool)
    read = np.where(np.asarray(streaming)[:, None, None], few[None], every[None])
    counts = read.sum(axis=-1, dtype=np.int32)
    order = np.argsort(~read, axis=-1, kind="stable")[..., : counts.max()]
    used = np.arange(counts.max()) < counts[..., None]
    return np.where(used, order, 0).astype(np.int32), counts


def prefill(  # noqa: PLR0913 (what a kernel reads, by name)
    queries: Array,
    keys: Array,
    values: Array,
    blocks: Array,
    num_blocks: Array,
    lengths: Array,
    *,
    streaming: Array,
    sink: int,
    window: int,
    block: int,
    interpret: bool = False,
) -> Array:
    """softmax(q kᵀ / √d) v over the blocks on each list, masked token by token.

    Token i sees j if j <= i and, in a streaming head, i − j < window or j < sink. Where
    the list lacks a block that is to be seen, the block is not seen (that is how
    prompts are read with less).

    Args:
      queries: `[B, H, S, d]`; d a power of 2 on a GPU.
      keys: `[B, K, S, d]`; head h reads that of h K / H.
      values: `[B, K, S, d]`.
      blocks: `int32[K, C, n]` key blocks of each block of queries, of `block_lists`.
      num_blocks: `int32[K, C]` how many of them count.
      lengths: `int32[B]` tokens of each row; what comes after them is padding, which
        nobody sees and which gets 0.
      streaming: `bool[K]`.
      sink: first tokens that streaming heads see.
      window: last tokens that they see, the query's own included.
      block: tokens of a block, a power of 2 on a GPU.
      interpret: run it as plain JAX, on any device: for tests.

    Returns:
      `[B, H, S, d]` of the queries' type; all scores and sums are float32.

    Raises:
      AssertionError: shapes do not fit.
      ValueError: sizes that a GPU has no matrix products for.
    """
    batch, heads, size, width = queries.shape
    groups, count = keys.shape[1], -(-size // block)
    chex.assert_shape([keys, values], (batch, groups, size, width))
    chex.assert_shape(blocks, (groups, count, None))
    chex.assert_shape(num_blocks, (groups, count))
    chex.assert_shape(lengths, (batch,))
    chex.assert_shape(streaming, (groups,))
    chex.assert_is_divisible(heads, groups)
    check_sizes({"block": block, "head width": width})
    lack = ((0, 0), (0, 0), (0, count * block - size), (0, 0))
    queries, keys, values = (jnp.pad(x, lack) for x in (queries, keys, values))
    windows = jnp.where(streaming, window, size).astype(jnp.int32)
    group = heads // groups
    whole = pl.BlockSpec(
        (None, None, count * block, width), lambda i, b, h: (b, h // group, 0, 0)
    )
    tile = pl.BlockSpec((None, None, block, width), lambda i, b, h: (b, h, i, 0))
    found = pl.pallas_call(
        functools.partial(_kernel, sink=sink, scale=1 / math.sqrt(width)),
        grid=(count, batch, heads),
        in_specs=[
            tile,
            whole,
            whole,
            pl.BlockSpec(
                (None, None, blocks.shape[-1]), lambda i, b, h: (h // group, i, 0)
            ),
            pl.BlockSpec((None, 1), lambda i, b, h: (h // group, i)),
            pl.BlockSpec((1,), lambda i, b, h: (b,)),
            pl.BlockSpec((1,), lambda i, b, h: (h // group,)),
        ],
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct(queries.shape, queries.dtype),
        compiler_params=triton.CompilerParams(
            num_warps=4 if block * width <= 64 * 64 else 8, num_stages=2
        ),
        interpret=interpret,
        name="block_sparse_prefill",
    )(
        queries,
        keys,
        values,
        jnp.asarray(blocks, jnp.int32),
        jnp.asarray(num_blocks, jnp.int32),
        jnp.asarray(lengths, jnp.int32),
        windows,
    )
    return found[:, :, :size]


def _kernel(  # noqa: PLR0913 (one for each array)
    queries: Any,
    keys: Any,
    values: Any,
    blocks: Any,
    num_blocks: Any,
    lengths: Any,
    windows: Any,
    out: Any,
    *,
    sink: int,
    scale: float,
):
    """One block of queries of one head, `[block, d]`; keys and values are `[S, d]`."""
    block, width = queries.shape
    first = pl.program_id(0) * block
    length, window = lengths[0], windows[0]
    asked = queries[...]
    place = first + jnp.arange(block)

    def step(i: Any, carry: tuple) -> tuple:
        most, total, mixed = carry
        start = blocks[i] * block
        there = start + jnp.arange(block)
        j, distance = there[None], place[:, None] - there[None]
        seen = (distance >= 0) & (j < length) & (place < length)[:, None]
        seen &= (distance < window) | (j < sink)
        scores = _exact(asked, keys[pl.ds(start, block), :].T) * scale
        scores = jnp.where(seen, scores, MASKED)
        now = jnp.maximum(most, jnp.max(scores, axis=1))
        weights = jnp.where(seen, jnp.exp(scores - now[:, None]), 0.0)
        kept = jnp.exp(most - now)
        read = values[pl.ds(start, block), :]
        mixed = mixed * kept[:, None] + _exact(weights.astype(read.dtype), read)
        return now, total * kept + jnp.sum(weights, axis=1), mixed

    begin = (
        jnp.full((block,), MASKED, jnp.float32),
        jnp.zeros((block,), jnp.float32),
        jnp.zeros((block, width), jnp.float32),
    )
    count = jnp.where(first < length, num_blocks[0], 0)
    _, total, mixed = jax.lax.fori_loop(0, count, step, begin)
    found = mixed / jnp.where(total > 0, total, 1.0)[:, None]
    out[...] = found.astype(out.dtype)
