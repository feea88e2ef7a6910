"""The oracles of sparse attention, against the library's dense attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.networks import transformer
from rlx.ops import sparse_attention

SIZE, BLOCK = 24, 4


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def prompt() -> tuple:
    return normal(0, 2, SIZE, 4, 8), normal(1, 2, SIZE, 2, 8), normal(2, 2, SIZE, 2, 8)


@pytest.mark.parametrize(("sink", "window"), [(0, SIZE), (4, SIZE - 4)])
def test_streaming_heads_that_see_all_are_dense(sink: int, window: int) -> None:
    seen = jnp.broadcast_to(jnp.tri(SIZE, dtype=bool), (2, SIZE, SIZE))
    found = sparse_attention.prefill(
        *prompt(), jnp.array([True, False]), sink=sink, window=window
    )
    queries, *read = prompt()
    dense = transformer.attention(queries, *(x.swapaxes(1, 2) for x in read), seen)
    np.testing.assert_allclose(found, dense, rtol=1e-5, atol=1e-5)


def test_a_streaming_head_ignores_what_it_does_not_see() -> None:
    queries, keys, values = prompt()
    other = values.at[:, 6].add(100.0)
    streaming, rule = jnp.array([True, False]), {"sink": 3, "window": 5}
    before, after = (
        sparse_attention.prefill(queries, keys, x, streaming, **rule)
        for x in (values, other)
    )
    changed = np.abs(np.asarray(after - before)).max(axis=(0, 3)) > 1e-6
    place = np.arange(SIZE)
    assert (changed[:, :2] == ((place >= 6) & (place < 11))[:, None]).all()
    assert (changed[:, 2:] == (place >= 6)[:, None]).all()


@pytest.mark.parametrize(("sink", "window"), [(0, 1), (3, 5), (4, 8), (9, 2)])
def test_blocks_are_those_that_hold_something_seen(sink: int, window: int) -> None:
    place = jnp.arange(SIZE)
    mask = sparse_attention.streaming_mask(place, place, sink, window)
    count = SIZE // BLOCK
    some = np.asarray(mask).reshape(count, BLOCK, count, BLOCK).any(axis=(1, 3))
    np.testing.assert_array_equal(
        sparse_attention.blocks(SIZE, BLOCK, sink, window), some
    )


def test_decode_over_all_pages_is_dense_and_more_pages_err_less() -> None:
    errors = []
    for seed in range(8):
        queries, keys, values = (
            normal(3 * seed + i, *shape)
            for i, shape in enumerate(((2, 8), (SIZE, 8), (SIZE, 8)))
        )
        used, rows = SIZE - 3, []
        seen = jnp.broadcast_to(jnp.arange(SIZE) < used, (2, SIZE))
        exact = sparse_attention.masked(queries, keys, values, seen)
        for budget in (2, 4, 6):
            rule = {"budget": budget, "sink": 1, "recent": 1}
            pages = sparse_attention.selected_pages(
                queries, keys, used, (BLOCK, 2), **rule
            )
            assert {0, 5} <= set(pages.tolist())  # the first, and the newest
            found = sparse_attention.decode(queries, keys, values, pages, BLOCK, used)
            rows.append(float(jnp.abs(found - exact).max()))
        errors.append(rows)
    mean = np.mean(errors, axis=0)
    assert mean[0] > mean[1] > mean[2] and max(row[2] for row in errors) < 1e-5


def test_nothing_seen_gives_nothing() -> None:
    nothing = jnp.zeros((2, SIZE), bool)
    found = sparse_attention.masked(
        normal(0, 2, 8), normal(1, SIZE, 8), normal(2, SIZE, 8), nothing
    )
    np.testing.assert_array_equal(found, jnp.zeros((2, 8)))
