"""A classifier of texts, by hand and on texts that a word gives away."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import learner, train
from rlx.methods import classifier
from rlx.networks import text_cnn
from rlx.ops.sequences import Labelled
from rlx.types import DataSource, Method
from tests.methods import language_cases as cases

NETWORK = text_cnn.classifier(
    text_cnn.Config(cases.WORDS, 2, width=4, filters=4, windows=(1, 2))
)


def rows() -> Labelled:
    """Is there a 3, and is there a 5?"""
    texts = cases.sequences(64)
    questions = [
        jnp.any((texts.tokens == word) & texts.mask, axis=1) for word in (3, 5)
    ]
    label = jnp.stack(questions, axis=1).astype(jnp.float32)
    return Labelled(texts.tokens, texts.mask, label)


def conformance_cases() -> dict[str, tuple[Method, DataSource]]:
    config = classifier.Config(num_epochs=2, num_minibatches=2, label_smoothing=0.1)
    return {"texts": (classifier.make(NETWORK, config), cases.source(rows()))}


def test_the_loss_by_hand() -> None:
    """Log σ(1) = −0.3132617, log σ(−1) = −1.3132617; 40 does not overflow."""
    logit, label = jnp.array([1.0, 1.0, 40.0]), jnp.array([1.0, 0.0, 0.0])
    found = classifier.loss(logit, label)
    np.testing.assert_allclose(found, [0.3132617, 1.3132617, 40.0], rtol=1e-6)
    smooth = classifier.loss(logit[:1], label[:1], label_smoothing=0.2)
    np.testing.assert_allclose(smooth, [0.9 * 0.3132617 + 0.1 * 1.3132617], rtol=1e-6)


def test_its_gradient_is_probability_less_label() -> None:
    logit, label = jnp.array([0.3, -2.0]), jnp.array([1.0, 0.0])
    gradient = jax.grad(lambda z: classifier.loss(z, label).sum())(logit)
    np.testing.assert_allclose(gradient, jax.nn.sigmoid(logit) - label, rtol=1e-5)


def test_it_learns_several_questions_at_once() -> None:
    method = classifier.make(NETWORK, classifier.Config(learning_rate=3e-2))
    source = cases.source(rows(), 32)
    state = jax.jit(lambda key: train.init(method, source, key))(jax.random.key(0))
    state, metrics = jax.jit(lambda s: train.run(method, source, s, 200))(state)
    assert float(metrics["accuracy"][-20:].mean()) > 0.97
    policy = learner.policy(method, state.learner)
    texts = rows()
    found, _, _ = policy.act({"tokens": texts.tokens, "mask": texts.mask}, (), None)
    assert found.shape == (64, 2)
    assert float(jnp.mean((found > 0.5) == (texts.label > 0.5))) > 0.97


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing must lie"):
        classifier.make(NETWORK, classifier.Config(label_smoothing=1.0))
