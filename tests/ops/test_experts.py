"""Products of experts by enumeration of small vocabularies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import experts

WORDS = 8


def logits(seed: int, rows: int = 3) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (rows, WORDS))


BASE, EXPERT, ANTI = (logits(seed) for seed in range(3))


def prob(found: jax.Array) -> np.ndarray:
    return np.asarray(jax.nn.softmax(found))


def test_without_strength_or_opinion_it_is_the_base() -> None:
    for found in (
        experts.product(BASE, EXPERT, ANTI, strength=0.0),
        experts.product(BASE, EXPERT, EXPERT, strength=1.0),
    ):
        np.testing.assert_allclose(prob(found), prob(BASE), rtol=1e-6)


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_it_is_the_product_of_probabilities(strength: float) -> None:
    found = prob(experts.product(BASE, EXPERT, ANTI, strength=strength))
    p, e, a = (np.exp(np.asarray(x, np.float64)) for x in (BASE, EXPERT, ANTI))
    p, e, a = (x / x.sum(-1, keepdims=True) for x in (p, e, a))
    expected = p * (e / a) ** strength
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    alone = p * e**strength
    alone /= alone.sum(-1, keepdims=True)
    found = prob(experts.product(BASE, EXPERT, strength=strength))
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_a_known_factor_comes_out() -> None:
    """Where the expert is the anti-expert times g, the product is the base times g."""
    factor = np.linspace(0.5, 2.0, WORDS)
    expert = ANTI + jnp.log(jnp.asarray(factor, jnp.float32))[None]
    found = prob(experts.product(BASE, expert, ANTI, strength=1.0))
    expected = prob(BASE) * factor
    np.testing.assert_allclose(
        found, expected / expected.sum(-1, keepdims=True), rtol=1e-5
    )


def test_constants_change_nothing() -> None:
    found = experts.product(BASE, EXPERT, ANTI, strength=0.7, nucleus=0.8)
    for k in range(3):
        moved = [x + 300.0 * (i == k) for i, x in enumerate((BASE, EXPERT, ANTI))]
        again = experts.product(*moved, strength=0.7, nucleus=0.8)
        np.testing.assert_allclose(prob(again), prob(found), rtol=1e-3, atol=1e-7)


def test_outside_the_nucleus_nothing_is_said() -> None:
    base = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    loud = jnp.array([[0.0, 0.0, 0.0, 1e6]])
    found = prob(experts.product(base, loud, strength=1.0, nucleus=0.75))
    np.testing.assert_allclose(found[0], [0.625, 0.375, 0.0, 0.0], rtol=1e-6)
    # The most probable word stays, however small the nucleus.
    found = prob(experts.product(base, loud, strength=1.0, nucleus=1e-6))
    np.testing.assert_allclose(found[0], [1.0, 0.0, 0.0, 0.0])


def test_impossible_words_cancel_and_are_bounded() -> None:
    never = jnp.array([[0.0, -jnp.inf, 0.0]])
    base = jnp.zeros((1, 3))
    both = experts.product(base, never, never, strength=1.0)
    np.testing.assert_allclose(prob(both)[0], np.full(3, 1 / 3), rtol=1e-6)
    one = experts.product(base, never, strength=1.0)
    np.testing.assert_allclose(one[0, 1], -experts.LIMIT)
    for x in (both, one):
        assert np.all(np.isfinite(x))


def test_strength_may_differ_by_row() -> None:
    strength = jnp.array([0.0, 0.5, 1.0])
    found = experts.product(BASE, EXPERT, ANTI, strength=strength)
    for i in range(3):
        alone = experts.product(
            BASE[i], EXPERT[i], ANTI[i], strength=float(strength[i])
        )
        np.testing.assert_allclose(found[i], alone, rtol=1e-6)


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(AssertionError):
        experts.product(BASE, EXPERT[:, 1:], strength=1.0)
