"""Group-relative policy optimisation, by hand and against a loop over tokens."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.language import markov
from rlx import learner, train
from rlx.data.prompts import Prompts, Responses, respond
from rlx.generation.language_model import decoder
from rlx.generation.sampling import Sampling
from rlx.methods import grpo
from rlx.networks import transformer
from rlx.ops.language import response_log_prob
from rlx.types import DataSource, Method, PyTree
from tests.methods import language_cases as cases

MODEL = cases.model(reference=True)
KEY = jax.random.key(0)


def conformance_cases() -> dict[str, tuple[Method, DataSource]]:
    rows = cases.sequences(6)
    source = respond(
        Prompts(rows.tokens[:, : cases.PROMPT], rows.mask[:, : cases.PROMPT]),
        batch_size=4,
        samples=3,
        score=lambda rows: jnp.sum(rows.tokens * rows.response, axis=-1) * 0.1,
    )
    config = grpo.Config(
        learning_rate=1e-2, num_epochs=2, num_minibatches=2, importance_cap=2.0
    )
    return {"respond": (grpo.make(MODEL, config), source)}


@functools.cache
def batch() -> Responses:
    """Four responses to each of two prompts; what the sampler says is a little off."""
    tree = jax.tree.map(lambda x: x.reshape(2, 4, -1), cases.sequences(8))
    apart = 0.3 * jax.random.normal(jax.random.key(5), tree.tokens.shape)
    flat = cases.sequences(8)
    said = log_probs(MODEL.reference, flat).reshape(tree.tokens.shape)
    score = jnp.array([[1.0, 0.0, 0.5, 0.0], [0.3, 0.3, 0.3, 0.3]])
    return Responses(tree, said + apart, score, jnp.arange(2))


@jax.jit
def log_probs(params: PyTree, rows: PyTree) -> jax.Array:
    logits = MODEL.network.apply(params, rows.tokens, mask=rows.mask)
    return response_log_prob(logits, rows.tokens, rows.response)


def elsewhere(distance: float) -> PyTree:
    """Parameters that are not the reference's."""
    return jax.tree.map(
        lambda x: x + distance * jax.random.normal(KEY, x.shape), MODEL.reference
    )


def prepared(method: Method, params: PyTree, given: Responses) -> grpo.Prepared:
    state = learner.init(method, KEY, 1).replace(params=params)
    return method.prepare(state, given)[1]


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [(2.0, [-2.0, -2.4, -1.0]), (-2.0, [2.0, 3.0, 1.6])],
)
def test_the_surrogate_by_hand(advantage: float, expected: list[float]) -> None:
    """ρ = 1, 3/2, 1/2 and ε = 0.2: clipped to 1.2 above, to 0.8 below where A < 0."""
    old = jnp.full(3, -1.0)
    now = old + jnp.log(jnp.array([1.0, 1.5, 0.5]))
    found = grpo.loss(now, old, now, jnp.full(3, advantage), clip=0.2, beta=7.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_divergence_by_hand() -> None:
    """π_ref / π = 2: 2 − log 2 − 1 = 0.3068528; and 1/2: 1/2 + log 2 − 1."""
    now = jnp.zeros(2)
    reference = jnp.log(jnp.array([2.0, 0.5]))
    found = grpo.loss(now, now, reference, jnp.zeros(2), clip=0.2, beta=10.0)
    np.testing.assert_allclose(found, [3.0685282, 1.9314718], rtol=1e-6)


def test_advantages_by_hand() -> None:
    """Scores 0, 0, 3: mean 1, deviation √2; equal scores exactly 0."""
    score = jnp.array([[0.0, 0.0, 3.0], [0.1, 0.1, 0.1]])
    found = grpo.advantages(score)
    scale = np.sqrt(2.0) + 1e-4
    np.testing.assert_allclose(found[0], np.array([-1, -1, 2]) / scale, rtol=1e-6)
    np.testing.assert_array_equal(found[1], 0.0)
    plain = grpo.advantages(score, standardize=False)
    np.testing.assert_allclose(plain[0], [-1.0, -1.0, 2.0], rtol=1e-6)


def by_hand(config: grpo.Config, params: PyTree, old: PyTree) -> float:
    """The objective of the batch, token by token, in float64."""
    rows, given = cases.sequences(8), batch()
    now, before, reference = (
        np.asarray(log_probs(x, rows), np.float64)
        for x in (params, old, MODEL.reference)
    )
    said = np.asarray(given.log_prob, np.float64).reshape(now.shape)
    score = np.asarray(given.score, np.float64)
    total = 0.0
    for i in range(8):
        group = score[i // 4]
        advantage = group[i % 4] - group.mean()
        if config.standardize:
            advantage /= group.std() + 1e-4
        terms = []
        for s in range(rows.tokens.shape[1]):
            if not rows.response[i, s]:
                continue
            ratio = np.exp(now[i, s] - before[i, s])
            bounded = min(max(ratio, 1 - config.clip), 1 + config.clip)
            gain = min(ratio * advantage, bounded * advantage)
            other = np.exp(reference[i, s] - now[i, s])
            price = config.beta * (other - np.log(other) - 1) - gain
            if config.importance_cap is not None:
                weight = np.exp(before[i, s] - said[i, s])
                price *= min(weight, config.importance_cap)
            terms.append(price)
        total += np.mean(terms) if config.length_normalization else np.sum(terms)
    return total / 8


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"standardize": False, "length_normalization": False},
        {"importance_cap": 1.1, "beta": 0.5},
    ],
)
def test_the_objective_is_the_loop_over_tokens(fields: dict) -> None:
    config = grpo.Config(clip=0.1, **fields)
    method = grpo.make(MODEL, config)
    old, params = elsewhere(0.1), elsewhere(0.2)
    ready = prepared(method, old, batch())
    found, metrics = jax.jit(method.loss_fn)(params, (), (), ready, KEY)
    np.testing.assert_allclose(found, by_hand(config, params, old), rtol=2e-4)
    assert 0 < float(metrics["clip_fraction"]) < 1
    assert float(metrics["same_score_fraction"]) == 0.5


