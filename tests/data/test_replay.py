"""Replay: contents against a list, n-step returns by hand, sampling, bad sizes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import probe
from rlx import program
from rlx.data import replay as replay_lib
from rlx.data import ring
from rlx.data.replay import memory_bytes, replay
from rlx.methods import ddpg
from rlx.types import Box, Discrete, Policy, Transition
from tests.data.test_rollout import counter, policy


def rows(start: int, length: int, num_streams: int = 2) -> Transition:
    """Numbered transitions: step i of stream b has the reward 10 i + b."""
    number = 10 * jnp.arange(start, start + length)[:, None]
    number = number + jnp.arange(num_streams)[None]
    return Transition(
        observation=number[..., None].astype(jnp.uint8),
        action=number.astype(jnp.int32),
        reward=number.astype(jnp.float32),
        discount=jnp.ones(number.shape),
        truncated=jnp.zeros(number.shape, bool),
        next_observation=(number[..., None] + 10).astype(jnp.uint8),
    )


def filled(num_rows: int, length: int, writes: int) -> ring.Ring:
    buffer = ring.empty(rows(0, length), num_rows)
    write = jax.jit(ring.write, donate_argnums=0)
    for i in range(writes):
        buffer = write(buffer, rows(i * length, length))
    return buffer


@pytest.mark.parametrize("writes", [1, 2, 3, 4, 7])
def test_contents_are_those_of_a_bounded_list(writes):
    buffer = filled(num_rows=6, length=2, writes=writes)
    model = [rows(i, 1).reward[0] for i in range(2 * writes)][-6:]
    assert int(buffer.size) == len(model)
    ages = jnp.arange(len(model))
    for stream in range(2):
        kept = ring.at(buffer, ages, jnp.full_like(ages, stream))
        expected = [float(row[stream]) for row in model]
        np.testing.assert_array_equal(kept.reward, expected)
        np.testing.assert_array_equal(kept.action, expected)
        successor = (np.asarray(expected) + 10) % 256
        np.testing.assert_array_equal(kept.next_observation[:, 0], successor)
    assert buffer.rows.observation.dtype == jnp.uint8
    assert buffer.rows.truncated.dtype == bool


def test_samples_are_uniform_over_what_is_written():
    buffer = filled(num_rows=8, length=2, writes=3)  # 6 of 8 rows
    number = 60_000
    drawn = ring.sample(buffer, jax.random.key(1), (3, number // 3))
    assert drawn.reward.shape == (3, number // 3)
    values, counts = np.unique(np.asarray(drawn.reward), return_counts=True)
    expected = sorted(10 * i + b for i in range(6) for b in range(2))
    np.testing.assert_array_equal(values, expected)  # all of them, nothing unwritten
    chi_squared = np.sum((counts - number / 12) ** 2 / (number / 12))
    assert chi_squared < 31.3  # 99.9 % quantile of chi-squared with 11 degrees


@pytest.mark.parametrize("count", [1, 2])
def test_training_does_not_copy_the_ring(count):
    env, capacity = probe.pendulum(), 100_000
    config = ddpg.Config(hidden_sizes=(8,), num_minibatches=count)
    source = replay(
        env, batch_size=8, num_minibatches=count, capacity=capacity, warmup=8
    )
    programs = program.build(
        lambda hyper: ddpg.make(env.spec, config),
        source,
        program.make_runs([0], None)[0],
        evaluation_env=None,
        num_episodes=1,
    )
    assert programs.memory_bytes is not None
    # 1.65 times the ring where the reading is fused with the writing.
    assert programs.memory_bytes < 1.3 * memory_bytes(env.spec, capacity)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 5), (3, 1)])
def test_samples_have_the_shape_that_was_asked_for(shape):
    drawn = ring.sample(filled(6, 2, 2), jax.random.key(0), shape)
    assert drawn.reward.shape == shape
    assert drawn.observation.shape == (*shape, 1)
    ages = jax.random.randint(jax.random.key(0), shape, 0, 8) // 2
    np.testing.assert_array_equal(drawn.reward // 10, ages)  # every draw in its place


def n_step_rows() -> Transition:
    """One stream of rewards 1, 2, 4, ...: sums say which steps they hold."""
    count = 6
    return Transition(
        observation=jnp.arange(count, dtype=jnp.float32)[:, None],
        action=jnp.zeros((count, 1)),
        reward=2.0 ** jnp.arange(count)[:, None],
        discount=jnp.ones((count, 1)).at[1, 0].set(0.0),
        truncated=jnp.zeros((count, 1), bool).at[3, 0].set(True),
        next_observation=jnp.arange(1, count + 1, dtype=jnp.float32)[:, None] + 0.5,
    )


@pytest.mark.parametrize("turn", [0, 2])
def test_n_step_by_hand(turn):
    # Terminates at step 1, is cut at step 3, newest is step 5. With n = 3, gamma = 1/2:
    expected = {  # start: (reward, discount, truncated, successor)
        0: (1 + 2 / 2, 0.0, False, 2.5),
        1: (2.0, 0.0, False, 2.5),
        2: (4 + 8 / 2, 0.5, True, 4.5),
        3: (8.0, 1.0, True, 4.5),
        4: (16 + 32 / 2, 0.5, False, 6.5),
        5: (32.0, 1.0, False, 6.5),
    }
    transitions = n_step_rows()
    buffer = ring.empty(transitions, 6)
    # Turned, the newest row stands before the oldest in memory: the seam is inside.
    for i in [0] * turn + list(range(6)):
        row = jax.tree.map(lambda x, i=i: x[i : i + 1], transitions)
        buffer = ring.write(buffer, row)
    drawn = ring.sample(buffer, jax.random.key(0), (200,), n_step=3, gamma=0.5)
    start = np.asarray(drawn.observation).astype(int)
    assert set(start) == set(expected)
    for i, (reward, discount, truncated, successor) in expected.items():
        mine = jax.tree.map(lambda x, i=i: np.asarray(x)[start == i], drawn)
        np.testing.assert_allclose(mine.reward, reward)
        np.testing.assert_allclose(mine.discount, discount)
        np.testing.assert_array_equal(mine.truncated, truncated)
        np.testing.assert_allclose(mine.next_observation, successor)


def test_a_source_remembers_true_successors():
    source = replay(
        counter(limit=3), num_envs=2, length=2, batch_size=64, capacity=24, warmup=8
    )
    chosen = policy(0.0)

    @jax.jit
    def go(key):
        init_key, *keys = jax.random.split(key, 4)
        state = source.init(init_key, chosen)
        warm = state
        for key in keys:
            state, batch, metrics = source.next(state, chosen, key)
        return warm, state, batch, metrics

    warm, state, batch, metrics = go(jax.random.key(0))
    assert int(warm.ring.size) == 4  # 8 steps of 2 environments
    assert int(state.ring.size) == 10
    random = np.asarray(warm.ring.rows.action[:4])
    assert np.unique(random).size == 8 and np.abs(random).max() <= 1
    assert batch.reward.shape == (1, 64)
    count = np.asarray(batch.observation[..., 0])
    np.testing.assert_array_equal(batch.next_observation[..., 0], count + 1)
    ended = np.asarray(batch.truncated) | (np.asarray(batch.discount) == 0)
    # A random action above 1/2 terminates; otherwise the limit cuts at 3.
    terminated = np.asarray(batch.action[..., 0]) > 0.5
    np.testing.assert_array_equal(ended, terminated | (count == 2))
    np.testing.assert_array_equal(batch.discount, 1.0 - terminated)
    assert float(metrics["episodes"]) >= 0
    assert batch.extras == {}


def test_a_discrete_environment_warms_up_with_all_its_actions():
    env = probe.make("cartpole")
    source = replay(env, num_envs=4, capacity=64, warmup=64, batch_size=8)
    still = Policy(
        lambda o, c, k: (jnp.zeros(o.shape[:-1], jnp.int32), c, {}), lambda: ()
    )
    state = jax.jit(lambda key: source.init(key, still))(jax.random.key(0))
    assert set(np.unique(state.ring.rows.action)) == {0, 1}


@pytest.mark.parametrize("name", ["lqr", "cartpole", "pendulum"])
def test_memory_is_estimated_exactly(name):
    env = probe.make(name)
    source = replay(env, num_envs=4, capacity=64, warmup=0, batch_size=8)
    shape = jax.eval_shape(env.reset, jax.random.key(0))[1].shape
    example = env.spec.action

    def act(observation, carry, key):
        batch = observation.shape[: -len(shape)]
        return jnp.zeros((*batch, *example.shape), example.dtype), carry, {}

    still = Policy(act, lambda: ())
    state = jax.eval_shape(lambda key: source.init(key, still), jax.random.key(0))
    leaves = jax.tree.leaves(state.ring.rows)
    assert sum(x.size * x.dtype.itemsize for x in leaves) == memory_bytes(env.spec, 64)


def test_bytes_count_the_dtypes():
    spec = dataclasses.replace(
        probe.make("cartpole").spec, observation=Box((8, 8), 0, 255, "uint8")
    )
    assert memory_bytes(spec, 10) == 10 * (2 * 64 + 4 + 9)
    assert isinstance(spec.action, Discrete)


def test_a_capacity_beyond_the_memory_is_refused(monkeypatch):
    env = probe.make("pendulum")
    monkeypatch.setattr(replay_lib, "_memory_of_device", lambda: 37 * 1_000)
    replay(env, capacity=1_000, warmup=0)
    with pytest.raises(ValueError, match="capacity well below 1000"):
        replay(env, capacity=1_001, warmup=0)


def test_the_memory_of_this_device_is_known():
    assert replay_lib._memory_of_device() > 2**20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_envs": 8, "capacity": 100}, "ask for 96 or 104"),
        ({"num_envs": 8, "capacity": 800, "warmup": 12}, "ask for 8 or 16"),
        ({"capacity": 10, "warmup": 11}, "warmup must lie in"),
    ],
)
def test_impossible_sizes_are_named(fields, message):
    sizes = {"capacity": 1_000, "warmup": 0, **fields}
    with pytest.raises(ValueError, match=message):
        replay(probe.make("lqr"), **sizes)


def test_random_actions_need_bounds():
    env = counter()
    spec = dataclasses.replace(env.spec, action=Box((1,)))
    with pytest.raises(ValueError, match="warmup=0"):
        replay(env._replace(spec=spec), capacity=100, warmup=10)
    replay(env._replace(spec=spec), capacity=100, warmup=0)


def test_a_write_across_the_seam_is_refused():
    with pytest.raises(ValueError, match="multiple of 2"):
        ring.write(ring.empty(rows(0, 2), 5), rows(0, 2))
    with pytest.raises(TypeError, match="uint8"):
        wrong = rows(0, 2)
        wrong = wrong.replace(observation=wrong.observation.astype(jnp.float32))
        ring.write(ring.empty(rows(0, 2), 4), wrong)
