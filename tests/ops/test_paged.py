"""Pages: bounds, scores, selection, codes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import paged


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_no_key_of_a_page_matches_better_than_its_score() -> None:
    keys, query = normal(0, 3, 32, 8), normal(1, 3, 8)
    valid = jnp.arange(32)[None] < jnp.array([[32], [19], [1]])
    exact = np.asarray(jnp.einsum("bd,bsd->bs", query, keys))
    score = paged.page_scores(query, *paged.key_bounds(keys, valid, 4))
    best = np.where(valid, exact, -np.inf).reshape(3, 8, 4).max(axis=-1)
    assert (np.asarray(score) >= best - 1e-5).all()
    single = paged.page_scores(query, *paged.key_bounds(keys, valid, 1))
    np.testing.assert_allclose(single, np.where(valid, exact, 0), atol=1e-5)


def test_a_physical_page_is_as_good_as_its_best_part() -> None:
    valid = jnp.array([[True, True, True, False, False, False]])
    found = paged.physical_scores(jnp.arange(6.0)[None], valid, 2)
    np.testing.assert_array_equal(found, [[1, 2, -np.inf]])


def test_first_last_and_best_pages_are_selected() -> None:
    scores = jnp.array([[0.0, 5, 1, 9, 2, 3, 7, 8], [0.0, 5, 1, 9, 2, 3, 7, 8]])
    rule = {"budget": 4, "sink": 1, "recent": 1}
    found = paged.select(scores, jnp.array([6, 2]), **rule)
    assert set(found[0].tolist()) == {0, 1, 3, 5}
    assert sorted(found[1].tolist()) == [0, 1, 8, 8]  # 8: there is no page
    ahead = paged.select(scores, jnp.array([6, 8]), ahead=1, **rule)
    assert set(ahead[0].tolist()) == {0, 3, 5, 6}
    assert set(ahead[1].tolist()) == {0, 3, 7, 8}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"budget": 3, "sink": 2, "recent": 2}, "does not hold 2 sink pages"),
        ({"budget": 3, "sink": 0, "recent": 0}, "at least 1"),
        ({"budget": 9, "sink": 0, "recent": 1}, "9 pages, but there are 8"),
    ],
)
def test_impossible_budgets_are_refused(rule: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paged.select(jnp.zeros((8,)), jnp.int32(4), **rule)


@pytest.mark.parametrize(
    ("interval", "size", "pages"), [(1, 4, 0), (2, 4, 1), (5, 4, 1), (6, 4, 2)]
)
def test_pages_ahead_are_those_that_can_begin(
    interval: int, size: int, pages: int
) -> None:
    begun = max((size - 1 + step) // size for step in range(interval))
    assert paged.pages_ahead(interval, size) == pages == begun


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_half_a_step_away(bits: int) -> None:
    x = 5 * normal(2, 6, 7, 8)
    codes, scale = paged.quantize(x, bits)
    assert codes.dtype == jnp.uint8 and codes.shape == (6, 7, bits)
    error = jnp.abs(paged.dequantize(codes, scale, bits) - x)
    assert (error <= scale[..., :1] * (0.5 + 1e-4)).all()
    flat = jnp.full((2, 8), -3.7)
    np.testing.assert_array_equal(
        paged.dequantize(*paged.quantize(flat, bits), bits), flat
    )


def test_two_codes_of_a_byte_come_back() -> None:
    byte = jnp.arange(256, dtype=jnp.uint8)[:, None]
    parts = np.asarray(paged.unpack(byte, 4))
    assert len({tuple(row) for row in parts.tolist()}) == 256 and parts.max() == 15
    # Rows from 0 to 15 have scale 1: packed and read back they are themselves.
    rows = jnp.array([[0.0, 15, 3, 8], [15.0, 0, 11, 6]])
    codes, scale = paged.quantize(rows, 4)
    np.testing.assert_array_equal(paged.unpack(codes, 4), rows)
    np.testing.assert_array_equal(scale, [[1, 0], [1, 0]])


def test_other_codes_and_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="bits must be one of"):
        paged.quantize(jnp.zeros((2, 4)), 2)
    with pytest.raises(ValueError, match="even head width"):
        paged.quantize(jnp.zeros((2, 3)), 4)
    with pytest.raises(ValueError, match="no whole number of pages"):
        paged.key_bounds(jnp.zeros((6, 2)), jnp.ones(6, bool), 4)
