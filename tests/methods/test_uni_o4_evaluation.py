"""Uni-O4: AM-Q against returns and loops, and the gate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rlx.methods import uni_o4


def test_am_q_with_true_dynamics_and_values_is_the_mean_return_to_go():
    """A linear system whose policy's value is known in closed form.

    x' = 0.9 x + 0.5 u, u = −0.6 x, reward −x² − u², γ = 0.8: Q is quadratic.
    """
    gain, gamma, horizon = -0.6, 0.8, 12
    closed = 0.9 + 0.5 * gain
    worth = -(1 + gain**2) / (1 - gamma * closed**2)  # V = worth x²

    def action_value(x, u):
        after = 0.9 * x[:, 0] + 0.5 * u[:, 0]
        return -(x[:, 0] ** 2) - u[:, 0] ** 2 + gamma * worth * after**2

    start = jnp.linspace(-1, 1, 7)[:, None]
    found = uni_o4.am_q(
        lambda x: gain * x,
        action_value,
        lambda x, u, key: 0.9 * x + 0.5 * u,
        start,
        jax.random.key(0),
        horizon,
    )
    # By real rollouts, each return cut where it no longer matters.
    states = np.asarray(start)[:, 0] * closed ** np.arange(horizon + 100)[:, None]
    rewards = -(states**2) * (1 + gain**2)
    to_go = np.zeros_like(states)
    for t in reversed(range(len(states) - 1)):
        to_go[t] = rewards[t] + gamma * to_go[t + 1]
    np.testing.assert_allclose(found.score, to_go[:horizon].mean(), rtol=1e-4)
    np.testing.assert_allclose(found.total, to_go[:horizon].sum(axis=0), rtol=1e-3)


def walk(horizon, is_terminal=lambda x: x[:, 0] > 3):
    """A noisy walk to the right, whose Q is the position; and the same by a loop."""
    start = jnp.array([[0.0], [2.5], [-1.0]])
    key = jax.random.key(7)

    def step(x, u, key):
        return x + u + 0.1 * jax.random.normal(key, x.shape)

    found = uni_o4.am_q(
        lambda x: jnp.ones_like(x),
        lambda x, u: x[:, 0],
        step,
        start,
        key,
        horizon,
        is_terminal,
    )
    totals, counts = np.zeros(3), np.zeros(3)
    keys = jax.random.split(key, horizon)
    noise = [0.1 * np.asarray(jax.random.normal(k, (3, 1))) for k in keys]
    for k in range(3):
        x = float(start[k, 0])
        for t in range(horizon):
            totals[k], counts[k] = totals[k] + x, counts[k] + 1
            x += 1 + float(noise[t][k, 0])
            if x > 3:
                break
    return found, totals, counts


def test_am_q_equals_a_loop_over_rollouts_of_different_lengths():
    found, totals, counts = walk(10)
    assert len(set(counts)) == 3
    np.testing.assert_array_equal(found.visited, counts)
    np.testing.assert_allclose(found.total, totals, rtol=1e-5)
    np.testing.assert_allclose(found.score, totals.sum() / counts.sum(), rtol=1e-5)


def test_the_standard_error_is_that_of_repeated_scores():
    generator = np.random.default_rng(0)
    scores, errors = [], []
    for _ in range(300):
        visited = generator.integers(1, 6, 50).astype(np.float32)
        total = visited * generator.normal(2.0, 1.0, 50).astype(np.float32)
        evaluation = uni_o4.Evaluation(jnp.asarray(total), jnp.asarray(visited))
        scores.append(float(evaluation.score))
        errors.append(float(evaluation.standard_error))
    # 300 repetitions know a deviation to 4 %.
    np.testing.assert_allclose(np.mean(errors), np.std(scores), rtol=0.12)


def test_common_noise_makes_differences_sharp():
    generator = np.random.default_rng(1)
    shared = generator.normal(0, 10, 100)
    ones = jnp.ones(100)
    worse = uni_o4.Evaluation(jnp.asarray(shared, jnp.float32), ones)
    noise = generator.normal(0, 0.1, 100)
    better = uni_o4.Evaluation(jnp.asarray(shared + 1 + noise, jnp.float32), ones)
    difference = uni_o4.paired_difference(better, worse)
    np.testing.assert_allclose(difference.mean, 1 + noise.mean(), rtol=1e-3)
    expected = noise.std(ddof=1) / 10
    np.testing.assert_allclose(difference.standard_error, expected, rtol=1e-2)
    assert float(better.standard_error) > 0.5


def test_the_gate_accepts_what_beats_the_best():
    best, pattern = jnp.array(0.5), []
    for score in (1.0, 0.0, 2.0, 1.5, np.nan):
        accept, best = uni_o4.gate(jnp.array(score), jnp.array(0.2), best)
        pattern.append(bool(accept))
    assert pattern == [True, False, True, False, False]
    assert float(best) == 2.0
    # 2.3 is 1.5 standard errors above 2.
    for margin, accepted in ((1.0, True), (2.0, False)):
        passed = uni_o4.gate(jnp.array(2.3), jnp.array(0.2), best, margin)
        assert bool(passed.accept) is accepted
