"""Attention in blocks, against its plain definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import blockwise, sparse_attention

HEADS, GROUPS, WIDTH = 4, 2, 8


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def inputs(size: int, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    return (
        normal(0, 2, HEADS, size, WIDTH),
        normal(1, 2, GROUPS, length, WIDTH),
        normal(2, 2, GROUPS, length, WIDTH),
    )


def plain(queries, keys, values, seen) -> jax.Array:
    share = HEADS // GROUPS
    keys, values = (jnp.repeat(x, share, axis=1) for x in (keys, values))
    return sparse_attention.masked(queries, keys, values, seen)


@pytest.mark.parametrize("streaming", [None, (0, 1), (3, 5), (6, 13), (0, 40), (40, 2)])
@pytest.mark.parametrize(("size", "begin"), [(29, 0), (9, 17), (1, 30)])
def test_blocks_change_nothing(streaming, size: int, begin: int) -> None:
    queries, keys, values = inputs(size, 31)
    i, j = begin + jnp.arange(size), jnp.arange(31)
    if streaming is None:
        seen = j[None] <= i[:, None]
    else:
        seen = sparse_attention.streaming_mask(i, j, *streaming)
    found = jax.jit(
        lambda begin: blockwise.attention(
            queries, keys, values, begin=begin, streaming=streaming, block=4
        )
    )(begin)
    np.testing.assert_allclose(
        found, plain(queries, keys, values, seen[None, None]), rtol=1e-5, atol=1e-6
    )


def test_padding_is_not_read_and_what_sees_nothing_is_zero() -> None:
    queries, keys, values = inputs(10, 10)
    valid = jnp.arange(10)[None] >= jnp.array([[0], [6]])
    place = jnp.arange(10)
    seen = (place[None] <= place[:, None])[None] & valid[:, None]
    found = blockwise.attention(queries, keys, values, valid, block=4)
    np.testing.assert_allclose(
        found, plain(queries, keys, values, seen[:, None]), rtol=1e-5, atol=1e-6
    )
    assert (found[1, :, :6] == 0).all()
    loud = values.at[1, :, :6].set(jnp.nan_to_num(jnp.inf))
    again = blockwise.attention(queries, keys, loud, valid, block=4)
    np.testing.assert_array_equal(again, found)


def test_extreme_scores_stay_finite() -> None:
    queries, keys, values = (1e4 * x for x in inputs(12, 12))
    found = blockwise.attention(queries, keys, values, block=4)
    assert jnp.isfinite(found).all()


def test_half_precision_is_mixed_in_float32() -> None:
    exact = inputs(12, 12)
    halved = tuple(x.astype(jnp.bfloat16) for x in exact)
    found = blockwise.attention(*halved, block=4)
    assert found.dtype == jnp.bfloat16
    place = jnp.arange(12)
    seen = (place[None] <= place[:, None])[None, None]
    np.testing.assert_allclose(
        found.astype(jnp.float32), plain(*exact, seen), rtol=0.05, atol=0.05
    )


def test_wrong_arguments_are_named() -> None:
    queries, keys, values = inputs(4, 4)
    with pytest.raises(ValueError, match="do not divide"):
        blockwise.attention(queries[:, :3], keys, values)
    with pytest.raises(ValueError, match="window >= 1"):
        blockwise.attention(queries, keys, values, streaming=(1, 0))
    with pytest.raises(AssertionError):
        blockwise.attention(queries, keys, values[:, :1])
