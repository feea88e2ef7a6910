"""Decode attention over pages of a pool as one kernel: online softmax, split lists.

The same as `rlx.generation.paged_attention.decode_xla`, which is what it is tested
against, without the gathered copy of the pages: each program of the grid (row,
key-value head, part of the list) walks its page ids and reads the pages where they
are (Kwon et al. 2023, https://arxiv.org/abs/2309.06180; Yang et al. 2025, LServe,
https://arxiv.org/abs/2502.14866). For NVIDIA GPUs, through Triton; elsewhere
`interpret=True`, or XLA.

Codes are never turned into numbers. With key = scale c + zero,
q · key = scale (q · c) + zero Σ q, and c, at most 255, is exact in bfloat16 too; so it
is with values, whose weights take the scales up.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from rlx.generation import paged_attention
from rlx.generation.paged_attention import MASKED, Scales
from rlx.types import Array

SMALLEST = 16
"""Rows and columns that a matrix product of the GPU has at least."""
_exact = functools.partial(triton.dot, precision=jax.lax.Precision.HIGHEST)


def decode(  # noqa: PLR0913 (what a kernel reads, by name)
    queries: Array,
    keys: Array,
    values: Array,
    pages: Array,
    counts: Array,
    *,
    scales: Scales | None = None,
    bits: int | None = None,
    split: int = 1,
    interpret: bool = False,
) -> Array:
    """See `rlx.generation.paged_attention.decode_xla`; one program a part of a list.

    Args:
      queries: `[B, K, g, d]`.
      keys: `[N, K, P, d]`, or codes; P and d powers of 2 on a GPU.
      values: as `keys`.
      pages: `int32[B, K, n]` in the pool; anything where the count is 0.
      counts: `int32[B, K, n]` tokens of each page that are read, its first ones.
      scales: of the codes.
      bits: 8 or 4, with `scales`.
      split: parts of the list, which run beside each other; their softmaxes are merged.
      interpret: run it as plain JAX, on any device: for tests.

    Returns:
      `[B, K, g, d]` of the queries' type.

    Raises:
      AssertionError: shapes or types do not fit.
      ValueError: scales without bits or bits without scales, `split` < 1, or sizes
        that a GPU has no matrix products for.
    """
    paged_attention.check(
        queries, keys, values, pages, counts, scales=scales, bits=bits, split=split
    )
    check_sizes({"the size of a page": keys.shape[2], "head width": keys.shape[3]})
    batch, heads, group, width = queries.shape
    rows = max(SMALLEST, pl.next_power_of_2(group))
    padded = jnp.pad(queries, ((0, 0), (0, 0), (0, rows - group), (0, 0)))
    pages, counts = paged_attention.parts(
        jnp.where(counts > 0, pages, 0), counts, split
    )
    pooled = [keys, values, *(scales or ())]

    def at_row(*index: Any) -> tuple:
        return (*index[:2], 0, 0)

    def at_part(*index: Any) -> tuple:
        return (*index, 0)

    each = pl.BlockSpec((None, None, None, rows), at_part)
    greatest = jax.ShapeDtypeStruct((batch, heads, split, rows), jnp.float32)
    found = pl.pallas_call(
        functools.partial(_kernel, bits=bits, scale=1 / math.sqrt(width)),
        grid=(batch, heads, split),
        in_specs=[
            pl.BlockSpec((None, None, rows, width), at_row),
            *(pl.BlockSpec((None, None, None, pages.shape[-1]), at_part),) * 2,
            *(_of_head(x) for x in pooled),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, rows, width), lambda *i: (*i, 0, 0)),
            each,
            each,
        ],
        out_shape=[
            jax.ShapeDtypeStruct((*greatest.shape, width), jnp.float32),
            greatest,
            greatest,
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="paged_decode",
    )(padded, pages, counts, *pooled)
    mixed, most, total = found
    merged = paged_attention.merge(most, total, mixed, axis=2)
    return merged[:, :, :group].astype(queries.dtype)


def check_sizes(sizes: dict[str, int]) -> None:
    """Raises ValueError for a size that no tile of the GPU's has."""
    for name, size in sizes.items():
        if size < SMALLEST or size & (size - 1):
            raise ValueError(
                f"{name} is {size}, the kernel needs a power of 2 from {SMALLEST} on: "
                "choose one, or use XLA"
            )


