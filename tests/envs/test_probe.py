"""Probes against exact enumeration, Riccati solvers, simulation and Gymnasium."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from envs import probe
from envs.probe import draw, linear_quadratic
from envs.probe.chains import ChainState
from envs.probe.classic import CartPoleState, PendulumState
from rlx.types import Box, Discrete, Env


def episode(env: Env, key: jax.Array, actions: list) -> list:
    """Plays `actions` until an end; returns the steps, with the observations before."""
    reset_key, key = jax.random.split(key)
    state, observation = env.reset(reset_key)
    steps = []
    keys = jax.random.split(key, len(actions))
    for action, step_key in zip(actions, keys, strict=True):
        state, step = env.step(state, action, step_key)
        steps.append((observation, action, step))
        observation = step.observation
        if step.terminated or step.truncated:
            break
    return steps


def example_action(env: Env) -> np.ndarray:
    space = env.spec.action
    return np.zeros(space.shape, space.dtype)


# ------------------------------------------------------------- what all have in common


@pytest.mark.parametrize("name", probe.names())
def test_spec_and_shapes(name: str, key: jax.Array) -> None:
    env = probe.make(name)
    assert env.spec.name == f"probe/{name}"
    reset = jax.eval_shape(env.reset, key)
    action = example_action(env)
    stepped = jax.eval_shape(env.step, reset[0], action, key)
    assert jax.tree.map(jnp.shape, reset[0]) == jax.tree.map(jnp.shape, stepped[0])
    assert jax.tree.map(lambda x: x.dtype, reset[0]) == jax.tree.map(
        lambda x: x.dtype, stepped[0]
    )
    for observation in (reset[1], stepped[1].observation):
        assert observation.shape == env.spec.observation.shape
        assert observation.dtype == env.spec.observation.dtype
    step = stepped[1]
    assert step.reward.shape == step.terminated.shape == step.truncated.shape == ()
    assert step.reward.dtype == jnp.float32
    assert step.terminated.dtype == step.truncated.dtype == bool


@pytest.mark.parametrize("name", ["chain", "lqr"])
def test_vmap_equals_a_loop(name: str, key: jax.Array) -> None:
    env = probe.make(name)
    keys = jax.random.split(key, 4)
    action = np.ones(env.spec.action.shape, env.spec.action.dtype)

    def two_steps(key: jax.Array):
        reset_key, first_key, second_key = jax.random.split(key, 3)
        state, _ = env.reset(reset_key)
        state, first = env.step(state, action, first_key)
        return first, env.step(state, action, second_key)

    together = jax.jit(jax.vmap(two_steps))(keys)
    one = jax.jit(two_steps)
    for i in range(4):
        alone = one(keys[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-7),
            together,
            alone,
        )


@pytest.mark.parametrize("name", ["chain", "ring", "lqr", "pendulum", "cartpole"])
def test_bad_time_limit(name: str) -> None:
    with pytest.raises(ValueError, match="time_limit must be a whole number"):
        probe.make(name, time_limit=0)


def test_unknown_option_lists_the_known() -> None:
    with pytest.raises(TypeError, match="has no option limit; its options: time_limit"):
        probe.make("chain", limit=3)


# ---------------------------------------------------------------------------- one step


def test_constant_reward(key: jax.Array) -> None:
    for action in (0, 1):
        ((_, _, step),) = episode(probe.constant_reward(), key, [action] * 3)
        assert step.reward == 1 and step.terminated and not step.truncated


def test_observation_reward_is_the_observation(key: jax.Array) -> None:
    seen = set()
    for k in jax.random.split(key, 8):
        ((observation, _, step),) = episode(probe.observation_reward(), k, [0, 0])
        assert step.reward == observation[0] and step.terminated
        seen.add(float(observation[0]))
    assert seen == {-1.0, 1.0}


def test_delayed_reward_comes_at_the_second_step(key: jax.Array) -> None:
    first, second = episode(probe.delayed_reward(), key, [0] * 4)
    assert (first[0], first[2].reward, first[2].terminated) == (0, 0, False)
    assert (second[0], second[2].reward, second[2].terminated) == (1, 1, True)
    assert first[2].observation == second[0]


def test_action_reward(key: jax.Array) -> None:
    rewards = [episode(probe.action_reward(), key, [a])[0][2].reward for a in (0, 1)]
    assert rewards == [-1, 1]


def test_action_reward_continuous_is_best_at_one_half(key: jax.Array) -> None:
    env = probe.make("action_reward_continuous")
    rewards = [
        episode(env, key, [jnp.array([a])])[0][2].reward for a in (-1.0, 0.5, 1.0)
    ]
    np.testing.assert_allclose(rewards, [-2.25, 0.0, -0.25])


def test_observation_action_is_right_or_wrong(key: jax.Array) -> None:
    env = probe.observation_action()
    for k in jax.random.split(key, 6):
        for action in (0, 1):
            ((observation, _, step),) = episode(env, k, [action])
            right = action == int(observation[0] > 0)
            assert step.reward == (1 if right else -1)


def test_observation_action_continuous(key: jax.Array) -> None:
    env = probe.make("observation_action_continuous")
    for k in jax.random.split(key, 4):
        ((observation, _, step),) = episode(env, k, [jnp.array([0.5])])
        assert step.reward == (0 if observation[0] > 0 else -1)


@pytest.mark.parametrize("delay", [1, 3])
def test_memory_shows_the_cue_once_and_asks_later(delay: int, key: jax.Array) -> None:
    env = probe.memory(delay=delay)
    rewards = []
    for k in jax.random.split(key, 6):
        cue = float(env.reset(jax.random.split(k)[0])[1][0])
        answer = int(cue > 0)
        right = episode(env, k, [1 - answer] * delay + [answer] * 3)
        wrong = episode(env, k, [answer] * delay + [1 - answer] * 3)
        assert len(right) == len(wrong) == delay + 1
        observations = np.array([observation for observation, _, _ in right])
        expected = np.zeros((delay + 1, 2))
        expected[0, 0], expected[-1, 1] = cue, 1
        np.testing.assert_array_equal(observations, expected)
        assert [float(s.reward) for _, _, s in right] == [0] * delay + [1]
        assert [float(s.reward) for _, _, s in wrong] == [0] * delay + [-1]
        assert [bool(s.terminated) for _, _, s in right] == [False] * delay + [True]
        rewards.append(cue)
    assert set(rewards) == {-1.0, 1.0}


def test_memory_refuses_no_delay() -> None:
    with pytest.raises(ValueError, match="delay"):
        probe.memory(delay=0)


# ------------------------------------------------------------------------------ chains


def test_chain_values_by_hand() -> None:
    # V(2) = 3; V(1) = 2 + 0.5·3 = 3.5; V(0) = 1 + 0.5·3.5 = 2.75.
    np.testing.assert_allclose(probe.chain_values(0.5), [2.75, 3.5, 3.0])
    # 1 every third step: V(2) = 1 / (1 - 1/8) = 8/7, then halves backwards.
    np.testing.assert_allclose(probe.ring_values(0.5), [2 / 7, 4 / 7, 8 / 7])
    with pytest.raises(np.linalg.LinAlgError):
        probe.ring_values(1.0)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("name", ["chain", "ring"])
def test_chain_values_by_walking(name: str, gamma: float, key: jax.Array) -> None:
    env = probe.make(name, time_limit=None)
    values = {"chain": probe.chain_values, "ring": probe.ring_values}[name](gamma)
    length = 4000

    def walk(position: jax.Array) -> jax.Array:
        def body(carry, _):
            state, weight = carry
            state, step = env.step(state, 0, key)
            going = weight * gamma * (1 - step.terminated)
            return (state, going), weight * step.reward

        start = ChainState(position=position, time=jnp.int32(0))
        return jax.lax.scan(body, (start, 1.0), None, length)[1].sum()

    np.testing.assert_allclose(jax.vmap(walk)(jnp.arange(3)), values, rtol=1e-5)


def test_chain_ends_and_cuts(key: jax.Array) -> None:
    env = probe.chain()
    flags = []
    for start in range(3):
        state = ChainState(position=jnp.int32(start), time=jnp.int32(0))
        steps = []
        for _ in range(2):
            state, step = env.step(state, 1, key)
            steps.append((bool(step.terminated), bool(step.truncated)))
            if any(steps[-1]):
                break
        flags.append(steps)
        if start == 0:  # the true successor of a cut: state 2
            np.testing.assert_array_equal(step.observation, [0, 0, 1])
        else:
            np.testing.assert_array_equal(step.observation, [0, 0, 0])
    no, end, cut = (False, False), (True, False), (False, True)
    # From 1 the last step allowed also terminates: that is an end, not a cut.
    assert flags == [[no, cut], [no, end], [end]]


def test_ring_only_cuts(key: jax.Array) -> None:
    steps = episode(probe.ring(time_limit=7), key, [0] * 10)
    assert [bool(s.truncated) for _, _, s in steps] == [False] * 6 + [True]
    assert not any(s.terminated for _, _, s in steps)
    starts = {int(probe.ring().reset(k)[0].position) for k in jax.random.split(key, 20)}
    assert starts == {0, 1, 2}


# --------------------------------------------------------------------------------- LQR


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_riccati_against_scipy(gamma: float) -> None:
    solution = probe.lqr_solution(gamma)
    root = np.sqrt(gamma)
    oracle = scipy.linalg.solve_discrete_are(
        root * linear_quadratic.A,
        root * linear_quadratic.B,
        linear_quadratic.Q,
        linear_quadratic.R,
    )
    np.testing.assert_allclose(solution.value_matrix, oracle, rtol=1e-9)


def test_lyapunov_against_scipy() -> None:
    gain, gamma = np.array([[0.7, 1.1]]), 0.95
    closed = np.sqrt(gamma) * (linear_quadratic.A - linear_quadratic.B @ gain)
    oracle = scipy.linalg.solve_discrete_lyapunov(
        closed.T, linear_quadratic.Q + gain.T @ linear_quadratic.R @ gain
    )
    value_matrix = probe.lqr_evaluate(gain, gamma).value_matrix
    np.testing.assert_allclose(value_matrix, oracle, rtol=1e-10)


def test_no_other_gain_is_better() -> None:
    best = probe.lqr_solution(0.9)
    x = np.array([[1.0, -0.5], [0.3, 0.8]])
    for change in ([0.05, 0.0], [-0.05, 0.0], [0.0, 0.05], [0.0, -0.05]):
        other = probe.lqr_evaluate(best.gain + np.array([change]), 0.9)
        assert (other.value(x) < best.value(x)).all()


def test_unstable_gain_is_refused() -> None:
    with pytest.raises(ValueError, match="no finite value"):
        probe.lqr_evaluate(np.array([[-5.0, -5.0]]), 0.99)


@pytest.mark.parametrize(
    ("action_std", "start"), [(0.0, (0.0, 0.0)), (0.3, (0.8, -0.4))]
)
def test_lqr_value_by_simulation(
    action_std: float, start: tuple[float, float], key: jax.Array
) -> None:
    gamma, length, runs = 0.9, 120, 2048
    env = probe.lqr(time_limit=None)
    best = probe.lqr_solution(gamma)
    expected = probe.lqr_evaluate(best.gain, gamma, action_std)
    gain = jnp.asarray(best.gain, jnp.float32)

    def run(key: jax.Array) -> jax.Array:
        def body(state, row):
            key, weight = row
            noise_key, step_key = jax.random.split(key)
            noise = action_std * jax.random.normal(noise_key, (1,))
            state, step = env.step(state, -gain @ state.x + noise, step_key)
            return state, weight * step.reward

        state = linear_quadratic.LQRState(x=jnp.array(start), time=jnp.int32(0))
        weights = gamma ** jnp.arange(length)
        rows = (jax.random.split(key, length), weights)
        return jax.lax.scan(body, state, rows)[1].sum()

    returns = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(key, runs)))
    error = returns.std() / np.sqrt(runs)
    assert abs(returns.mean() - expected.value(np.asarray(start))) < 4 * error
    # The interval is narrow enough to see the noise's share of the value, and from
    # the origin, where nothing else is, a missing γ in it.
    assert 4 * error < expected.offset * (1 if action_std else 1 - gamma)


def test_lqr_is_cut_never_ended(key: jax.Array) -> None:
    steps = episode(probe.lqr(time_limit=3), key, [jnp.zeros(1)] * 5)
    assert [bool(s.truncated) for _, _, s in steps] == [False, False, True]
    assert not any(s.terminated for _, _, s in steps)


# ------------------------------------------------------------------ against Gymnasium


def test_cartpole_equals_gymnasium(
    key: jax.Array, generator: np.random.Generator
) -> None:
    theirs = gymnasium.make("CartPole-v1")
    ours = probe.cartpole()
    assert ours.spec.time_limit == theirs.spec.max_episode_steps
    assert ours.spec.action == Discrete(int(theirs.action_space.n))
    np.testing.assert_allclose(
        np.array(ours.spec.observation.maximum, np.float32),
        theirs.observation_space.high,
    )
    step = jax.jit(ours.step)
    ends = 0
    for seed in range(10):
        observation, _ = theirs.reset(seed=seed)
        state = CartPoleState(physics=jnp.asarray(observation), time=jnp.int32(0))
        for _ in range(100):
            action = int(generator.integers(2))
            state, mine = step(state, action, key)
            observation, reward, terminated, _, _ = theirs.step(action)
            np.testing.assert_allclose(mine.observation, observation, atol=2e-5)
            assert mine.reward == reward
            assert mine.terminated == terminated
            if terminated:
                ends += 1
                break
    assert ends == 10


def test_cartpole_is_cut_at_its_limit(key: jax.Array) -> None:
    theirs = gymnasium.make("CartPole-v1", max_episode_steps=5)
    theirs.reset(seed=0)
    flags = [theirs.step(i % 2)[2:4] for i in range(5)]
    steps = episode(probe.cartpole(time_limit=5), key, [0, 1] * 4)
    assert [(bool(s.terminated), bool(s.truncated)) for _, _, s in steps] == flags


def test_cartpole_starts_like_gymnasium(key: jax.Array) -> None:
    starts = np.array(jax.vmap(probe.cartpole().reset)(jax.random.split(key, 500))[1])
    assert np.abs(starts).max() <= 0.05
    np.testing.assert_allclose(starts.std(0), 0.1 / np.sqrt(12), rtol=0.15)


def test_pendulum_equals_gymnasium(
    key: jax.Array, generator: np.random.Generator
) -> None:
    theirs = gymnasium.make("Pendulum-v1")
    ours = probe.pendulum()
    assert ours.spec.time_limit == theirs.spec.max_episode_steps
    assert ours.spec.action == Box((1,), -1.0, 1.0)
    step = jax.jit(ours.step)
    scale = np.array([1.0, 1.0, 1 / 8])
    theirs.reset(seed=0)
    clipped = 0
    for time in range(200):
        angle, velocity = theirs.unwrapped.state
        # From their float64 state, so that rounding does not build up.
        state = PendulumState(
            angle=jnp.float32(angle), velocity=jnp.float32(velocity), time=time
        )
        action = generator.uniform(-1.5, 1.5, (1,)).astype(np.float32)
        _, mine = step(state, action, key)
        observation, reward, terminated, truncated, _ = theirs.step(2 * action)
        np.testing.assert_allclose(mine.observation, observation * scale, atol=1e-5)
        np.testing.assert_allclose(mine.reward, reward, rtol=1e-4, atol=1e-5)
        assert (mine.terminated, mine.truncated) == (terminated, truncated)
        clipped += abs(action[0]) > 1
    assert truncated and clipped > 20


def test_pendulum_stops_accelerating_at_its_top_speed(key: jax.Array) -> None:
    state = PendulumState(
        angle=jnp.float32(1.57), velocity=jnp.float32(7.9), time=jnp.int32(0)
    )
    state, step = probe.pendulum().step(state, jnp.ones(1), key)
    assert state.velocity == 8 and step.observation[2] == 1


# ----------------------------------------------------------------------------- pictures


def where(picture: np.ndarray, colour: str) -> np.ndarray:
    """The middle (x, y) of all pixels of a colour, in pixels, y up."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    rows, columns = np.nonzero((picture == wanted).all(axis=-1))
    return np.array([columns.mean(), len(picture) - 1 - rows.mean()])


