"""The arm and its button: worked numbers, and a controller that presses it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from envs import probe
from envs.probe.pressing import tip


def test_the_tip_is_where_trigonometry_says():
    # Stretched along x; elbow at a right angle: (½, ½); folded back onto the base.
    for angle, place in (
        ([0, 0], [1, 0]),
        ([0, np.pi / 2], [0.5, 0.5]),
        ([1, np.pi], [0, 0]),
    ):
        np.testing.assert_allclose(tip(jnp.array(angle, float)), place, atol=1e-6)


def test_a_step_and_its_reward_by_hand(key):
    env = probe.make("button")
    state, observation = env.reset(key)
    assert 0.4 <= float(jnp.linalg.norm(state.button)) <= 0.9
    np.testing.assert_allclose(
        observation[8:10], tip(state.angle) - state.button, atol=1e-6
    )
    # Beyond the bounds an action is worth no more: q̇ = 0.05 · 8 = 0.4, q += 0.02.
    state = state.replace(angle=jnp.zeros(2), button=jnp.array([0.0, 1.0]))
    after, result = env.step(state, jnp.array([3.0, 0.0]), key)
    np.testing.assert_allclose(after.velocity, [0.4, 0.0], rtol=1e-6)
    np.testing.assert_allclose(after.angle, [0.02, 0.0], rtol=1e-6)
    distance = np.hypot(np.cos(0.02), np.sin(0.02) - 1)
    np.testing.assert_allclose(result.reward, -distance, rtol=1e-5)
    assert result.info["success"] == 0


def test_five_steps_on_the_button_press_it_and_it_stays_pressed(key):
    env = probe.make("button")
    state, _ = env.reset(key)
    state = state.replace(angle=jnp.zeros(2), button=jnp.array([1.0, 0.0]))
    step = jax.jit(env.step)
    rewards, successes = [], []
    for _ in range(6):
        state, result = step(state, jnp.zeros(2), key)
        rewards.append(float(result.reward))
        successes.append(float(result.info["success"]))
    np.testing.assert_allclose(rewards, [2, 2, 2, 2, 12, 12], atol=1e-5)
    assert successes == [0, 0, 0, 0, 1, 1]
    state = state.replace(angle=jnp.array([np.pi, 0.0]))
    _, result = step(state, jnp.zeros(2), key)
    np.testing.assert_allclose(result.reward, 10 - 2, atol=1e-5)
    np.testing.assert_allclose(result.observation[-1], 1.0, rtol=1e-6)


def test_a_controller_presses_it_from_everywhere():
    """Inverse kinematics of two equal links, and a critically damped servo."""
    env = probe.make("button")

    def episode(key):
        state, _ = env.reset(key)
        x, y = state.button
        elbow = jnp.arccos((x**2 + y**2 - 0.5) / 0.5)
        goal = jnp.stack([jnp.arctan2(y, x) - elbow / 2, elbow])

        def act(state, _):
            error = (goal - state.angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
            action = (state.velocity + 9 * error - 6 * state.velocity) / 8
            state, result = env.step(state, action, key)
            return state, (result.info["success"], result.truncated)

        return jax.lax.scan(act, state, None, length=100)[1]

    keys = jax.random.split(jax.random.key(1), 32)
    success, truncated = jax.jit(jax.vmap(episode))(keys)
    np.testing.assert_array_equal(success[:, -1], 1)
    np.testing.assert_array_equal(truncated.sum(1), 1)
    np.testing.assert_array_equal(truncated[:, -1], True)


def test_it_is_drawn(key):
    env = probe.make("button")
    state, _ = env.reset(key)
    plain = env.render(state)
    assert plain.dtype == np.uint8
    pressed = env.render(state.replace(depth=jnp.float32(0.1)))
    moved = env.render(state.replace(angle=state.angle + 1))
    assert (plain != pressed).any()
    assert (plain != moved).any()