def _of_head(x: Array) -> pl.BlockSpec:
    """The whole pool of one head, left where it is."""
    pool, _, *rest = x.shape
    return pl.BlockSpec((pool, None, *rest), lambda row, head, part: (0, head, 0, 0))


def _kernel(queries: Any, pages: Any, counts: Any, *refs: Any, bits: Any, scale: float):
    """One part of the list of one group: m `[g]`, l `[g]` and o `[g, d]`.

    Refs: `queries [g, d]`, `pages [n]`, `counts [n]`; keys and values `[N, P, d]`, with
    bits their scales `[N, P, 2]`; then what is written: o, m, l.
    """
    keys, values, *scales = refs[:-3]
    size, width = keys.shape[1:]
    kind, halves = queries.dtype, 2 if bits == 4 else 1
    asked = [queries[:, pl.ds(i * width, width)] for i in range(halves)]
    rows = queries.shape[0]
    weight = jnp.zeros((rows,), jnp.float32)
    for q in asked:
        weight += jnp.sum(q.astype(jnp.float32), axis=1)

    def step(i: Any, carry: tuple) -> tuple:
        most, total, mixed = carry
        page, seen = pages[i], jnp.arange(size) < counts[i]
        scores = _product(asked, _numbers(keys, page, seen, bits, kind))
        if bits:
            factor, zero = _scale(scales[0], page, seen)
            scores = scores * factor[None] + weight[:, None] * zero[None]
        scores = jnp.where(seen[None], scores * scale, MASKED)
        now = jnp.maximum(most, jnp.max(scores, axis=1))
        weights = jnp.where(seen[None], jnp.exp(scores - now[:, None]), 0.0)
        kept = jnp.exp(most - now)
        total = total * kept + jnp.sum(weights, axis=1)
        shift = jnp.zeros((rows,), jnp.float32)
        if bits:
            factor, zero = _scale(scales[1], page, seen)
            shift = jnp.sum(weights * zero[None], axis=1)
            weights = weights * factor[None]
        read = _numbers(values, page, seen, bits, kind)
        mixed = tuple(
            old * kept[:, None] + _exact(weights.astype(v.dtype), v) + shift[:, None]
            for old, v in zip(mixed, read, strict=True)
        )
        return now, total, mixed

    begin = (
        jnp.full((rows,), MASKED, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        (jnp.zeros((rows, width), jnp.float32),) * halves,
    )
    most, total, mixed = jax.lax.fori_loop(0, pages.shape[0], step, begin)
    out, greatest, sums = refs[-3:]
    for i, part in enumerate(mixed):
        out[:, pl.ds(i * width, width)] = part
    greatest[...] = most
    sums[...] = total


def _product(queries: list, keys: list) -> Array:
    """Q kᵀ, of the halves of a head that codes of 4 bits come in."""
    return sum(_exact(q, k.T) for q, k in zip(queries, keys, strict=True))


def _numbers(ref: Any, page: Any, seen: Array, bits: Any, kind: Any) -> list:
    """A page as one matrix, or as one for each half; what is not seen is not read."""
    read = triton.load(ref.at[page], mask=seen[:, None], other=0)
    if bits == 4:
        return [(read & 15).astype(kind), (read >> 4).astype(kind)]
    return [read.astype(kind)]


def _scale(ref: Any, page: Any, seen: Array) -> tuple[Array, Array]:
    """Scale and zero of each token of a page."""
    factor, zero = (
        triton.load(ref.at[page, :, jnp.int32(i)], mask=seen, other=0.0)
        for i in range(2)
    )
    return factor, zero
