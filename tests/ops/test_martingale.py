"""Increments, traces and losses against NumPy loops; least squares."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import linear
from rlx.ops import martingale as ops
from tests.methods.martingale_paths import (
    B,
    P,
    T,
    naive_increments,
    random_steps,
)

pytestmark = pytest.mark.usefixtures("double_precision")


def test_increments_and_sums_against_a_loop(generator):
    steps = random_steps(generator)
    value, following = generator.normal(size=(2, T, B))
    expected = naive_increments(value, following, steps, 0.3)
    found = ops.increments(jnp.asarray(value), jnp.asarray(following), steps, 0.3)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    sums = np.asarray(ops.reverse_sum(found, steps.cut))
    cut = np.asarray(steps.cut)
    for b in range(B):
        for i in range(T):
            end = i + int(np.argmax(cut[i:, b]))
            np.testing.assert_allclose(sums[i, b], expected[i : end + 1, b].sum())


@pytest.mark.parametrize("lambda_", [0.0, 1e-9, 0.4, 1.0])
def test_trace_against_a_loop_and_its_adjoint(generator, lambda_):
    steps = random_steps(generator)
    gradient = generator.normal(size=(T, B, P))
    increment = generator.normal(size=(T, B))
    duration, cut = np.asarray(steps.duration), np.asarray(steps.cut)
    expected = np.zeros((T, B, P))
    for b in range(B):
        z = np.zeros(P)
        for i in range(T):
            dt = duration[i, b]
            if lambda_ == 0:
                weight = 1.0
            elif lambda_ == 1:
                weight = dt
            else:
                weight = (1 - lambda_**dt) / (1 - lambda_)
            z = lambda_**dt * z + weight * gradient[i, b]
            expected[i, b] = z
            if cut[i, b]:
                z = np.zeros(P)
    found = ops.trace(jnp.asarray(gradient), steps.duration, steps.cut, lambda_)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    coefficient = ops.reverse_trace(
        jnp.asarray(increment), steps.duration, steps.cut, lambda_
    )
    forward = np.einsum("tbp,tb->p", expected, increment)
    backward = np.einsum("tbp,tb->p", gradient, np.asarray(coefficient))
    np.testing.assert_allclose(forward, backward, atol=1e-10)


def test_lambda_may_be_swept():
    duration, cut = jnp.full((5, 1), 0.1), jnp.zeros((5, 1), bool)
    lambdas = jnp.array([0.0, 0.3, 1.0])

    def total(lambda_):
        return ops.trace(jnp.ones((5, 1, 1)), duration, cut, lambda_).sum()

    solo = [total(float(x)) for x in lambdas]
    np.testing.assert_allclose(jax.vmap(total)(lambdas), solo, rtol=1e-12)
    # (At 0 itself the slope of λ^Δt is infinite.)
    assert np.isfinite(jax.vmap(jax.grad(total))(lambdas[1:])).all()


def test_paper_trace_tends_to_the_gradient():
    # -ln λ ∫ λ^{t-s} g_s ds → g_t as λ → 0, for a smooth g on a fine mesh.
    time = jnp.linspace(0.0, 1.0, 2001)[:-1]
    g = jnp.cos(3 * time)[:, None, None]
    duration, cut = jnp.full((2000, 1), 1 / 2000), jnp.zeros((2000, 1), bool)
    gaps = []
    for lambda_ in (1e-4, 1e-8, 1e-16):
        z = ops.trace(g, duration, cut, lambda_) * (1 - lambda_)  # ∫ times -ln λ
        gaps.append(float(jnp.abs(z[1000:] - g[1000:]).max()))
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.1


def test_sherman_morrison_and_sandwich(generator):
    matrix = generator.normal(size=(P, P)) + 3 * np.eye(P)
    u, v = generator.normal(size=(2, P))
    found = linear.sherman_morrison(*map(jnp.asarray, (np.linalg.inv(matrix), u, v)))
    np.testing.assert_allclose(found, np.linalg.inv(matrix + np.outer(u, v)), rtol=1e-9)
    # A mean is the root of E (x - θ) = 0, with the familiar standard error.
    sample = generator.normal(size=(500, 1))
    error = linear.sandwich(jnp.ones((1, 1)), jnp.asarray(sample - sample.mean()))
    np.testing.assert_allclose(error, sample.std(ddof=1) / math.sqrt(500), rtol=1e-9)


def test_wrong_shapes_raise():
    steps = ops.Steps(*(jnp.zeros((T, B)),) * 3, jnp.zeros((T, B), bool))
    with pytest.raises(AssertionError):
        ops.increments(jnp.zeros((T, B, 1)), jnp.zeros((T, B)), steps)
    with pytest.raises(AssertionError):
        ops.martingale_loss(jnp.zeros((T, B)), jnp.zeros((T,)))
    with pytest.raises(AssertionError):
        ops.reverse_trace(jnp.zeros((T, B)), jnp.zeros((T, 1)), steps.cut, 0.5)
