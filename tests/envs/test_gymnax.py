"""The gymnax adapter; what needs no gymnax is in `test_truncation.py`."""

from __future__ import annotations

import urllib.error

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs import gymnax as adapter
from rlx.types import Box, Discrete

gymnax = pytest.importorskip("gymnax")

DOWNLOADS = "MNISTBandit-bsuite"
NAMES = sorted(set(gymnax.registered_envs) - {DOWNLOADS})


def play(env, key, action, length):
    """First observation, then all steps with one action, past any end."""
    first_key, key = jax.random.split(key)
    state, first = env.reset(first_key)
    _, steps = jax.lax.scan(
        lambda state, key: env.step(state, action, key),
        state,
        jax.random.split(key, length),
    )
    return first, steps


@pytest.mark.parametrize("name", NAMES)
def test_every_environment_has_the_shapes_that_its_spec_says(name, key) -> None:
    env = adapter.make(name)
    spec = env.spec
    assert spec.name == f"gymnax/{name}" and spec.time_limit >= 1
    state, first = jax.eval_shape(env.reset, key)
    action = jnp.zeros(spec.action.shape, spec.action.dtype)
    after, step = jax.eval_shape(env.step, state, action, key)
    assert first.shape == step.observation.shape == spec.observation.shape
    assert first.dtype == step.observation.dtype == spec.observation.dtype
    assert step.reward.dtype == jnp.float32 and step.reward.shape == ()
    assert step.terminated.dtype == step.truncated.dtype == bool
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
        state,
        after,
    )


def test_spaces() -> None:
    assert adapter.make("CartPole-v1").spec.action == Discrete(2)
    assert adapter.make("CartPole-v1").spec.observation == Box((4,))
    assert adapter.make("Pendulum-v1").spec.action == Box((1,), (-2.0,), (2.0,))
    assert adapter.make("FrozenLake-misc").spec.observation == Discrete(16)
    assert adapter.make("Breakout-MinAtar").spec.observation == Box((10, 10, 4))


def test_cart_pole_falls_with_its_true_successor(key) -> None:
    """A fall is a termination; gymnax's `step` would return a fresh start there."""
    env = envs.make("gymnax/CartPole-v1")
    first, steps = jax.jit(lambda key: play(env, key, jnp.int32(1), 20))(key)
    angle, place = steps.observation[:, 2], steps.observation[:, 0]
    fallen = (np.abs(angle) > 12 * np.pi / 180) | (np.abs(place) > 2.4)
    np.testing.assert_array_equal(steps.terminated, fallen)
    end = int(np.argmax(fallen))
    assert 5 < end < 15 and not steps.truncated.any()
    # Pushed to the right all the time, the pole turns left: no jump at the end.
    assert (np.diff(angle[: end + 2]) < 0).all() and np.abs(first).max() <= 0.05


@pytest.mark.parametrize("time_limit", [1, 6, None])
def test_the_time_limit_cuts_and_does_not_end(time_limit, key) -> None:
    env = envs.make("gymnax/Pendulum-v1", time_limit=time_limit)
    assert env.spec.time_limit == time_limit
    _, steps = jax.jit(lambda key: play(env, key, jnp.zeros(1), 7))(key)
    late = np.arange(1, 8) >= (time_limit or 99)
    np.testing.assert_array_equal(steps.truncated, late)
    assert not steps.terminated.any()


def test_the_default_limit_is_gymnax_s() -> None:
    assert envs.make("gymnax/Pendulum-v1").spec.time_limit == 200
    assert envs.make("gymnax/DeepSea-bsuite", size=5).spec.time_limit == 5
    limited = envs.make("gymnax/CartPole-v1", max_steps_in_episode=7)
    assert limited.spec.time_limit == 7


def test_an_end_at_the_limit_is_an_end(key) -> None:
    env = envs.make("gymnax/DeepSea-bsuite", size=4)  # ends in its last row, at 4
    _, steps = jax.jit(lambda key: play(env, key, jnp.int32(0), 4))(key)
    np.testing.assert_array_equal(steps.terminated, [False] * 3 + [True])
    assert not steps.truncated.any()


def test_a_run_is_gymnax_s_own(key) -> None:
    library, params = gymnax.make("MountainCarContinuous-v0")
    env = envs.make("gymnax/MountainCarContinuous-v0")
    state, first = env.reset(key)
    observation, theirs = library.reset_env(key, params)
    np.testing.assert_array_equal(first, observation)
    step = jax.jit(env.step)
    for i in range(4):
        this = jax.random.fold_in(key, i)
        action = jax.random.uniform(this, (1,), minval=-1.0)
        observation, theirs, reward, _, _ = library.step_env(
            this, theirs, action, params
        )
        state, ours = step(state, action, this)
        np.testing.assert_allclose(ours.observation, observation, rtol=1e-6)
        np.testing.assert_allclose(ours.reward, reward, rtol=1e-6)
    assert step._cache_size() == 1


def test_options_are_parameters_or_arguments(key) -> None:
    light, heavy = (
        jax.jit(lambda key, g=g: play(make(g), key, jnp.zeros(1), 3)[1])(key)
        for g in (1.0, 20.0)
    )
    assert np.abs(light.observation - heavy.observation).max() > 0.05
    assert envs.make("gymnax/DeepSea-bsuite", size=6).spec.observation.shape == (6, 6)
    with pytest.raises(TypeError, match=r"gymnax/Pendulum-v1.*nonsense.*max_torque"):
        envs.make("gymnax/Pendulum-v1", nonsense=1)


def make(gravity: float):
    return envs.make("gymnax/Pendulum-v1", g=gravity)


def test_mistakes(monkeypatch) -> None:
    with pytest.raises(ValueError, match="time_limit must be at least 1"):
        envs.make("gymnax/Pendulum-v1", time_limit=0)
    with pytest.raises(
        ValueError, match="No environment 'gymnax/CartPole-v2'.*Did you"
    ):
        envs.make("gymnax/CartPole-v2")

    def fail(name, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(gymnax, "make", fail)
    with pytest.raises(ConnectionError, match="downloads a data set.*no network"):
        adapter.make(DOWNLOADS)


def test_a_space_that_rlx_lacks_is_refused() -> None:
    library, params = gymnax.make("Pendulum-v1")
    from gymnax.environments import spaces

    library.action_space = lambda params: spaces.Dict({})
    with pytest.raises(ValueError, match="space Dict; rlx has Box and Discrete"):
        adapter.adapt(library, params, "pendulum")


def test_an_old_gymnax_is_refused(monkeypatch) -> None:
    from gymnax.environments.environment import Environment

    monkeypatch.delattr(Environment, "is_truncated")
    with pytest.raises(ImportError, match="time limits for ends.*gymnax>=1.0.1"):
        adapter.names()
