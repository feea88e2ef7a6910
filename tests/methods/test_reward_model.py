"""Reward models from preferences between responses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import train
from rlx.methods import reward_model
from rlx.networks.transformer_scores import last_real, scorer
from rlx.types import DataSource, Method
from tests.methods import language_cases as cases

NETWORK = scorer(cases.CONFIG)
PAIRS = cases.preferences(8)


def conformance_cases() -> dict[str, tuple[Method, DataSource]]:
    config = reward_model.Config(centering=0.01, learning_rate=1e-2)
    return {"pairs": (reward_model.make(NETWORK, config), cases.source(PAIRS))}


def test_the_loss_is_that_of_bradley_and_terry() -> None:
    """σ(ln 3) = 3/4: three of four prefer what is ln 3 better."""
    chosen = jnp.array([np.log(3.0), 0.0, -np.log(3.0)], jnp.float32)
    found = reward_model.loss(chosen, jnp.zeros(3))
    np.testing.assert_allclose(found, -np.log([0.75, 0.5, 0.25]), rtol=1e-6)
    assert float(reward_model.loss(jnp.array(-1e4), jnp.array(1e4))) == 2e4


def test_weights_count_pairs_and_centring_draws_to_zero() -> None:
    method = reward_model.make(NETWORK, reward_model.Config(centering=0.5))
    params = NETWORK.init(jax.random.key(0))
    total, metrics = method.loss_fn(params, params, (), PAIRS, jax.random.key(0))
    one, two = (
        np.asarray(NETWORK.apply(params, rows.tokens, mask=rows.mask), np.float64)
        for rows in (PAIRS.chosen, PAIRS.rejected)
    )
    weight = np.asarray(PAIRS.weight) / np.sum(PAIRS.weight)
    price = np.log1p(np.exp(two - one)) + 0.5 * (one + two) ** 2
    np.testing.assert_allclose(total, np.sum(weight * price), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.sum(weight * (one > two)))


def test_padding_on_either_side_leaves_the_score() -> None:
    params = NETWORK.init(jax.random.key(0))
    rows = jnp.array([[4, 5, 1, 0, 0, 0], [0, 0, 0, 4, 5, 1], [6, 4, 5, 1, 2, 2]])
    mask = jnp.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]]) > 0
    np.testing.assert_array_equal(last_real(mask), [2, 5, 3])
    scores = NETWORK.apply(params, rows, mask=mask)
    np.testing.assert_allclose(scores, np.full(3, scores[0]), rtol=1e-5)
    assert np.std(NETWORK.apply(params, rows)) > 1e-3


def test_it_learns_which_token_is_liked() -> None:
    """Responses that hold the token 5 are preferred: new ones are told apart."""
    method = reward_model.make(NETWORK, reward_model.Config(learning_rate=1e-2))
    source = cases.source(liked(64, 0), 32)
    state = train.init(method, source, jax.random.key(0))
    state, _ = jax.jit(lambda state: train.run(method, source, state, 150))(state)
    params = state.learner.params
    _, metrics = method.loss_fn(params, params, (), liked(64, 1), jax.random.key(0))
    assert metrics["accuracy"] > 0.9
    observation = {"tokens": PAIRS.chosen.tokens[:4], "mask": PAIRS.chosen.mask[:4]}
    action, _, _ = method.act(params, (), observation, (), None)
    assert action.shape == (4,)


def liked(rows: int, seed: int) -> reward_model.Preferences:
    plain = cases.sequences(rows, seed)
    tokens = jnp.where(plain.tokens == 5, 6, plain.tokens)
    better = jnp.where(plain.response & (tokens != cases.END), 5, tokens)
    better = jnp.where(plain.response.sum(-1, keepdims=True) == 1, 5, better)
    better = jnp.where(plain.response, better, tokens)
    return reward_model.Preferences(
        plain.replace(tokens=better), plain.replace(tokens=tokens), jnp.ones(rows)
    )


def test_a_decoder_may_be_where_it_starts() -> None:
    start = cases.model(reference=True).reference
    params = scorer(cases.CONFIG, start).init(jax.random.key(0))
    np.testing.assert_array_equal(params["decoder"]["embedding"], start["embedding"])
    assert params["decoder"]["embedding"] is not start["embedding"]


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="centering"):
        reward_model.make(NETWORK, reward_model.Config(centering=-1.0))
