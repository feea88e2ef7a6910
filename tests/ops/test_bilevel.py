"""Hypergradients: solvers against each other, finite differences, closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rlx.ops import bilevel

pytestmark = pytest.mark.usefixtures("double_precision")


# ------------------------------------------------------------------------- a quadratic


def quadratic():
    """g = ½ yᵀA y − yᵀ(B x + c), so y* = A⁻¹(B x + c); f is a quartic of both."""
    generator = np.random.default_rng(0)
    root = generator.normal(size=(5, 5))
    matrix = jnp.asarray(root @ root.T / 5 + np.eye(5))
    mixing = jnp.asarray(generator.normal(size=(5, 3)))
    offset, target = jnp.asarray(generator.normal(size=(2, 5)))
    x = {"a": jnp.asarray([0.3]), "b": jnp.asarray([-0.5, 0.8])}

    def flat(tree):
        return ravel_pytree(tree)[0]

    def lower(x, y):
        y = flat(y)
        return 0.5 * y @ matrix @ y - y @ (mixing @ flat(x) + offset)

    def best(x):
        y = jnp.linalg.solve(matrix, mixing @ flat(x) + offset)
        return {"first": y[:2], "second": y[2:, None]}

    def upper(x, y):
        error = flat(y) - target
        return jnp.sum(error**4) + 2 * flat(x) @ flat(x) * (4 + error[0])

    return upper, lower, best, x, matrix


def finite_difference(function, x, size=1e-5):
    flat, unravel = ravel_pytree(x)
    function = jax.jit(function)
    slopes = [
        (function(unravel(flat + step)) - function(unravel(flat - step))) / (2 * size)
        for step in size * np.eye(flat.size)
    ]
    return np.asarray(slopes)


def relative_error(found, expected):
    found, expected = (np.asarray(ravel_pytree(t)[0]) for t in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


implicit = jax.jit(bilevel.implicit, static_argnums=(0, 1, 4))

SOLVERS = {
    "dense": bilevel.dense(),
    "conjugate_gradient": bilevel.conjugate_gradient(5),
    "neumann": bilevel.neumann(400, 0.2),
}


@pytest.mark.parametrize("name", [*SOLVERS, "unroll", "rematerialized"])
def test_every_solver_finds_the_hypergradient_of_a_quadratic(name):
    upper, lower, best, x, _ = quadratic()

    def hypergradient(x):
        if name in SOLVERS:
            return bilevel.implicit(upper, lower, x, best(x), SOLVERS[name])
        step = bilevel.gradient_step(lower, 0.2)
        start = jax.tree.map(jnp.zeros_like, best(x))
        kept = name == "rematerialized"
        found, y = bilevel.unroll(upper, step, x, start, 400, kept)
        return found

    found = jax.jit(hypergradient)(x)
    direct = jax.grad(upper)(x, best(x))
    expected = finite_difference(lambda x: upper(x, best(x)), x)
    assert relative_error(found.total(), expected) < 1e-7
    assert relative_error(found.direct, direct) < 1e-7
    # Neither term alone is the answer, and the weight says how much of one to take.
    assert relative_error(found.direct, expected) > 0.1
    assert relative_error(found.implicit, expected) > 0.1
    assert relative_error(found.total(0.0), direct) < 1e-7
    assert float(found.residual) < 1e-8
    assert jax.tree.structure(found.implicit) == jax.tree.structure(x)


def test_neumann_and_unrolling_approach_geometrically_and_conjugate_gradients_end():
    upper, lower, best, x, matrix = quadratic()
    exact = implicit(upper, lower, x, best(x), bilevel.dense())
    contraction = 1 - 0.2 * np.linalg.eigvalsh(matrix).min()

    def error(solver):
        found = implicit(upper, lower, x, best(x), solver)
        return relative_error(found.implicit, exact.implicit), float(found.residual)

    series = [error(bilevel.neumann(terms, 0.2)) for terms in (10, 20, 40)]
    errors, residuals = np.transpose(series)
    assert (np.diff(errors) < 0).all() and (np.diff(residuals) < 0).all()
    assert errors[2] / errors[1] < contraction**20 * 1.5
    steps = [error(bilevel.conjugate_gradient(n)) for n in (1, 2, 3, 5)]
    assert (np.diff([residual for _, residual in steps]) < 0).all()
    assert steps[0][0] > 1e-3 and steps[-1][0] < 1e-10

    # From the solution, K unrolled steps are K terms of the series.
    step = bilevel.gradient_step(lower, 0.2)
    unroll = jax.jit(bilevel.unroll, static_argnums=(0, 1, 4))
    unrolled, _ = unroll(upper, step, x, best(x), 10)
    truncated = implicit(upper, lower, x, best(x), bilevel.neumann(10, 0.2))
    assert relative_error(unrolled.implicit, truncated.implicit) < 1e-10


def test_damping_is_a_ridge():
    upper, lower, best, x, matrix = quadratic()

    def damped(x, y):
        flat = ravel_pytree(y)[0]
        fixed = ravel_pytree(best(x))[0]
        anchored = flat - jax.lax.stop_gradient(fixed)
        return lower(x, y) + 0.5 * 0.3 * anchored @ anchored

    y = best(x)
    expected = implicit(upper, damped, x, y, bilevel.dense())
    for solver in (bilevel.dense(0.3), bilevel.conjugate_gradient(5, 0.3)):
        found = implicit(upper, lower, x, y, solver)
        assert relative_error(found.implicit, expected.implicit) < 1e-9
        assert float(found.residual) > 1e-2  # that of the undamped system


def test_no_slope_no_term():
    _, lower, best, x, _ = quadratic()
    for solver in SOLVERS.values():
        found = implicit(lambda x, y: x["a"][0], lower, x, best(x), solver)
        np.testing.assert_array_equal(ravel_pytree(found.implicit)[0], 0.0)
        assert float(found.residual) == 0.0


# --------------------------------------------------------------- a bandit: singular H


def bandit(temperature, shift=0.0):
    """π* = softmax(r/λ): dG/dν = (1/λ) Cov(u, ∂r) for G = Σ π* u."""
    generator = np.random.default_rng(1)
    features = jnp.asarray(generator.normal(size=(4, 3)))
    utility = jnp.asarray(generator.normal(size=4))
    x = jnp.asarray(generator.normal(size=3))

    def reward(x):
        return features @ x + shift

    def lower(x, y):
        log_prob = jax.nn.log_softmax(y)
        return -jnp.exp(log_prob) @ (reward(x) - temperature * log_prob)

    def upper(x, y):
        return jax.nn.softmax(y) @ utility

    prob = np.asarray(jax.nn.softmax(reward(x) / temperature))
    centred = np.asarray(features) - prob @ np.asarray(features)
    expected = (prob * np.asarray(utility)) @ centred / temperature
    return upper, lower, x, reward(x) / temperature, expected


@pytest.mark.parametrize("name", [*SOLVERS, "unroll"])
def test_a_softmax_policy_has_a_singular_hessian_and_the_right_hypergradient(name):
    upper, lower, x, y, expected = bandit(0.5)

    @jax.jit
    def hypergradient(x, y):
        if name == "unroll":
            step = bilevel.gradient_step(lower, 2.0)
            return bilevel.unroll(upper, step, x, y, 600)[0]
        solver = bilevel.neumann(600, 2.0) if name == "neumann" else SOLVERS[name]
        return bilevel.implicit(upper, lower, x, y, solver)

    found = hypergradient(x, y)
    assert relative_error(found.total(), expected) < 1e-7
    np.testing.assert_array_equal(found.direct, 0.0)  # nothing but the policy


def test_a_constant_reward_changes_nothing_and_a_hot_policy_does_not_react():
    _, _, _, _, expected = bandit(0.5)
    upper, lower, x, y, shifted = bandit(0.5, shift=7.0)
    np.testing.assert_allclose(shifted, expected)
    found = implicit(upper, lower, x, y, bilevel.dense())
    assert relative_error(found.implicit, expected) < 1e-9
    upper, lower, x, y, _ = bandit(1e4)
    found = implicit(upper, lower, x, y, bilevel.dense())
    assert np.abs(found.implicit).max() < 1e-3


# -------------------------------------------------------------------------- long sums


def trajectory(length):
    generator = np.random.default_rng(2)
    return {
        "x": jnp.asarray(generator.normal(size=(length, 6))),
        "weight": jnp.asarray(0.9 ** np.arange(length)),
    }


def term(y, item):
    return item["weight"] * (jax.nn.logsumexp(y @ item["x"]) + 0.1 * jnp.sum(y**2))


def test_a_summed_product_is_the_hessian_of_the_sum():
    items, y = trajectory(7), 0.1 * jnp.ones((4, 6))

    def total(y):
        return jnp.sum(jax.vmap(term, (None, 0))(y, items))

    vector = jnp.asarray(np.random.default_rng(3).normal(size=(4, 6)))
    expected = jax.jvp(jax.grad(total), (y,), (vector,))[1]
    found = bilevel.summed_product(term, y, items)(vector)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def memory(function, *arguments):
    """Bytes that a compiled function needs beside its arguments and results."""
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_conjugate_gradients_need_no_more_memory_for_longer_trajectories():
    y = 0.1 * jnp.ones((4, 6))

    def solve(items, num_iterations):
        product = bilevel.summed_product(term, y, items)
        return bilevel.conjugate_gradient(num_iterations)(product, jnp.ones_like(y))

    def batched(items):
        def product(vector):
            each = jax.vmap(term, (None, 0))
            return jax.jvp(jax.grad(lambda y: each(y, items).sum()), (y,), (vector,))[1]

        return bilevel.conjugate_gradient(10)(product, jnp.ones_like(y))

    ten = functools.partial(solve, num_iterations=10)
    short, long = trajectory(100), trajectory(10_000)
    assert memory(ten, long) == memory(ten, short)
    assert memory(functools.partial(solve, num_iterations=100), short) == memory(
        ten, short
    )
    # All steps at once do need it, so the measure can see the difference.
    assert memory(batched, long) > 10 * memory(batched, short)


def test_unrolling_keeps_every_step_and_fewer_insides_when_asked():
    def lower(x, y):
        return jnp.sum(jnp.tanh(jnp.outer(y, jnp.ones(50)) * x) ** 2) + y @ y

    def upper(x, y):
        return y @ y

    def gradient(x, num_steps, kept):
        step = bilevel.gradient_step(lower, 0.01)
        found, _ = bilevel.unroll(upper, step, x, jnp.ones(8), num_steps, kept)
        return found.total()

    def need(num_steps, kept):
        return memory(functools.partial(gradient, num_steps=num_steps, kept=kept), x)

    x = jnp.float64(0.3)
    assert need(200, False) > 5 * need(20, False)
    assert need(200, True) < need(200, False) / 5


# -------------------------------------------------------------------------- bad input


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="num_iterations must be at least 1"):
        bilevel.conjugate_gradient(0)
    with pytest.raises(ValueError, match="num_terms must be at least 1"):
        bilevel.neumann(0, 0.1)
    upper, lower, best, x, _ = quadratic()
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        bilevel.unroll(upper, bilevel.gradient_step(lower, 0.1), x, best(x), 0)
    with pytest.raises(AssertionError):
        bilevel.gradient_step(lower, jnp.ones(2))
