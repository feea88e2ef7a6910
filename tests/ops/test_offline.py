"""Advantage weights, soft maxima and overlaps against quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from jax.test_util import check_grads

from rlx.ops import offline, soft
from rlx.ops.distributions import DiagonalGaussian


def floats(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# --------------------------------------------------------------------------- weights


def test_advantage_weights():
    # beta = 2: e^0 = 1, e^-2, e^1; an advantage of 3 would give e^6, clipped at 5.
    advantage = jnp.array([0.0, -1.0, 0.5, 3.0, 1e30])
    weight = offline.advantage_weight(advantage, 2.0, 5.0)
    np.testing.assert_allclose(weight, [1, np.exp(-2), np.e, 5, 5], rtol=1e-6)


def test_normalized_weights_average_to_one_and_see_differences_only():
    advantage = floats(0, 3, 5)
    weight = offline.normalized_advantage_weight(advantage, 1.5)
    exact = np.exp(1.5 * np.asarray(advantage, np.float64))
    np.testing.assert_allclose(weight, exact / exact.mean(), rtol=1e-5)
    shifted = offline.normalized_advantage_weight(advantage + 100.0, 1.5)
    np.testing.assert_allclose(shifted, weight, rtol=1e-4)


def test_weights_are_constants_of_the_gradient():
    def total(advantage):
        one = offline.advantage_weight(advantage, 1.0, 10.0)
        return jnp.sum(one + offline.normalized_advantage_weight(advantage, 1.0))

    np.testing.assert_array_equal(jax.grad(total)(floats(1, 4)), np.zeros(4))


# ---------------------------------------------------------------------- soft maximum


def quadratic(action):
    """Q of two actions in [-1, 1], with a maximum inside."""
    return 3.0 - 4.0 * (action[0] - 0.3) ** 2 - 2.0 * action[1] ** 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_soft_maximum_on_a_grid_is_the_integral(temperature):
    count = 200
    line = (np.arange(count) + 0.5) / count * 2 - 1
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    value = jnp.asarray(quadratic(grid.T), jnp.float32)
    # Midpoints of equal cells are as good as draws of the uniform density 1/4.
    found = offline.log_integral_exp(
        value, jnp.full(value.shape, np.log(0.25), jnp.float32), temperature
    )
    integral, _ = scipy.integrate.dblquad(
        lambda y, x: np.exp(quadratic((x, y)) / temperature), -1, 1, -1, 1
    )
    np.testing.assert_allclose(found, temperature * np.log(integral), rtol=1e-4)


def test_proposals_of_several_kinds_estimate_the_same_integral():
    generator = np.random.default_rng(3)
    number = 20_000
    uniform = generator.uniform(-1, 1, number)
    peaked = scipy.stats.truncnorm(-1.3 / 0.5, 0.7 / 0.5, 0.3, 0.5)
    drawn = peaked.rvs(number, random_state=generator)
    action = np.concatenate([uniform, drawn])
    log_proposal = np.concatenate([np.full(number, np.log(0.5)), peaked.logpdf(drawn)])
    found = offline.log_integral_exp(
        jnp.asarray(quadratic((action, 0.0)), jnp.float32),
        jnp.asarray(log_proposal, jnp.float32),
    )
    integral, _ = scipy.integrate.quad(lambda x: np.exp(quadratic((x, 0.0))), -1, 1)
    # The standard error of the mean is 0.4 %.
    np.testing.assert_allclose(found, np.log(integral), atol=0.015)


def test_the_soft_maximum_of_a_constant_is_exact_and_shifts_with_it():
    log_proposal = jnp.full((3, 7), -2 * np.log(2.0), jnp.float32)
    value = jnp.full((3, 7), 1.5)
    found = offline.log_integral_exp(value, log_proposal)
    np.testing.assert_allclose(found, 1.5 + 2 * np.log(2.0), rtol=1e-6)
    ragged = floats(4, 3, 7)
    before = offline.log_integral_exp(ragged, log_proposal, 0.3)
    after = offline.log_integral_exp(ragged + 2.0, log_proposal, 0.3)
    np.testing.assert_allclose(after, before + 2.0, rtol=1e-5)


def test_the_gradient_of_the_soft_maximum_is_a_softmax():
    value, log_proposal = floats(5, 6), floats(6, 6)
    gradient = jax.grad(offline.log_integral_exp)(value, log_proposal, 0.7)
    logits = np.asarray(value) / 0.7 - np.asarray(log_proposal)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    constant = jax.grad(offline.log_integral_exp, argnums=1)(value, log_proposal)
    np.testing.assert_array_equal(constant, np.zeros(6))


# -------------------------------------------------------------------------- gaussians


def gaussian(seed, *shape):
    return DiagonalGaussian(floats(seed, *shape), 0.5 * floats(seed + 1, *shape))


def test_the_overlap_is_the_integral_of_the_root_of_both_densities():
    first, second = gaussian(10, 3, 2), gaussian(20, 3, 2)
    found = offline.gaussian_overlap(first, second)
    for k in range(3):
        expected = 1.0
        for j in range(2):
            p, q = (
                scipy.stats.norm(d.mean[k, j], np.exp(d.log_scale[k, j]))
                for d in (first, second)
            )
            expected *= scipy.integrate.quad(
                lambda x, p=p, q=q: np.sqrt(p.pdf(x) * q.pdf(x)), -20, 20
            )[0]
        np.testing.assert_allclose(found[k], expected, rtol=1e-5)
    np.testing.assert_allclose(offline.gaussian_overlap(first, first), 1.0, rtol=1e-6)
    swapped = offline.gaussian_overlap(second, first)
    np.testing.assert_allclose(found, swapped, rtol=1e-6)


def test_the_overlap_stays_finite_far_apart():
    far = DiagonalGaussian(jnp.full((1,), 1e4), jnp.full((1,), -60.0))
    near = DiagonalGaussian(jnp.zeros((1,)), jnp.full((1,), -60.0))
    value, gradient = jax.value_and_grad(
        lambda mean: offline.gaussian_overlap(
            DiagonalGaussian(mean, near.log_scale), far
        )
    )(near.mean)
    assert float(value) == 0.0
    assert np.all(np.isfinite(gradient))


def test_the_gaussian_error_is_smallest_at_mean_and_residual_variance():
    target = floats(7, 500)
    mean, variance = jnp.mean(target), jnp.var(target)

    def total(mean, log_variance):
        ones = jnp.ones(500)
        error = offline.gaussian_error(mean * ones, log_variance * ones, target)
        return jnp.mean(error)

    gradient = jax.grad(total, (0, 1))(mean, jnp.log(variance))
    np.testing.assert_allclose(gradient, [0, 0], atol=1e-5)
    # It is -2 log N up to a constant.
    found = total(0.3, 0.4)
    exact = -2 * scipy.stats.norm(0.3, np.exp(0.2)).logpdf(np.asarray(target))
    np.testing.assert_allclose(found + np.log(2 * np.pi), exact.mean(), rtol=1e-5)


def test_the_soft_clamp_bounds_without_losing_its_gradient():
    x = jnp.array([-100.0, -12.0, -5.0, 0.0, 3.0, 100.0])
    low, high = jnp.full((6,), -10.0), jnp.full((6,), 0.5)
    clamped = offline.soft_clamp(x, low, high)
    assert np.all(clamped >= -10)
    assert np.all(clamped <= 0.5 + np.log1p(np.exp(-10.5)) + 1e-6)
    # By hand at 0: 0.5 - log(1 + e^0.5) = -0.4741, then -10 + log(1 + e^9.5259).
    below = 0.5 - np.log1p(np.exp(0.5))
    np.testing.assert_allclose(
        clamped[3], -10 + np.log1p(np.exp(below + 10)), rtol=1e-5
    )
    gradient = jax.grad(lambda x: offline.soft_clamp(x, low, high).sum())(x)
    assert np.all(gradient[1:5] > 0)


# ------------------------------------------------------------------- shared promises


def test_the_multiplier_rises_while_the_constraint_is_violated():
    log_multiplier = jnp.array(0.5)
    losses = soft.multiplier_loss(jnp.array([2.0, -1.0]), log_multiplier=log_multiplier)
    np.testing.assert_allclose(losses, [-2 * np.exp(0.5), np.exp(0.5)], rtol=1e-6)

    def total(violation, log_multiplier):
        return soft.multiplier_loss(violation, log_multiplier=log_multiplier)

    by_violation, by_multiplier = jax.grad(total, (0, 1))(
        jnp.array(2.0), log_multiplier
    )
    assert float(by_violation) == 0.0
    np.testing.assert_allclose(by_multiplier, -2 * np.exp(0.5), rtol=1e-6)


def test_gradients_against_finite_differences():
    with jax.enable_x64(True):
        x = [
            jnp.asarray(np.random.default_rng(i).normal(size=(2, 3))) for i in range(4)
        ]

        def total(a, b, c):
            first, second = DiagonalGaussian(a, 0.3 * b), DiagonalGaussian(c, 0.2 * a)
            return (
                jnp.sum(offline.gaussian_overlap(first, second))
                + jnp.sum(offline.log_integral_exp(a * b, x[3], 0.8))
                + jnp.sum(offline.gaussian_error(a, b, x[3]))
                + jnp.sum(
                    offline.soft_clamp(c, jnp.full((3,), -1.0), jnp.full((3,), 2.0))
                )
            )

        check_grads(jax.jit(total), tuple(x[:3]), 1, ["rev"], rtol=1e-6, eps=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: offline.advantage_weight(jnp.arange(3), 1.0, 1.0),
        lambda x: offline.advantage_weight(x, x, 1.0),
        lambda x: offline.normalized_advantage_weight(x, x),
        lambda x: offline.log_integral_exp(x, x[:, None]),
        lambda x: soft.multiplier_loss(x, log_multiplier=x),
        lambda x: offline.gaussian_error(x, x, x[:, None]),
        lambda x: offline.gaussian_overlap(
            DiagonalGaussian(x, x), DiagonalGaussian(x[:, None], x)
        ),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(AssertionError):
        call(jnp.ones(3))
