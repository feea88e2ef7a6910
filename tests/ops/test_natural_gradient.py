"""Natural gradients: against dense matrices, and MDPO's step against TRPO's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rlx.ops import distributions, natural_gradient

NUM_STATES, NUM_ACTIONS, NUM_FEATURES = 4, 3, 5


def linear_softmax():
    """Features, parameters, state weights and advantages of a small softmax policy."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (NUM_STATES, NUM_ACTIONS, NUM_FEATURES)
    features = jax.random.normal(keys[0], shape, jnp.float64)
    params = {"weights": 0.5 * jax.random.normal(keys[1], (NUM_FEATURES,), jnp.float64)}
    advantage = jax.random.normal(keys[2], shape[:2], jnp.float64)
    return features, params, jnp.array([0.4, 0.3, 0.2, 0.1]), advantage


def policy(params, features):
    return distributions.Categorical(features @ params["weights"])


def test_both_directions_of_the_kl_have_the_fisher_matrix_as_hessian():
    with jax.enable_x64(True):
        features, params, weight, _ = linear_softmax()
        old = policy(params, features)
        probs = np.asarray(jax.nn.softmax(old.logits))
        centred = (
            np.asarray(features) - np.einsum("sa,saf->sf", probs, features)[:, None]
        )
        fisher = np.einsum("s,sa,saf,sag->fg", weight, probs, centred, centred)

        def forward(p):
            return weight @ distributions.kl_divergence(old, policy(p, features))

        def reverse(p):
            return weight @ distributions.kl_divergence(policy(p, features), old)

        for divergence in (forward, reverse):
            product = natural_gradient.fisher_vector_product(divergence, params, 0.1)
            for unit in np.eye(NUM_FEATURES):
                found = product({"weights": jnp.asarray(unit)})["weights"]
                np.testing.assert_allclose(found, (fisher + 0.1 * np.eye(5)) @ unit)


def test_the_first_step_of_mdpos_quadratic_model_is_trpos_at_one_step_size():
    # Around the old policy MDPO maximises g.s - s.F s / (2t): its step is t F^-1 g.
    with jax.enable_x64(True):
        features, params, weight, advantage = linear_softmax()
        old = policy(params, features)
        limit = 0.01

        def surrogate(p):
            probs = jax.nn.softmax(policy(p, features).logits)
            return jnp.sum(weight[:, None] * probs * advantage)

        def divergence(p):
            return weight @ distributions.kl_divergence(policy(p, features), old)

        flat, unravel = ravel_pytree(params)
        hessian = jax.hessian(lambda x: divergence(unravel(x)))(flat)
        slope = jax.grad(lambda x: surrogate(unravel(x)))(flat)
        product = natural_gradient.fisher_vector_product(divergence, params)
        natural = natural_gradient.natural_step(
            jax.grad(surrogate)(params), product, limit, num_iterations=20
        )
        direction = jnp.linalg.solve(hessian, slope)
        step_size = jnp.sqrt(2 * limit / (slope @ direction))
        np.testing.assert_allclose(natural.step_size, step_size, rtol=1e-6)
        np.testing.assert_allclose(
            natural.direction["weights"], direction, rtol=1e-4, atol=1e-6
        )
        assert float(natural.residual) < 1e-4

        def stationarity(t, step):
            return slope - hessian @ step / t

        step = step_size * direction
        assert np.abs(stationarity(step_size, step)).max() < 1e-9
        assert np.abs(stationarity(2 * step_size, step)).max() > 1e-3
        np.testing.assert_allclose(step @ hessian @ step / 2, limit, rtol=1e-9)


def test_conjugate_gradients_solve_a_dense_system_in_as_many_steps():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), 2)
        root = jax.random.normal(keys[0], (6, 6), jnp.float64)
        matrix = root @ root.T + jnp.eye(6)
        vector = jax.random.normal(keys[1], (6,), jnp.float64)
        tree = {"a": vector[:2], "b": vector[2:].reshape(2, 2)}

        def product(x):
            flat, unravel = ravel_pytree(x)
            return unravel(matrix @ flat)

        solution = natural_gradient.conjugate_gradient(product, tree, 6, 1e-20)
        flat, _ = ravel_pytree(solution)
        np.testing.assert_allclose(flat, jnp.linalg.solve(matrix, vector), rtol=1e-8)
        early = natural_gradient.conjugate_gradient(product, tree, 2, 1e-20)
        assert np.abs(ravel_pytree(early)[0] - flat).max() > 1e-3


def test_no_gradient_no_step():
    zero = {"x": jnp.zeros(3)}
    found = natural_gradient.natural_step(zero, lambda v: v, 0.01)
    np.testing.assert_array_equal(found.direction["x"], 0.0)
    assert float(found.step_size) == 0.0 and float(found.residual) == 0.0


@pytest.mark.parametrize(
    ("limit", "expected"), [(9.0, 1.0), (5.0, 0.5), (3.0, 0.25), (2.0, 0.0)]
)
def test_a_line_search_stops_at_the_first_acceptable_length(limit, expected):
    # From 0 by a step of 8; three trials: 8, 4, 2.
    found = natural_gradient.backtrack(
        lambda p: p["x"] < limit, {"x": jnp.zeros(())}, {"x": jnp.array(8.0)}, 3
    )
    assert float(found.fraction) == expected
    assert float(found.params["x"]) == 8 * expected


def test_impossible_counts_are_named():
    with pytest.raises(ValueError, match="num_iterations"):
        natural_gradient.conjugate_gradient(lambda v: v, jnp.ones(2), 0)
    with pytest.raises(ValueError, match="num_trials"):
        natural_gradient.backtrack(lambda p: p > 0, jnp.ones(()), jnp.ones(()), 0)
