"""Bins against a slow loop, and control words as a bijection."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops.control_tokens import Controls, assign_bins, prepended

STYLES, BINS = 3, 5


def slow_bins(
    values: np.ndarray, group: np.ndarray, there: np.ndarray, ties: str = "order"
) -> np.ndarray:
    """Sorted lists, row by row."""
    found = np.zeros(values.shape, np.int32)
    for k, s in itertools.product(range(values.shape[1]), range(STYLES)):
        rows = [i for i in range(len(values)) if there[i] and group[i] == s]
        if not rows:
            continue
        if len({values[i, k] for i in rows}) == 1:
            found[rows, k] = BINS // 2
            continue
        rows = sorted(rows, key=lambda i: (values[i, k], i))
        for rank, i in enumerate(rows):
            equal = [r for r, j in enumerate(rows) if values[j, k] == values[i, k]]
            place = (equal[0] + equal[-1]) / 2 if ties == "together" else rank
            found[i, k] = int(BINS * place // len(rows))
    return found


bins = jax.jit(assign_bins, static_argnames=("num_groups", "num_bins", "ties"))


def both(values: np.ndarray, group: np.ndarray, there: np.ndarray, ties: str = "order"):
    found = bins(
        jnp.asarray(values, jnp.float32),
        jnp.asarray(group),
        jnp.asarray(there),
        num_groups=STYLES,
        num_bins=BINS,
        ties=ties,
    )
    return np.asarray(found), slow_bins(values.astype(np.float32), group, there, ties)


def case(generator: np.random.Generator, rows: int, levels: int = 0):
    values = generator.normal(size=(rows, 2))
    if levels:
        values = generator.integers(0, levels, (rows, 2)) / levels
    return values, generator.integers(0, STYLES, rows), generator.random(rows) < 0.8


@pytest.mark.parametrize("ties", ["order", "together"])
@pytest.mark.parametrize("levels", [0, 4])
def test_bins_are_those_of_sorted_lists(
    generator: np.random.Generator, ties: str, levels: int
) -> None:
    for _ in range(5):
        np.testing.assert_array_equal(*both(*case(generator, 60, levels), ties))


def test_bins_by_hand() -> None:
    """Six rows of one style and one of another, which has no variance."""
    values = np.array([[0.3], [0.1], [0.2], [0.6], [0.5], [0.4], [9.0]])
    group = np.array([0, 0, 0, 0, 0, 0, 1])
    found, _ = both(values, group, np.ones(7, bool))
    # Ranks 2 0 1 5 4 3; ⌊5 rank / 6⌋.
    np.testing.assert_array_equal(found[:, 0], [1, 0, 0, 4, 3, 2, 2])


def test_counts_are_equal_give_or_take_one(generator: np.random.Generator) -> None:
    for rows in (60, 61, 64):
        values = generator.integers(0, 3, (rows, 2)).astype(float)
        found, _ = both(values, np.zeros(rows, int), np.ones(rows, bool))
        for k in range(2):
            counts = np.bincount(found[:, k], minlength=BINS)
            assert counts.max() - counts.min() <= 1


def test_bins_ignore_scale_order_and_padding(generator: np.random.Generator) -> None:
    values, group, there = case(generator, 60)
    found, _ = both(values, group, there)
    np.testing.assert_array_equal(found, both(np.exp(3 * values), group, there)[0])
    order = generator.permutation(60)
    moved, _ = both(values[order], group[order], there[order])
    np.testing.assert_array_equal(found[order], moved)
    wild = np.where(there[:, None], values, np.nan)
    np.testing.assert_array_equal(found, both(wild, group, there)[0])
    assert np.all(found[~there] == 0)


def test_fewer_rows_than_bins(generator: np.random.Generator) -> None:
    values = np.array([[0.2], [0.1], [0.3]])
    found, expected = both(values, np.zeros(3, int), np.ones(3, bool))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[:, 0], [1, 0, 3])


def test_constant_metrics_lie_in_the_middle() -> None:
    found, _ = both(np.full((7, 2), 0.25), np.zeros(7, int), np.ones(7, bool))
    np.testing.assert_array_equal(found, np.full((7, 2), BINS // 2))


def test_equal_values_share_a_bin_together() -> None:
    values = np.array([[1.0], [1.0], [1.0], [0.0], [1.0]])
    found, _ = both(values, np.zeros(5, int), np.ones(5, bool), "together")
    # The ones have ranks 1 to 4, in the middle 2.5; the zero has rank 0.
    np.testing.assert_array_equal(found[:, 0], [2, 2, 2, 0, 2])


def test_control_words_are_a_bijection() -> None:
    controls = Controls(num_words=17, num_metrics=3, num_styles=4, num_bins=5)
    seen = []
    for s, b in itertools.product(range(4), range(5)):
        words = controls.tokens(jnp.array(s), jnp.full(3, b))
        metric, style, level = controls.read(words)
        np.testing.assert_array_equal(metric, [0, 1, 2])
        np.testing.assert_array_equal(style, [s, s, s])
        np.testing.assert_array_equal(level, [b, b, b])
        seen += np.asarray(words).tolist()
    assert sorted(seen) == list(range(17, controls.vocabulary_size))
    assert controls.size == len(seen) == 60
    best = controls.best(jnp.array([2, 0]))
    np.testing.assert_array_equal(
        best[0], controls.tokens(jnp.int32(2), jnp.full(3, 4))
    )
    # By hand: 17 + (1 · 4 + 2) · 5 + 4.
    assert best[0, 1] == 51


def test_words_stand_before_rows() -> None:
    row, mask = jnp.array([[0, 5, 6]]), jnp.array([[False, True, True]])
    tokens, there = prepended(jnp.array([[20, 21]]), row, mask)
    np.testing.assert_array_equal(tokens, [[20, 21, 0, 5, 6]])
    np.testing.assert_array_equal(there, [[True, True, False, True, True]])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="num_bins must be positive"):
        Controls(num_words=3, num_bins=0)
    with pytest.raises(AssertionError):
        Controls(num_words=3).tokens(jnp.zeros(2, int), jnp.zeros((2, 2), int))
    with pytest.raises(ValueError, match="ties must be"):
        one = jnp.zeros((1, 1)), jnp.zeros(1, int), jnp.ones(1, bool)
        assign_bins(*one, num_groups=1, num_bins=5, ties="random")
