"""Evaluation: exact returns of episodes whose course is known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import probe
from rlx import evaluate
from rlx.types import Array, Box, Env, EnvSpec, Policy, Step

ANY = Policy(
    act=lambda observation, carry, key: (
        jnp.zeros(observation.shape[:-1], jnp.int32),
        carry,
        {},
    ),
    init_carry=lambda: (),
)


def episodes(env: Env, policy: Policy = ANY, **options: Any) -> evaluate.Episodes:
    options = {"num_episodes": 32, **options}
    results = jax.jit(lambda key: evaluate.episodes(env, policy, key, **options))(
        jax.random.key(0)
    )
    return jax.device_get(results)


def by_length(results: evaluate.Episodes) -> dict[int, set[float]]:
    """The returns that episodes of each length had."""
    found: dict[int, set[float]] = {}
    for length, value in zip(results.lengths, results.returns, strict=True):
        found.setdefault(int(length), set()).add(float(value))
    return found


def test_a_chain_runs_to_its_end():
    # From state 0, 1, 2 the rewards are 1 + 2 + 3, 2 + 3 and 3.
    results = episodes(probe.make("chain", time_limit=None), max_steps=50)
    assert by_length(results) == {3: {6.0}, 2: {5.0}, 1: {3.0}}
    assert results.terminated.all()


def test_a_time_limit_cuts():
    # After two steps from state 0: 1 + 2, not terminated; from the others as above.
    results = episodes(probe.make("chain", time_limit=2))
    assert by_length(results) == {2: {3.0, 5.0}, 1: {3.0}}
    np.testing.assert_array_equal(
        results.terminated, results.returns != 3.0 + (results.lengths == 1) * 1.0
    )


@pytest.mark.parametrize(("max_steps", "length"), [(4, 4), (5, 5), (9, 5)])
def test_the_tighter_limit_counts(max_steps: int, length: int):
    # The ring pays 1 on each third step; it is cut after five by itself.
    results = episodes(probe.make("ring", time_limit=5), max_steps=max_steps)
    assert set(results.lengths.tolist()) == {length}
    full = length // 3
    assert set(results.returns.tolist()) == {full + 0.0, full + 1.0}
    assert not results.terminated.any()


def hostile(ends_at: int) -> Env:
    """Pays 1 a step; after the episode's end it pays NaN, and is alive once more."""

    def reset(key: jax.Array) -> tuple[Array, Array]:
        start = jax.random.randint(key, (), 0, 3)
        return start, start[None].astype(jnp.float32)

    def step(state: Array, action: Array, key: jax.Array) -> tuple[Array, Step]:
        state = state + 1
        return state, Step(
            observation=state[None].astype(jnp.float32),
            reward=jnp.where(state > ends_at, jnp.nan, 1.0),
            terminated=state == ends_at,
            truncated=state == ends_at + 1,
        )

    return Env(reset, step, EnvSpec("hostile", Box((1,)), Box((1,)), None))


def test_what_comes_after_the_end_does_not_count():
    results = episodes(hostile(4), max_steps=8)
    assert set(results.lengths.tolist()) == {2, 3, 4}
    np.testing.assert_array_equal(results.returns, results.lengths)
    assert results.terminated.all()


def test_episodes_stop_when_all_have_ended():
    steps = []
    env = hostile(4)

    def counting(state, action, key):
        jax.debug.callback(lambda: steps.append(1))
        return env.step(state, action, key)

    episodes(env._replace(step=counting), num_episodes=1, max_steps=1000)
    jax.effects_barrier()
    assert 2 <= len(steps) <= 4


def counting_policy() -> Policy:
    """Acts by what its memory counts, plus noise if it is asked to sample."""

    def act(observation, carry, key):
        action = carry.astype(jnp.float32)
        if key is not None:
            action = action + jax.random.normal(key, action.shape)
        return action, carry + 1, {}

    return Policy(act, lambda: jnp.zeros((), jnp.int32))


def echo(time_limit: int = 4) -> Env:
    """The action is the reward."""

    def step(state, action, key):
        state = state + 1
        return state, Step(
            observation=state[None].astype(jnp.float32),
            reward=action,
            terminated=jnp.bool_(False),
            truncated=state >= time_limit,
        )

    def reset(key):
        return jnp.int32(0), jnp.zeros((1,))

    return Env(reset, step, EnvSpec("echo", Box((1,)), Box(()), time_limit))


def test_memory_begins_empty_and_is_carried():
    results = episodes(echo(), counting_policy())
    np.testing.assert_array_equal(results.returns, 0 + 1 + 2 + 3)


def test_actions_are_sampled_only_on_request():
    results = episodes(echo(), counting_policy(), sample=True, num_episodes=2000)
    # The sum of four draws of N(0, 1) beside 6; five standard errors.
    noise = results.returns - 6.0
    assert abs(noise.mean()) < 5 * 2 / np.sqrt(2000)
    assert abs(noise.var() / 4 - 1) < 5 * np.sqrt(2 / 2000)


def test_episodes_draw_their_own_starts():
    results = episodes(
        probe.make("lqr", time_limit=3),
        Policy(
            lambda observation, carry, key: (observation[..., :1], carry, {}),
            lambda: (),
        ),
    )
    assert len(set(results.returns.tolist())) == 32


def test_a_limit_is_needed():
    env = probe.make("ring", time_limit=None)
    for function in (evaluate.episodes, evaluate.trajectory):
        with pytest.raises(ValueError, match="probe/ring has no time limit: pass max"):
            function(env, ANY, jax.random.key(0))
        with pytest.raises(ValueError, match="max_steps must be at least 1"):
            function(env, ANY, jax.random.key(0), max_steps=0)
    with pytest.raises(ValueError, match="num_episodes must be at least 1"):
        evaluate.episodes(env, ANY, jax.random.key(0), num_episodes=0, max_steps=1)


# ------------------------------------------------------------------------ trajectories


def test_a_trajectory_is_one_episode():
    env = probe.make("chain", time_limit=None)
    for seed in range(6):
        states = evaluate.trajectory(env, ANY, jax.random.key(seed), max_steps=9)
        first = int(states[0].position)
        assert [int(s.position) for s in states] == list(range(first, 4))
        assert [int(s.time) for s in states] == list(range(4 - first))


def test_a_trajectory_ends_at_the_limit():
    env = probe.make("ring", time_limit=5)
    assert len(evaluate.trajectory(env, ANY, jax.random.key(0))) == 6
    assert len(evaluate.trajectory(env, ANY, jax.random.key(0), max_steps=2)) == 3


def test_a_trajectory_carries_memory():
    seen = []
    env = echo()

    def step(state, action, key):
        jax.debug.callback(lambda x: seen.append(float(x)), action, ordered=True)
        return env.step(state, action, key)

    evaluate.trajectory(env._replace(step=step), counting_policy(), jax.random.key(0))
    jax.effects_barrier()
    assert seen == [0.0, 1.0, 2.0, 3.0]
