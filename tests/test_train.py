"""The pure loop: states, steps, health, and how many steps there are."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from envs import probe
from rlx import train
from rlx.data.rollout import rollout
from rlx.types import FEEDBACK, DataSource, Method, PyTree
from tests import fitting, toy


def dataset(values: PyTree, steps_per_batch: int = 0) -> DataSource:
    """The same batch for ever."""

    def following(state, policy, key):
        return state + 1, values, {"batches": state}

    return DataSource(
        init=lambda key, policy: jnp.zeros(()),
        next=following,
        steps_per_batch=steps_per_batch,
    )


def mean_method(**fields: Any) -> Method:
    """w moves to the mean of the batch: w' = w - 0.1 * 2 (w - mean)."""

    def loss_fn(params, target_params, stats, batch, key):
        return jnp.mean((params - batch) ** 2), {}

    defaults = {
        "init": lambda key: jnp.zeros(()),
        "act": lambda *arguments: (None, (), {}),
        "loss_fn": loss_fn,
        "optimizer": optax.sgd(0.1),
    }
    return Method(**{**defaults, **fields})


def test_a_step_by_hand():
    method, source = mean_method(), dataset(jnp.array([1.0, 3.0]))
    state = train.init(method, source, jax.random.key(0))
    assert int(state.iteration) == 0
    state, metrics = train.step(method, source, state)
    # Gradient 2 (0 - 2) = -4 at a rate of 0.1.
    np.testing.assert_allclose(state.learner.params, 0.4, rtol=1e-6)
    assert (int(state.iteration), float(state.source)) == (1, 1.0)
    assert float(metrics["batches"]) == 0.0 and float(metrics["loss"]) == 5.0
    assert float(metrics["batch_finite"]) == float(metrics["learner_finite"]) == 1.0


def test_run_is_that_many_steps():
    method, source = toy.method(), toy.source()
    state = train.init(method, source, jax.random.key(3))
    together, metrics = jax.jit(lambda s: train.run(method, source, s, 3))(state)
    step = jax.jit(lambda s: train.step(method, source, s))
    for t in range(3):
        state, single = step(state)
        for name, value in single.items():
            np.testing.assert_allclose(metrics[name][t], value, rtol=1e-6)
    fitting.assert_close(together, state)


def test_no_key_is_used_twice():
    method, source = toy.method(), toy.source()
    with jax.debug_key_reuse(True):
        state = jax.jit(lambda key: train.init(method, source, key))(jax.random.key(0))
        jax.jit(lambda s: train.run(method, source, s, 2))(state)


def test_the_source_hears_of_the_learning():
    def loss_fn(params, target_params, stats, batch, key):
        return jnp.mean(params * batch), {FEEDBACK: 100.0 * batch}

    source = dataset(jnp.array([1.0, 3.0]))._replace(
        feedback=lambda state, signal: state + signal[1]
    )
    for method, heard in ((mean_method(), 0.0), (mean_method(loss_fn=loss_fn), 300.0)):
        state = train.init(method, source, jax.random.key(0))
        state, metrics = train.step(method, source, state)
        assert float(state.source) == 1.0 + heard
        assert FEEDBACK not in metrics


# ------------------------------------------------------------------------------ health


def health(method: Method, source: DataSource) -> tuple[float, float]:
    state = train.init(method, source, jax.random.key(0))
    _, metrics = train.step(method, source, state)
    return float(metrics["batch_finite"]), float(metrics["learner_finite"])


def test_nan_in_the_data_is_seen():
    assert health(mean_method(), dataset(jnp.array([1.0, math.nan])))[0] == 0.0
    # Infinity can be meant; what the learning makes of it is its own affair.
    assert health(mean_method(), dataset(jnp.array([1.0, math.inf]))) == (1.0, 0.0)
    assert health(mean_method(), dataset(jnp.array([1, 2]))) == (1.0, 1.0)


def test_nan_in_the_learner_is_seen_wherever_it_is():
    batch = jnp.ones(2)

    def bad_metric(params, target_params, stats, batch, key):
        return jnp.mean((params - batch) ** 2), {"entropy": jnp.inf * params[()]}

    bad_state = optax.GradientTransformation(
        lambda params: jnp.zeros(()),
        lambda gradient, state, params: (gradient, state + math.nan),
    )
    waiting = optax.GradientTransformation(
        lambda params: jnp.array(math.inf),  # the best value so far, of none
        lambda gradient, state, params: (gradient, state),
    )
    assert health(mean_method(optimizer=optax.sgd(math.inf)), dataset(batch))[1] == 0
    assert health(mean_method(loss_fn=bad_metric), dataset(batch)) == (1.0, 0.0)
    assert health(mean_method(optimizer=bad_state), dataset(batch)) == (1.0, 0.0)
    assert health(mean_method(optimizer=waiting), dataset(batch)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("size", "reward", "expected"),
    [
        (1.0, 1.0, (1.0, 1.0)),
        (1.0, math.nan, (0.0, 0.0)),
        (1.0, math.inf, (0.0, 0.0)),
        # The answer to an action without measure is no fault of the environment.
        (1e20, math.nan, (1.0, 0.0)),
        (1e20, math.inf, (1.0, 0.0)),
        (math.nan, math.nan, (1.0, 0.0)),
        (1e20, 1.0, (1.0, 1.0)),
    ],
)
def test_whose_fault_it_is(size: float, reward: float, expected: tuple[float, float]):
    env = toy.env()

    def step(state, action, key):
        state, new = env.step(state, 0.0 * jnp.nan_to_num(action), key)
        return state, new.replace(reward=jnp.float32(reward))

    def act(params, stats, observation, carry, key):
        return jnp.full((*observation.shape[:-1], 1), size), carry, {}

    source = rollout(env._replace(step=step), num_envs=2, length=2)
    assert health(toy.method()._replace(act=act), source) == expected


# ----------------------------------------------------------------------- counting steps


def test_iterations_and_gradient_steps():
    source = rollout(probe.make("chain"), num_envs=5, length=4)
    assert train.iterations_for(source, 100) == 5
    assert train.iterations_for(source, 1e2) == 5
    assert train.iterations_for(dataset(jnp.ones(2)), 7) == 7
    method = mean_method(num_epochs=3, num_minibatches=2)
    assert train.gradient_steps(method, source, 100) == 30
    assert train.gradient_steps(object(), source, 100) == 5


@pytest.mark.parametrize(
    ("num_steps", "message"),
    [
        (110, "ask for 100 or 120, or change the source's num_envs or length"),
        (19, "ask for 20,"),
        (0, "positive whole number, got 0"),
        (-20, "positive whole number"),
        (20.5, "positive whole number, got 20.5"),
        (math.nan, "positive whole number"),
        (math.inf, "positive whole number"),
    ],
)
def test_steps_that_are_no_whole_number_of_batches(num_steps: float, message: str):
    source = rollout(probe.make("chain"), num_envs=5, length=4)
    with pytest.raises(ValueError, match=message):
        train.iterations_for(source, num_steps)
