"""Rollouts: true successors, fresh resets, carries, episode statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.data.rollout import rollout
from rlx.types import Box, Env, EnvSpec, Policy, Step


def counter(limit: int = 3) -> Env:
    """Counts steps from a random start; terminates when told, truncated at a limit.

    The observation is [count, start], the reward is the count before the step.
    """

    def reset(key):
        start = jax.random.uniform(key)
        state = {"count": jnp.zeros(()), "start": start}
        return state, jnp.stack([state["count"], start])

    def step(state, action, key):
        del key
        count = state["count"] + 1
        new = {**state, "count": count}
        return new, Step(
            observation=jnp.stack([count, state["start"]]),
            reward=state["count"],
            terminated=action[0] > 0.5,
            truncated=count >= limit,
        )

    spec = EnvSpec("counter", Box((2,)), Box((1,), -1.0, 1.0), limit)
    return Env(reset, step, spec)


def policy(action: float) -> Policy:
    """Always the same action; the carry counts the steps of the episode."""

    def act(observation, carry, key):
        batch = observation.shape[:-1]
        return jnp.full((*batch, 1), action), carry + 1, {"carry": carry}

    return Policy(act, lambda: jnp.zeros((), jnp.int32))


def collect(env: Env, action: float, **options):
    source = rollout(env, **options)
    chosen = policy(action)

    @jax.jit
    def two_batches(key):
        init_key, first, second = jax.random.split(key, 3)
        state = source.init(init_key, chosen)
        state, a, metrics = source.next(state, chosen, first)
        state, b, _ = source.next(state, chosen, second)
        joined = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b)
        return joined, metrics, state

    return two_batches(jax.random.key(0))


@pytest.mark.parametrize("reset_pool", [0, 8])
def test_truncation_keeps_the_true_successor(reset_pool):
    batch, metrics, _ = collect(
        counter(), 0.0, num_envs=2, length=4, reset_pool=reset_pool
    )
    count = np.asarray(batch.observation[..., 0])
    np.testing.assert_array_equal(count[:, 0], [0, 1, 2, 0, 1, 2, 0, 1])
    successor = np.asarray(batch.next_observation[..., 0])
    # Never the 0 of the reset: the step that is cut leads to 3.
    np.testing.assert_array_equal(successor[:, 0], [1, 2, 3, 1, 2, 3, 1, 2])
    np.testing.assert_array_equal(batch.truncated[:, 0], [0, 0, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(batch.discount, 1.0)
    # Rewards 0 + 1 + 2, one full episode per environment in the first batch.
    assert float(metrics["episode_return"]) == 3.0
    assert float(metrics["episode_length"]) == 3.0
    assert float(metrics["episodes"]) == 2.0


def test_termination_wins_over_a_time_limit_at_the_same_step():
    batch, _, _ = collect(counter(limit=1), 1.0, num_envs=2, length=2)
    np.testing.assert_array_equal(batch.discount, 0.0)
    np.testing.assert_array_equal(batch.truncated, False)


@pytest.mark.parametrize("reset_pool", [0, 64])
def test_episodes_start_from_fresh_states(reset_pool):
    batch, _, _ = collect(counter(), 0.0, num_envs=4, length=12, reset_pool=reset_pool)
    starts = np.asarray(batch.observation[..., 1])[
        np.asarray(batch.observation[..., 0]) == 0
    ]
    assert starts.size == 32
    assert np.unique(starts).size > (31 if reset_pool == 0 else 24)


def test_the_carry_is_emptied_when_an_episode_begins():
    batch, _, state = collect(counter(), 0.0, num_envs=2, length=4)
    np.testing.assert_array_equal(batch.extras["carry"][:, 0], [0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(state.carry, [2, 2])


def test_no_episode_no_mean():
    _, metrics, _ = collect(counter(limit=100), 0.0, num_envs=2, length=4)
    assert np.isnan(metrics["episode_return"])
    assert float(metrics["episodes"]) == 0.0


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="num_envs=0"):
        rollout(counter(), num_envs=0)
