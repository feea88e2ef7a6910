"""The learner: steps, minibatches, stopping, sums of losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlx import learner
from rlx.ops import targets
from rlx.types import Method


def quadratic(params, target_params, stats, batch, key):
    """Mean of (w - x)^2 over the batch."""
    return jnp.mean((params - batch) ** 2), {"seen": jnp.mean(batch)}


def make(**fields):
    defaults = {
        "init": lambda key: jnp.zeros(()),
        "act": lambda *arguments: (None, (), {}),
        "loss_fn": quadratic,
        "optimizer": optax.sgd(0.1),
    }
    return Method(**{**defaults, **fields})


def test_one_step_by_hand():
    # w = 0, batch mean 2: gradient of mean (w - x)^2 is 2 (0 - 2) = -4, so w = 0.4.
    method = make()
    state = learner.init(method, jax.random.key(0))
    state, metrics = learner.update(
        method, state, jnp.array([1.0, 3.0]), jax.random.key(1)
    )
    np.testing.assert_allclose(state.params, 0.4, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 5.0)
    np.testing.assert_allclose(metrics["gradient_norm"], 4.0)
    assert int(state.step) == 1


def test_every_epoch_sees_every_sample_once():
    method = make(num_epochs=3, num_minibatches=4, optimizer=optax.sgd(0.0))
    state = learner.init(method, jax.random.key(0))
    batch = jnp.arange(12.0)
    seen = []

    def spy(params, target_params, stats, batch, key):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), batch, ordered=True)
        return quadratic(params, target_params, stats, batch, key)

    state, metrics = learner.update(
        method._replace(loss_fn=spy), state, batch, jax.random.key(1)
    )
    jax.effects_barrier()
    assert int(state.step) == 12
    # `value_and_grad` may trace the spy once per step: 12 minibatches of 3.
    assert [len(x) for x in seen] == [3] * 12
    epochs = np.array(seen).reshape(3, 12)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(12.0))
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_allclose(metrics["seen"], 5.5, rtol=1e-6)


def test_a_loss_can_end_the_steps_on_a_batch():
    def stops_at_half(params, target_params, stats, batch, key):
        loss, _ = quadratic(params, target_params, stats, batch, key)
        return loss, {learner.STOP: params > 0.5, "weight": params}

    method = make(loss_fn=stops_at_half, num_epochs=50)
    state = learner.init(method, jax.random.key(0))
    state, metrics = jax.jit(
        lambda s: learner.update(method, s, jnp.ones(4), jax.random.key(1))
    )(state)
    # w: 0, .2, .36, .488, .5904 -> the fifth step sees w > .5 and is not taken.
    np.testing.assert_allclose(state.params, 0.5904, rtol=1e-5)
    assert int(state.step) == 4
    np.testing.assert_allclose(metrics["weight"], (0 + 0.2 + 0.36 + 0.488) / 4)
    assert learner.STOP not in metrics


def test_the_target_follows_its_rule():
    method = make(target_update=targets.ema(0.5))
    state = learner.init(method, jax.random.key(0))
    state, _ = learner.update(method, state, jnp.array([2.0]), jax.random.key(1))
    np.testing.assert_allclose(state.params, 0.4, rtol=1e-6)
    np.testing.assert_allclose(state.target_params, 0.2, rtol=1e-6)


def test_a_method_can_replace_the_update():
    def update(state, batch, key):
        return state.replace(params=jnp.mean(batch), step=state.step + 1), {}

    method = make(update=update)
    state = learner.init(method, jax.random.key(0))
    state, _ = learner.update(method, state, jnp.array([1.0, 5.0]), jax.random.key(1))
    assert float(state.params) == 3.0


def test_weighted_sum_adds_losses_gradients_and_metrics():
    def pull(target):
        def loss_fn(params, target_params, stats, batch, key):
            return (params - target) ** 2, {"distance": jnp.abs(params - target)}

        return loss_fn

    loss_fn = learner.weighted_sum(left=(1.0, pull(1.0)), right=(0.25, pull(-3.0)))
    value, metrics = loss_fn(jnp.zeros(()), None, (), None, jax.random.key(0))
    np.testing.assert_allclose(value, 1.0 + 0.25 * 9.0)
    assert set(metrics) == {
        "left/loss",
        "left/distance",
        "right/loss",
        "right/distance",
    }
    gradient = jax.grad(lambda w: loss_fn(w, None, (), None, jax.random.key(0))[0])(
        jnp.zeros(())
    )
    np.testing.assert_allclose(gradient, -2.0 + 0.25 * 6.0)


def test_terms_of_a_sum_draw_from_different_keys():
    def noisy(params, target_params, stats, batch, key):
        return jax.random.normal(key), {}

    loss_fn = learner.weighted_sum(a=(1.0, noisy), b=(1.0, noisy))
    _, metrics = loss_fn(jnp.zeros(()), None, (), None, jax.random.key(0))
    assert metrics["a/loss"] != metrics["b/loss"]


def test_map_batch_gives_a_term_its_own_part():
    loss_fn = learner.map_batch(lambda batch: batch["mine"], quadratic)
    value, _ = loss_fn(
        jnp.zeros(()), None, (), {"mine": jnp.full((2,), 3.0)}, jax.random.key(0)
    )
    assert float(value) == 9.0


def test_bad_calls_say_what_to_do():
    with pytest.raises(ValueError, match="at least one term"):
        learner.weighted_sum()
    method = make(num_minibatches=5)
    state = learner.init(method, jax.random.key(0))
    with pytest.raises(ValueError, match="divisors of 12"):
        learner.update(method, state, jnp.arange(12.0), jax.random.key(1))
    with pytest.raises(ValueError, match="leading axis"):
        learner.update(method, state, (jnp.zeros(4), jnp.zeros(3)), jax.random.key(1))
