"""Log-probabilities of tokens and sequences, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import language

LOGITS = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [1.0, 1.0, 2.0]]]))
TOKENS = jnp.array([[0, 1, 2]])


def test_a_token_is_predicted_by_the_logits_before_it() -> None:
    response = jnp.array([[False, True, True]])
    found = language.response_log_prob(LOGITS, TOKENS, response)
    np.testing.assert_allclose(found, np.log([[1.0, 0.25, 0.7]]), atol=1e-6)


def test_what_is_no_response_counts_nothing() -> None:
    response = jnp.array([[False, False, True]])
    found = language.response_log_prob(LOGITS, TOKENS, response)
    total = language.sequence_log_prob(found, response)
    np.testing.assert_allclose(total, [np.log(0.7)], atol=1e-6)


def test_normalised_by_the_length_of_the_response() -> None:
    log_prob = jnp.array([[0.0, -2.0, -4.0], [0.0, 0.0, 0.0]])
    response = jnp.array([[False, True, True], [False, False, False]])
    found = language.sequence_log_prob(log_prob, response, normalize=True)
    np.testing.assert_allclose(found, [-3.0, 0.0])


def test_sums_are_float32_under_half_precision() -> None:
    logits = jnp.zeros((1, 2000, 4), jnp.bfloat16)
    tokens, response = jnp.zeros((1, 2000), int), jnp.arange(2000)[None] > 0
    found = language.response_log_prob(logits, tokens, response)
    total = language.sequence_log_prob(found, response)
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, [-1999 * np.log(4)], rtol=1e-5)


def test_its_gradient_is_that_of_a_softmax() -> None:
    response = jnp.array([[False, True, False]])
    gradient = jax.grad(
        lambda x: language.response_log_prob(x, TOKENS, response).sum()
    )(LOGITS)
    expected = np.zeros((1, 3, 3))
    expected[0, 0] = np.eye(3)[1] - [0.5, 0.25, 0.25]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(AssertionError):
        language.response_log_prob(LOGITS, TOKENS, jnp.ones((1, 2), bool))
    with pytest.raises(AssertionError):
        language.token_log_prob(LOGITS, TOKENS[:, :2])
