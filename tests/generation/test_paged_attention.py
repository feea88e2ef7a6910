"""Decode attention over pages: against dense attention, in parts, in bits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.generation import paged_attention
from rlx.ops import paged

decode_xla = jax.jit(paged_attention.decode_xla, static_argnames=("bits", "split"))
ROWS, HEADS, GROUP, WIDTH, SIZE, LIST, POOL = 3, 2, 2, 8, 4, 5, 12
COUNTS = jnp.array(
    [
        [[4, 4, 4, 4, 4], [4, 0, 3, 1, 0]],
        [[1, 0, 0, 0, 0], [0, 0, 0, 0, 2]],
        [[0, 0, 0, 0, 0], [2, 4, 0, 4, 1]],
    ],
    jnp.int32,
)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def problem() -> tuple:
    queries = normal(0, ROWS, HEADS, GROUP, WIDTH)
    keys, values = (normal(i, POOL, HEADS, SIZE, WIDTH) for i in (1, 2))
    order = [
        jax.random.permutation(jax.random.key(i), POOL)[:LIST]
        for i in range(ROWS * HEADS)
    ]
    pages = jnp.stack(order).reshape(ROWS, HEADS, LIST).astype(jnp.int32)
    return queries, keys, values, jnp.where(COUNTS > 0, pages, 10**6), COUNTS


def expected(queries, keys, values, pages, counts) -> np.ndarray:
    """One row and group at a time: softmax over a list of the tokens that are read."""
    queries, keys, values = (np.asarray(x, np.float64) for x in (queries, keys, values))
    found = np.zeros(queries.shape)
    for b, k in np.ndindex(ROWS, HEADS):
        tokens = [
            (int(page), j)
            for page, count in zip(pages[b, k], counts[b, k], strict=True)
            for j in range(int(count))
        ]
        if tokens:
            here, there = np.array(tokens).T
            scores = queries[b, k] @ keys[here, k, there].T / WIDTH**0.5
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights = scores / scores.sum(axis=-1, keepdims=True)
            found[b, k] = weights @ values[here, k, there]
    return found


@pytest.mark.parametrize("split", [1, 2, 5, 7])
def test_pages_in_any_parts_are_dense_attention(split: int) -> None:
    np.testing.assert_allclose(
        decode_xla(*problem(), split=split), expected(*problem()), rtol=1e-5, atol=1e-6
    )


def test_no_token_gives_zero_and_only_its_row() -> None:
    found = np.asarray(decode_xla(*problem(), split=2))
    assert (found[2, 0] == 0).all() and (np.abs(found).max(axis=(2, 3)) > 0).sum() == 5


def test_the_order_of_pages_does_not_matter() -> None:
    queries, keys, values, pages, counts = problem()
    turned = decode_xla(queries, keys, values, pages[..., ::-1], counts[..., ::-1])
    np.testing.assert_allclose(turned, decode_xla(*problem()), rtol=1e-5, atol=1e-6)


def test_great_scores_overflow_nothing() -> None:
    queries, *rest = problem()
    found = decode_xla(1e4 * queries, *rest, split=3)
    np.testing.assert_allclose(found, expected(1e4 * queries, *rest), rtol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_read_as_what_they_stand_for(bits: int) -> None:
    queries, keys, values, pages, counts = problem()
    codes, scales = zip(*(paged.quantize(x, bits) for x in (keys, values)), strict=True)
    plain = (paged.dequantize(c, s, bits) for c, s in zip(codes, scales, strict=True))
    found = decode_xla(queries, *codes, pages, counts, scales=scales, bits=bits)
    wanted = expected(queries, *plain, pages, counts)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(found - decode_xla(*problem())).max() > 1e-3  # and no others


def test_half_precision_accumulates_in_single() -> None:
    queries, keys, values, pages, counts = problem()
    half = (x.astype(jnp.bfloat16) for x in (queries, keys, values))
    found = decode_xla(*half, pages, counts)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(found, np.float32), expected(*problem()), atol=0.04
    )


def test_rows_do_not_know_of_each_other() -> None:
    queries, keys, values, pages, counts = problem()
    alone = [
        decode_xla(
            queries[i : i + 1], keys, values, pages[i : i + 1], counts[i : i + 1]
        )
        for i in range(ROWS)
    ]
    together = decode_xla(*problem())
    np.testing.assert_allclose(jnp.concatenate(alone), together, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    queries, keys, values, pages, counts = problem()
    with pytest.raises(ValueError, match="scales and bits go together"):
        decode_xla(*problem(), bits=8)
    with pytest.raises(ValueError, match="split must be at least 1"):
        decode_xla(*problem(), split=0)
    with pytest.raises(AssertionError):
        decode_xla(queries, keys, values[:, :1], pages, counts)
    with pytest.raises(AssertionError):
        decode_xla(queries, keys, values, pages[:, :1], counts)


def test_merging_is_the_softmax_of_all() -> None:
    scores, values = normal(5, 3, 4, 7), normal(6, 3, 7, WIDTH)  # parts, g, tokens
    greatest = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - greatest[..., None])
    mixed = jnp.einsum("sgp,spd->sgd", weights, values)
    found = paged_attention.merge(greatest, weights.sum(-1), mixed, axis=0)
    whole = jax.nn.softmax(jnp.moveaxis(scores, 0, 1).reshape(4, -1), axis=-1)
    np.testing.assert_allclose(found, whole @ values.reshape(-1, WIDTH), rtol=1e-5)
