"""Filters of a language model's next word, against brute force."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import sampling

LOGITS = np.random.default_rng(0).normal(size=(20, 9)).astype(np.float32)


def kept(logits: object) -> np.ndarray:
    return np.isfinite(np.asarray(logits))


@pytest.mark.parametrize("k", [1, 3, 8])
def test_top_k_keeps_the_k_greatest(k: int) -> None:
    rank = np.argsort(np.argsort(-LOGITS, axis=-1), axis=-1)
    np.testing.assert_array_equal(kept(sampling.top_k(LOGITS, k)), rank < k)


@pytest.mark.parametrize("k", [0, 9, 100])
def test_top_k_can_keep_all(k: int) -> None:
    np.testing.assert_array_equal(sampling.top_k(LOGITS, k), LOGITS)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.7, 0.95])
def test_top_p_keeps_the_fewest_words_that_reach_p(p: float) -> None:
    found = kept(sampling.top_p(LOGITS, p))
    for row, words in zip(LOGITS, found, strict=True):
        share = np.exp(row) / np.exp(row).sum()
        count = words.sum()
        best = np.sort(share)[::-1]
        assert best[:count].sum() >= p - 1e-6
        assert count == 1 or best[: count - 1].sum() < p
        assert share[words].min() >= best[count - 1] - 1e-7


def test_top_p_of_one_keeps_all_even_under_rounding() -> None:
    logits = jnp.array([[0.0, -30.0, -40.0, -80.0]])
    assert kept(sampling.top_p(logits, 1.0)).all()


@pytest.mark.parametrize("p", [0.05, 0.5, 1.0])
def test_min_p_is_relative_to_the_greatest(p: float) -> None:
    share = np.exp(LOGITS)
    expected = share >= p * share.max(axis=-1, keepdims=True) * (1 - 1e-6)
    np.testing.assert_array_equal(kept(sampling.min_p(LOGITS, p)), expected)


def test_min_p_of_zero_keeps_all() -> None:
    np.testing.assert_array_equal(sampling.min_p(LOGITS, 0.0), LOGITS)


def test_ties_stay_together() -> None:
    logits = jnp.array([1.0, 1.0, 0.0])
    for found in (sampling.top_k(logits, 1), sampling.top_p(logits, 0.1)):
        np.testing.assert_array_equal(kept(found), [True, True, False])


def test_filters_go_one_after_the_other() -> None:
    both = sampling.top_p(sampling.top_k(LOGITS, 3), 0.5)
    assert (kept(both) <= kept(sampling.top_k(LOGITS, 3))).all()
    assert kept(both).any(axis=-1).all()


def test_a_negative_number_of_words_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k"):
        sampling.top_k(LOGITS, -1)
