"""The kernels: run as plain JAX against what they must equal; lowered for a GPU."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.generation import paged_attention, pallas_decode, pallas_prefill
from rlx.ops import paged, sparse_attention

WIDTH, SIZE = 32, 16


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


# ------------------------------------------------------------------------------ decode


def decoding(group: int) -> tuple:
    """Two rows, two groups, five pages of seven; a row of nothing, ids out of range."""
    queries = normal(0, 2, 2, group, WIDTH)
    keys, values = (normal(i, 7, 2, SIZE, WIDTH) for i in (1, 2))
    counts = jax.random.randint(jax.random.key(3), (2, 2, 5), 0, SIZE + 1, jnp.int32)
    counts = counts.at[0, 0].set(0).at[1, 0, 1:].set(0).at[1, 0, 0].set(1)
    pages = jax.random.randint(jax.random.key(4), (2, 2, 5), 0, 7, jnp.int32)
    return queries, keys, values, jnp.where(counts > 0, pages, 10**6), counts


def coded(keys: jax.Array, values: jax.Array, bits: int) -> tuple:
    codes, scales = zip(*(paged.quantize(x, bits) for x in (keys, values)), strict=True)
    return codes, {"scales": scales, "bits": bits}


@pytest.mark.parametrize(("group", "split"), [(2, 1), (3, 2)])
def test_decode_is_that_of_xla(group: int, split: int) -> None:
    problem = decoding(group)
    found = jax.jit(
        functools.partial(pallas_decode.decode, split=split, interpret=True)
    )(*problem)
    wanted = jax.jit(paged_attention.decode_xla)(*problem)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert (found[0, 0] == 0).all() and (found[1] != 0).all()


@pytest.mark.parametrize(
    ("bits", "kind", "error"), [(8, "bfloat16", 0.02), (4, "float32", 1e-5)]
)
def test_decode_reads_codes(bits: int, kind: str, error: float) -> None:
    queries, keys, values, *lists = decoding(2)
    codes, options = coded(keys, values, bits)
    found = pallas_decode.decode(
        queries.astype(kind), *codes, *lists, interpret=True, split=2, **options
    )
    wanted = paged_attention.decode_xla(
        queries.astype(kind).astype(jnp.float32), *codes, *lists, **options
    )
    assert found.dtype == kind
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=error)


def test_sizes_that_a_gpu_has_no_products_for_are_refused() -> None:
    queries, keys, values, *lists = decoding(2)
    with pytest.raises(ValueError, match="the size of a page is 15, the kernel needs"):
        pallas_decode.decode(queries, keys[:, :, 1:], values[:, :, 1:], *lists)
    with pytest.raises(ValueError, match="head width is 8"):
        pallas_decode.decode(*(x[..., :8] for x in (queries, keys, values)), *lists)


# ----------------------------------------------------------------------------- prefill

LENGTH, BLOCK = 50, 16
LENGTHS = jnp.array([50, 1, 17, 0], jnp.int32)
STREAMING = np.array([True, False])
RULE = {"sink": 4, "window": 10}


@functools.cache
def prompt(kind: str) -> tuple:
    heads = (4, 2, 2)
    made = (normal(5 + i, 4, h, LENGTH, SIZE) for i, h in enumerate(heads))
    return tuple(x.astype(kind) for x in made)


@functools.partial(jax.jit, static_argnames=("interpret",))
def prefill(queries, keys, values, blocks, counts, interpret=True):
    return pallas_prefill.prefill(
        queries,
        keys,
        values,
        blocks,
        counts,
        LENGTHS,
        streaming=jnp.array(STREAMING),
        block=BLOCK,
        interpret=interpret,
        **RULE,
    )


def whole_lists() -> tuple:
    return pallas_prefill.block_lists(LENGTH, BLOCK, STREAMING, **RULE)


@pytest.mark.parametrize(("kind", "error"), [("float32", 2e-6), ("bfloat16", 0.02)])
def test_prefill_is_masked_attention(kind: str, error: float) -> None:
    found = np.asarray(prefill(*prompt(kind), *whole_lists()).astype(jnp.float32))
    turned = (jnp.swapaxes(x.astype(jnp.float32), 1, 2) for x in prompt(kind))
    wanted = sparse_attention.prefill(*turned, jnp.array(STREAMING), **RULE)
    there = (jnp.arange(LENGTH)[None] < LENGTHS[:, None])[:, :, None, None]
    wanted = np.swapaxes(np.where(there, wanted, 0), 1, 2)
    np.testing.assert_allclose(found, wanted, atol=error)


def test_blocks_that_are_not_listed_are_not_read() -> None:
    """The last queries of the causal heads read their first and their own block."""
    blocks, counts = whole_lists()
    blocks[1, 3, :2], counts[1, 3] = [0, 3], 2
    queries, keys, values = prompt("float32")
    away = values.at[:, 1, 16:48].set(jnp.nan)
    found = prefill(queries, keys, away, blocks, counts)[0, 2:, 48:]
    place = jnp.arange(LENGTH)
    seen = (place[None] <= place[48:, None]) & ((place < 16) | (place >= 48))[None]
    wanted = sparse_attention.masked(
        queries[0, 2:, 48:], *(jnp.stack([x[0, 1]] * 2) for x in (keys, values)), seen
    )
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_lists_hold_what_heads_see_and_no_more() -> None:
    blocks, counts = whole_lists()
    assert counts.tolist() == [[1, 2, 3, 3], [1, 2, 3, 4]]
    assert [blocks[0, i, :n].tolist() for i, n in enumerate(counts[0])] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 2, 3],
    ]
    long, many = pallas_prefill.block_lists(4096, 64, [True], sink=64, window=256)
    assert long.shape == (1, 64, 6) and many.max() == 6  # whatever the length


def test_blocks_that_a_gpu_has_no_products_for_are_refused() -> None:
    with pytest.raises(ValueError, match="block is 8, the kernel needs a power of 2"):
        pallas_prefill.prefill(
            *prompt("float32"),
            *pallas_prefill.block_lists(LENGTH, 8, STREAMING, **RULE),
            LENGTHS,
            streaming=jnp.array(STREAMING),
            block=8,
            **RULE,
        )


# ------------------------------------------------------------------------------ a GPU


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_decode_is_lowered_for_a_gpu(bits: int | None) -> None:
    queries, keys, values, *lists = decoding(2)
    options: dict = {}
    if bits:
        (keys, values), options = coded(keys, values, bits)
    queries = queries.astype(jnp.bfloat16)
    call = jax.jit(functools.partial(pallas_decode.decode, split=2, **options))
    made = call.trace(queries, keys, values, *lists)
    text = made.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 1


def test_prefill_is_lowered_for_a_gpu() -> None:
    made = prefill.trace(*prompt("bfloat16"), *whole_lists(), interpret=False)
    text = made.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 1
