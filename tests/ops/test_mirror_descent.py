"""Exact policy mirror descent on small decision processes, and its divergences."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import mirror_descent

GAMMA = 0.9


class Process(NamedTuple):
    """A random finite decision process (Garnet): P `[S, A, S]`, r `[S, A]`."""

    transition: np.ndarray
    reward: np.ndarray


def garnet(seed: int = 0, num_states: int = 20, num_actions: int = 4) -> Process:
    """Every action leads to three random states, with random probabilities."""
    generator = np.random.default_rng(seed)
    transition = np.zeros((num_states, num_actions, num_states))
    for s in range(num_states):
        for a in range(num_actions):
            successors = generator.choice(num_states, 3, replace=False)
            transition[s, a, successors] = generator.dirichlet(np.ones(3))
    return Process(transition, generator.uniform(size=(num_states, num_actions)))


def evaluate(process: Process, log_policy, temperature: float = 0.0):
    """Exact (V `[S]`, Q `[S, A]`) of a policy, with λ times its entropy as a reward."""
    log_policy = np.asarray(log_policy, np.float64)
    policy = np.exp(log_policy)
    reward = np.sum(policy * (process.reward - temperature * log_policy), axis=1)
    chain = np.einsum("sa,sat->st", policy, process.transition)
    value = np.linalg.solve(np.eye(len(reward)) - GAMMA * chain, reward)
    return value, process.reward + GAMMA * process.transition @ value


def optimal_value(process: Process, temperature: float = 0.0):
    """The fixed point of (soft) value iteration."""
    value = np.zeros(len(process.reward))
    for _ in range(2_000):
        q = process.reward + GAMMA * process.transition @ value
        value = q.max(axis=1)
        if temperature:
            rest = np.exp((q - value[:, None]) / temperature).sum(axis=1)
            value = value + temperature * np.log(rest)
    return value


def uniform(process: Process):
    return jnp.full(process.reward.shape, -np.log(process.reward.shape[1]))


@pytest.mark.parametrize("step_size", [0.1, 1.0, 10.0])
def test_exact_mirror_descent_improves_monotonically_within_its_bound(step_size):
    # Agarwal et al. 2021, https://arxiv.org/abs/1908.00261, theorem 16, where the step
    # size is eta = (1 - gamma) t: from the uniform policy, for rewards in [0, 1], after
    # T steps V* - V_T <= log|A| / (eta T) + 1 / ((1 - gamma)^2 T) in every state.
    with jax.enable_x64(True):
        process = garnet()
        best = optimal_value(process)
        log_policy = uniform(process)
        value, q = evaluate(process, log_policy)
        gaps = []
        for k in range(1, 61):
            log_policy = mirror_descent.mirror_step(log_policy, q, step_size)
            improved, q = evaluate(process, log_policy)
            assert np.all(improved >= value - 1e-12)
            value = improved
            gaps.append((best - value).max())
            bound = np.log(4) / ((1 - GAMMA) * step_size) + 1 / (1 - GAMMA) ** 2
            assert gaps[-1] <= bound / k
        assert gaps[-1] < 0.3 * gaps[0]


@pytest.mark.parametrize("step_size", [1.0, 5.0, 1e9])
def test_soft_mirror_descent_converges_linearly_to_the_soft_optimum(step_size):
    # Cen et al. 2022, https://arxiv.org/abs/2007.06558, theorem 1, with their step size
    # (1 - gamma) t / (1 + lambda t); for t -> infinity the rate is gamma, that of soft
    # policy iteration.
    with jax.enable_x64(True):
        process, temperature = garnet(1), 0.1
        best = optimal_value(process, temperature)
        log_policy = uniform(process)
        weight = temperature * step_size / (1 + temperature * step_size)
        rate = 1 - (1 - GAMMA) * weight
        gaps = []
        for _ in range(30):
            value, q = evaluate(process, log_policy, temperature)
            gaps.append((best - value).max())
            if gaps[-1] < 1e-9:
                break
            log_policy = mirror_descent.mirror_step(
                log_policy, q, step_size, temperature
            )
        gaps = np.array(gaps)
        assert np.all(gaps[1:] <= rate * gaps[:-1])
        assert gaps[-1] < 0.01 * gaps[0]


def test_the_step_is_stationary_and_has_its_limits():
    with jax.enable_x64(True):
        process = garnet(2)
        log_policy = jax.nn.log_softmax(jnp.asarray(process.reward * 3))
        _, q = evaluate(process, log_policy)
        t, temperature = 0.7, 0.4
        new = mirror_descent.mirror_step(log_policy, q, t, temperature)
        # Q - lambda log pi - (log pi - log pi_k) / t is the same for all actions.
        slope = q - temperature * new - (new - log_policy) / t
        assert np.ptp(np.asarray(slope), axis=1).max() < 1e-12
        np.testing.assert_allclose(np.exp(new).sum(axis=1), 1.0)
        soft = mirror_descent.mirror_step(log_policy, q, 1e9, temperature)
        np.testing.assert_allclose(soft, jax.nn.log_softmax(q / temperature), rtol=1e-6)
        greedy = mirror_descent.mirror_step(log_policy, q, 1e9)
        np.testing.assert_array_equal(greedy.argmax(axis=1), q.argmax(axis=1))
        np.testing.assert_allclose(np.exp(greedy).max(axis=1), 1.0)


def test_linearising_the_entropy_is_another_step_size():
    with jax.enable_x64(True):
        process = garnet(3)
        log_policy = jax.nn.log_softmax(jnp.asarray(process.reward * 3))
        q = jnp.asarray(process.reward.T.reshape(process.reward.shape))
        t, temperature = 0.7, 0.4
        linear = 1 / (1 / t + temperature)
        np.testing.assert_allclose(
            mirror_descent.linearized_mirror_step(log_policy, q, linear, temperature),
            mirror_descent.mirror_step(log_policy, q, t, temperature),
            rtol=1e-12,
        )


def policies(number: int = 50, num_actions: int = 5):
    keys = jax.random.split(jax.random.key(0))
    draws = [
        2 * jax.random.normal(key, (number, num_actions), jnp.float64) for key in keys
    ]
    return [jax.nn.log_softmax(draw) for draw in draws]


@pytest.mark.parametrize("index", [1.0, 1.3, 1.5, 2.0])
def test_bregman_divergences(index):
    with jax.enable_x64(True):
        new, old = policies()
        found = np.asarray(mirror_descent.bregman_divergence(new, old, index))
        assert found.min() > 0
        same = mirror_descent.bregman_divergence(new, new, index)
        np.testing.assert_allclose(same, 0.0, atol=1e-12)
        p, k = np.exp(new), np.exp(old)
        if index == 1.0:
            np.testing.assert_allclose(found, np.sum(p * (new - old), axis=1))
        if index == 2.0:
            np.testing.assert_allclose(found, np.sum((p - k) ** 2, axis=1))

        # From its definition: psi(p) - psi(k) - <grad psi(k), p - k>.
        def potential(p):
            if index == 1.0:
                return np.sum(p * np.log(p), axis=1)
            return np.sum(p * (p ** (index - 1) - 1) / (index - 1), axis=1)

        if index == 1.0:
            slope = np.log(k) + 1
        else:
            slope = (index * k ** (index - 1) - 1) / (index - 1)
        expected = potential(p) - potential(k) - np.sum(slope * (p - k), axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("index", [1.0, 1.5, 2.0])
def test_the_estimate_from_old_actions_is_unbiased(index):
    with jax.enable_x64(True):
        new, old = policies()
        each = mirror_descent.bregman_estimate(new, old, index)
        mean = np.sum(np.exp(old) * each, axis=1)  # over all actions: exactly
        exact = mirror_descent.bregman_divergence(new, old, index)
        np.testing.assert_allclose(mean, exact, rtol=1e-9)


def test_without_the_ratio_the_estimate_has_the_wrong_sign():
    with jax.enable_x64(True):
        new, old = policies()
        mean = np.sum(np.exp(old) * (np.asarray(new) - np.asarray(old)), axis=1)
        assert mean.max() < 0
