"""The Brax adapter: keys, clock, ends, true successors, exact types."""

from __future__ import annotations

import brax.envs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs.base import State

import envs
from envs import brax as adapter
from rlx.types import Box

# Compiles an articulated body three times faster on CPU, and runs as fast.
CPU_OPTIONS = {"xla_cpu_use_fusion_emitters": False}


class Counter(brax.envs.Env):
    """Counts its steps; ends at 3. As rude as an environment may be."""

    def reset(self, rng: jax.Array) -> State:
        # Raw key data, as Brax's own wrappers demand.
        assert rng.shape == (2,) and rng.dtype == jnp.uint32
        zero = jnp.zeros(())
        start = 0.1 * jax.random.uniform(rng, (1,))
        return State(None, start, zero, zero, {"height": zero}, {"steps": zero})

    def step(self, state: State, action: jax.Array) -> State:
        state.info["steps"] = state.info["steps"] + 1  # into the caller's dictionary
        state.metrics["height"] = 2.0
        height = state.obs + 1
        # Python numbers: weak types.
        return state.replace(
            obs=height, reward=1.0, done=jnp.where(height[0] > 3, 1.0, 0.0)
        )

    @property
    def observation_size(self) -> int:
        return 1

    @property
    def action_size(self) -> int:
        return 2

    @property
    def backend(self) -> str:
        return "none"


def play(env, key: jax.Array, action: jax.Array, length: int):
    """Resets and steps on for `length` steps, past any end.

    Returns the first observation, all steps, and the last state.
    """
    state, observation = env.reset(key)

    def body(state, _):
        return env.step(state, action, key)

    state, steps = jax.lax.scan(body, state, None, length)
    return observation, steps, state


def test_counter_ends_with_its_true_successor(key: jax.Array) -> None:
    env = adapter.adapt(Counter(), "counter", time_limit=100)
    first, steps, _ = jax.jit(lambda key: play(env, key, jnp.zeros(2), 4))(key)
    np.testing.assert_allclose(steps.observation[:, 0], first[0] + np.arange(1, 5))
    np.testing.assert_array_equal(steps.terminated, [False, False, True, True])
    np.testing.assert_array_equal(steps.truncated, [False] * 4)
    np.testing.assert_array_equal(steps.info["height"], [2.0] * 4)
    assert steps.reward.dtype == jnp.float32 and not steps.reward.weak_type
    assert env.spec.action == Box((2,), -1.0, 1.0)
    assert env.spec.observation == Box((1,))


@pytest.mark.parametrize("time_limit", [1, 2, 3, None])
def test_counter_is_cut(time_limit: int | None, key: jax.Array) -> None:
    env = adapter.adapt(Counter(), "counter", time_limit=time_limit)
    assert env.spec.time_limit == time_limit
    steps = jax.jit(lambda key: play(env, key, jnp.zeros(2), 3)[1])(key)
    late = np.arange(1, 4) >= (time_limit or 99)
    np.testing.assert_array_equal(steps.terminated, [False, False, True])
    np.testing.assert_array_equal(steps.truncated, late & ~steps.terminated)


def test_stepping_leaves_the_state_alone(key: jax.Array) -> None:
    env = adapter.adapt(Counter(), "counter")
    before, _ = env.reset(key)
    after, _ = env.step(before, jnp.zeros(2), key)
    assert before.state.info["steps"] == 0 and before.time == 0
    assert after.state.info["steps"] == 1 and after.time == 1
    again, _ = env.step(before, jnp.zeros(2), key)
    jax.tree.map(np.testing.assert_array_equal, after, again)


def test_a_state_that_was_stepped_compiles_nothing_new(key: jax.Array) -> None:
    env = adapter.adapt(Counter(), "counter")
    step = jax.jit(env.step)
    state, _ = env.reset(key)
    for _ in range(3):
        state, _ = step(state, jnp.zeros(2), key)
    assert step._cache_size() == 1


def test_vmap_equals_a_loop(key: jax.Array) -> None:
    env = adapter.adapt(Counter(), "counter")
    keys = jax.random.split(key, 3)
    run = jax.jit(lambda key: play(env, key, jnp.zeros(2), 4))
    together = jax.vmap(run)(keys)
    assert len(set(np.asarray(together[0]).ravel().tolist())) == 3
    for i in range(3):
        alone = run(keys[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, alone
        )


def test_inverted_pendulum_falls_and_stays_where_it_fell(key: jax.Array) -> None:
    """A real environment of Brax: terminates at 0.2 rad, is cut at 30 steps."""
    env = envs.make("brax/inverted_pendulum", backend="spring", time_limit=30)
    assert env.spec.name == "brax/inverted_pendulum"
    assert env.spec.observation.shape == (4,) and env.spec.action.shape == (1,)
    np.testing.assert_allclose(env.spec.control_frequency, 1 / (4 * 0.005), rtol=1e-5)
    run = jax.jit(
        jax.vmap(lambda a: play(env, key, a, 30)), compiler_options=CPU_OPTIONS
    )
    first, steps, last = run(jnp.array([[0.0], [1.0]]))
    np.testing.assert_array_equal(first[0], first[1])
    angle = np.asarray(steps.observation[..., 1])
    np.testing.assert_array_equal(steps.terminated, np.abs(angle) > 0.2)
    pushed = np.flatnonzero(steps.terminated[1])
    assert 0 < pushed[0] < 10 and np.abs(angle[1, pushed[0]]) > 0.2
    np.testing.assert_array_equal(steps.truncated[:, :29], False)
    np.testing.assert_array_equal(steps.truncated[:, 29], ~steps.terminated[:, 29])
    np.testing.assert_array_equal(steps.reward, 1.0)

    pictures = [env.render(jax.tree.map(lambda x, i=i: x[i], last)) for i in (0, 1)]
    assert pictures[0].shape[2] == 3 and pictures[0].dtype == np.uint8
    assert (pictures[0] != pictures[1]).mean() > 0.01  # one stands, one has fallen


def test_what_has_no_model_has_no_picture() -> None:
    assert adapter.adapt(Counter(), "counter").render is None
    assert adapter.make("fast").render is None


def test_names_and_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"ant", "fast", "halfcheetah", "reacher"} <= set(adapter.names())
    with pytest.raises(ValueError, match="no backend 'springs'.*generalized"):
        adapter.make("ant", backend="springs")
    with pytest.raises(TypeError, match="brax/reacher.*nonsense"):
        adapter.make("reacher", nonsense=1)
    with pytest.raises(ValueError, match="time_limit"):
        adapter.make("fast", time_limit=0)
    with pytest.raises(ValueError, match="not one array"):
        adapter.make("fast", obs_mode="dict_state")
    assert capsys.readouterr().out == ""
