"""Scores, entropies and metrics of recommendation: closed forms."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import recommendation


def entropy(weight, has):
    weight, has = jnp.asarray(weight, jnp.float32), jnp.asarray(has, jnp.float32)
    inside = (weight > 0).astype(jnp.float32)
    return recommendation.attribute_entropy(
        weight @ has, weight.sum(), inside @ has, inside.sum()
    )


def test_weighted_entropy(generator) -> None:
    """Half the weight is one bit; all or none is exactly 0, however sums round."""
    weight = np.array([0.1, 0.2, 0.3, 0.0])
    has = np.array([[1, 0, 1], [1, 0, 1], [1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(entropy(weight, has), [0, 0, 1], atol=1e-6)
    assert entropy(weight, has)[0] == 0 == entropy(weight, has)[1]
    weight, has = generator.random(50) + 0.01, generator.random((50, 7)) < 0.4
    np.testing.assert_allclose(
        entropy(weight, has), entropy(1000 * weight, has), atol=1e-5
    )
    share = has.mean(0)
    plain = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    np.testing.assert_allclose(entropy(np.full(50, 0.3), has), plain, atol=1e-5)
    np.testing.assert_array_equal(entropy(np.zeros(50), has), np.zeros(7))


def test_scores_are_clipped_and_penalised() -> None:
    items = jnp.array([[1.0, 0], [0, 1], [1e9, 0]])
    score = recommendation.item_scores(
        jnp.array([2.0, 3.0]), items, jnp.array([0.5, 0.0, 0.0])
    )
    np.testing.assert_allclose(score, [1.5, 3, 30])
    with pytest.raises(AssertionError):
        recommendation.item_scores(jnp.zeros(3), items, jnp.zeros(3))


def test_top_masks_what_is_missing() -> None:
    score = jnp.array([1.0, 3, 3, 9])
    valid = jnp.array([True, True, True, False])
    index, mask = recommendation.top(score, valid, 4)
    assert index[:3].tolist() == [1, 2, 0] and mask.tolist() == [True] * 3 + [False]
    with pytest.raises(ValueError, match="cannot choose 5 of 4"):
        recommendation.top(score, valid, 5)


def test_hdcg_by_hand() -> None:
    """First item of the first turn: 1. Later turns and ranks are worth less."""
    turn, rank = (x.ravel() for x in np.meshgrid(np.arange(15), np.arange(1, 11)))
    value = np.asarray(
        recommendation.hdcg(jnp.array(turn), jnp.array(rank), jnp.ones(150, bool))
    ).reshape(10, 15)
    np.testing.assert_allclose(value[0, 0], 1.0)
    assert (np.diff(value, axis=0) < 0).all() and (np.diff(value, axis=1) < 0).all()
    # Turn 1, rank 3: 1/log2(4) + (1/log2(3) - 1/2) / log2(4).
    np.testing.assert_allclose(value[2, 1], 0.5 + (1 / np.log2(3) - 0.5) / 2, rtol=1e-6)
    lost = recommendation.hdcg(jnp.array([3]), jnp.array([0]), jnp.array([False]))
    assert float(lost[0]) == 0


def test_rates_and_turns() -> None:
    turn, success = jnp.array([0, 2, 4, 5]), jnp.array([True, True, True, False])
    rate = recommendation.success_rate(turn, success, 5)
    np.testing.assert_allclose(rate, [0.25, 0.25, 0.5, 0.5, 0.75])
    # 1, 3 and 5 turns; the failure counts 5.
    np.testing.assert_allclose(recommendation.average_turns(turn, success, 5), 3.5)