def test_the_first_step_is_reinforce_with_the_group_s_mean() -> None:
    config = grpo.Config(beta=0.0, standardize=False, length_normalization=False)
    method = grpo.make(MODEL, config)
    ready = prepared(method, MODEL.reference, batch())
    rows, score = cases.sequences(8), batch().score

    def reinforce(params: PyTree) -> jax.Array:
        whole = jnp.sum(log_probs(params, rows), axis=-1).reshape(2, 4)
        return -jnp.mean(whole * (score - jnp.mean(score, axis=1, keepdims=True)))

    def ours(params: PyTree) -> jax.Array:
        return method.loss_fn(params, (), (), ready, KEY)[0]

    for found, expected in zip(
        jax.tree.leaves(jax.jit(jax.grad(ours))(MODEL.reference)),
        jax.tree.leaves(jax.jit(jax.grad(reinforce))(MODEL.reference)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_equal_scores_teach_nothing_at_the_reference() -> None:
    method = grpo.make(MODEL, grpo.Config())
    given = batch().replace(score=jnp.full((2, 4), 0.7))
    ready = prepared(method, MODEL.reference, given)
    gradient = jax.grad(lambda x: method.loss_fn(x, (), (), ready, KEY)[0])
    for leaf in jax.tree.leaves(gradient(MODEL.reference)):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-7)


def test_a_sampler_that_agrees_needs_no_weights() -> None:
    said = log_probs(MODEL.reference, cases.sequences(8)).reshape(2, 4, -1)
    given = batch().replace(log_prob=said)
    found = []
    for cap in (None, 2.0):
        method = grpo.make(MODEL, grpo.Config(importance_cap=cap))
        ready = prepared(method, MODEL.reference, given)
        loss, metrics = method.loss_fn(elsewhere(0.1), (), (), ready, KEY)
        assert float(metrics["mismatch"]) < 1e-6
        np.testing.assert_allclose(metrics["mismatch_largest_ratio"], 1.0, rtol=1e-5)
        found.append(loss)
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_the_mismatch_is_reported() -> None:
    """Against NumPy, over the response's tokens alone."""
    method = grpo.make(MODEL, grpo.Config())
    ready = prepared(method, MODEL.reference, batch())
    _, metrics = method.loss_fn(MODEL.reference, (), (), ready, KEY)
    there = np.asarray(batch().sequences.response)
    apart = np.asarray(ready.log_prob - batch().log_prob, np.float64)[there]
    expected = {
        "mismatch": np.abs(apart).mean(),
        "mismatch_kl": (np.exp(apart) - apart - 1).mean(),
        "mismatch_largest_ratio": np.exp(apart).max(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


def test_it_comes_near_the_optimum_of_the_markov_language() -> None:
    """Without a price on divergence the best response is known: the greedy optimum."""
    chain = markov.random(jax.random.key(1), num_words=6, length=4, num_prompts=2)
    shape = transformer.Config(
        vocabulary_size=6, width=16, num_layers=1, num_heads=2, max_length=5
    )
    model = decoder(shape, Sampling(max_tokens=4))
    config = grpo.Config(learning_rate=3e-3, beta=0.0)
    source = respond(
        markov.prompts(chain), batch_size=8, samples=16, score=markov.score(chain)
    )
    rewards = []
    for seed in range(2):
        method = grpo.make(model, config)
        state = jax.jit(lambda key, m=method: train.init(m, source, key))(
            jax.random.key(seed)
        )
        run = jax.jit(lambda state, m=method: train.run(m, source, state, 250))
        _, metrics = run(state)
        rewards.append((metrics["score"][:10].mean(), metrics["score"][-10:].mean()))
    cold = markov.optimum(chain, 0.01)[0]
    best = float(markov.value(chain, cold).reward)
    for before, after in rewards:
        assert float(after) > 0.9 * best
        assert float(before) < 0.5 * best


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"clip": 0.0}, "clip must be positive"),
        ({"beta": -0.1}, "beta must not be negative"),
        ({"importance_cap": 0.5}, "importance_cap must be at least 1"),
    ],
)
def test_impossible_configs_are_refused(change: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        grpo.make(MODEL, grpo.Config(**change))
