"""Noise on texts: what it may do, and what it may not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import corruption
from rlx.ops.corruption import Noise

ROWS, LENGTH = 400, 9
COUNT = 1 + np.arange(ROWS) % LENGTH
MASK = jnp.asarray(np.arange(LENGTH)[None] < COUNT[:, None])
TOKENS = jnp.where(MASK, 10 + jnp.arange(LENGTH)[None], 0)
CHOICES = jnp.array([[5, 6]])
KEY = jax.random.key(3)


def test_without_noise_nothing_changes() -> None:
    noise = Noise(drop=0.0, shuffle=1.0)
    tokens, mask = corruption.corrupt(KEY, TOKENS, MASK, noise, CHOICES)
    np.testing.assert_array_equal(tokens, TOKENS)
    np.testing.assert_array_equal(mask, MASK)


@pytest.mark.parametrize("reach", [2.0, 3.0])
def test_words_move_by_less_than_the_reach(reach: float) -> None:
    tokens = np.asarray(corruption.shuffled(KEY, TOKENS, MASK, reach))
    for row in range(ROWS):
        mine = tokens[row, : COUNT[row]]
        assert sorted(mine) == list(range(10, 10 + COUNT[row]))
        moved = np.abs(mine - 10 - np.arange(COUNT[row]))
        assert moved.max() < reach
        np.testing.assert_array_equal(tokens[row, COUNT[row] :], 0)
    assert (tokens != np.asarray(TOKENS)).any()


def test_words_are_dropped_as_often_as_asked_and_one_stays() -> None:
    tokens, mask = map(np.asarray, corruption.dropped(KEY, TOKENS, MASK, 0.3))
    long = COUNT == LENGTH
    share = mask[long].sum() / (long.sum() * LENGTH)
    assert abs(share - 0.7) < 0.07  # three deviations
    for row in range(ROWS):
        mine = tokens[row][mask[row]]
        assert (np.diff(mine) > 0).all()  # in order, none twice
        np.testing.assert_array_equal(mask[row], np.arange(LENGTH) < len(mine))
    _, all_gone = corruption.dropped(KEY, TOKENS, MASK, 1.0)
    np.testing.assert_array_equal(np.sum(all_gone, axis=1), 1)


def test_words_are_replaced_by_their_choices() -> None:
    table = jnp.arange(40)[:, None] + jnp.array([[100, 200]])
    found = np.asarray(corruption.replaced(KEY, TOKENS, MASK, 0.5, table))
    before, there = np.asarray(TOKENS), np.asarray(MASK)
    changed = found != before
    assert not changed[~there].any()
    assert set((found - before)[changed]) == {100, 200}
    assert abs(changed[there].mean() - 0.5) < 0.05
    anything = np.asarray(corruption.replaced(KEY, TOKENS, MASK, 1.0, CHOICES))
    assert set(anything[there]) == {5, 6}


def test_a_word_is_said_again_in_place_of_the_next() -> None:
    found = np.asarray(corruption.repeated(KEY, TOKENS, MASK, 1.0))
    row = found[LENGTH - 1]
    np.testing.assert_array_equal(row, [10, 10, *range(11, 10 + LENGTH - 1)])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AssertionError):
        corruption.corrupt(KEY, TOKENS, MASK[:, :3], Noise(), CHOICES)
    with pytest.raises(AssertionError):
        corruption.corrupt(KEY, TOKENS, MASK, Noise(), CHOICES[0])