@pytest.mark.parametrize("angle", [0.0, 0.5, 2.5, -1.2])
def test_a_picture_of_the_pendulum(angle: float, key: jax.Array) -> None:
    env = probe.make("pendulum")
    state, _ = env.reset(key)
    picture = env.render(state.replace(angle=jnp.float32(angle)))
    assert picture.shape == (360, 480, 3) and picture.dtype == np.uint8
    # Gymnasium turns it counterclockwise from upright; a metre is 360 / 2.6 pixels.
    tip = np.array([-np.sin(angle), np.cos(angle)]) * 360 / 2.6
    found = where(picture, draw._BODY) - [239.5, 179.5]
    np.testing.assert_allclose(found, tip, atol=1.5)


@pytest.mark.parametrize(("position", "angle"), [(0.0, 0.0), (1.5, 0.2), (-2.0, -0.1)])
def test_a_picture_of_the_cart_pole(
    position: float, angle: float, key: jax.Array
) -> None:
    env = probe.make("cartpole")
    state, _ = env.reset(key)
    state = state.replace(physics=jnp.array([position, 1.0, angle, 1.0]))
    picture = env.render(state, width=560, height=280)  # a metre is 100 pixels
    pole = where(picture, draw._POLE) - [279.5, 119.5 + 8]
    expected = 100 * np.array([position + np.sin(angle) / 2, np.cos(angle) / 2])
    np.testing.assert_allclose(pole, expected, atol=4)


@pytest.mark.parametrize("name", ["pendulum", "cartpole"])
def test_what_is_no_number_is_an_empty_picture(name: str, key: jax.Array) -> None:
    env = probe.make(name)
    state, _ = env.reset(key)
    broken = jax.tree.map(
        lambda x: x if x.dtype == jnp.int32 else jnp.full_like(x, jnp.nan), state
    )
    seen, empty = env.render(state), env.render(broken)
    assert 0.001 < (seen != empty).any(axis=-1).mean() < 0.1
    assert not (empty == Image.new("RGB", (1, 1), draw._POLE)).all(axis=-1).any()
