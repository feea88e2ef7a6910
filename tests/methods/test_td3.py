"""TD3: worked numbers, a NumPy oracle, delayed steps, DDPG as a special case."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from envs import probe
from rlx import learner
from rlx.methods import _deterministic, td3
from tests.methods import off_policy

SPEC = off_policy.SPEC
LOW, HIGH = np.array([-1.0, -2.0]), np.array([1.0, 3.0])


def conformance_cases():
    return {"pendulum": off_policy.case(td3)}


def test_worked_numbers():
    # Targets 1 + 0.9 min(3, 2) = 2.8 and, terminated, -1: errors 0.8 and -2.
    losses = td3.loss(
        jnp.array([2.0, 1.0]),
        jnp.array([1.0, -1.0]),
        jnp.array([1.0, 0.0]),
        jnp.array([3.0, 7.0]),
        jnp.array([2.0, 9.0]),
        gamma=0.9,
    )
    np.testing.assert_allclose(losses, [0.32, 2.0], rtol=1e-6)
    # 0.2 + 0.5, not 0.2 + 0.8; -0.9 - 0.3 leaves the bounds; 0.1 + 0.2 does neither.
    actions = td3.smoothed_action(
        jnp.array([0.2, -0.9, 0.1]), jnp.array([0.8, -0.3, 0.2]), clip=0.5
    )
    np.testing.assert_allclose(actions, [0.7, -1.0, 0.3], rtol=1e-6)


def make(**fields):
    method = td3.make(SPEC, td3.Config(**{"hidden_sizes": (8,), **fields}))
    state = jax.jit(lambda key: learner.init(method, key))(jax.random.key(0))
    # Targets that differ from the parameters, so that a mix-up shows.
    target = jax.tree.map(lambda x: 0.9 * x + 0.05, state.params)
    return method, state.replace(target_params=target)


def perceptron(params, inputs: np.ndarray) -> np.ndarray:
    """Layers in NumPy: relu between them."""
    layers = [params[f"layer_{i}"] for i in range(len(params))]
    for i, layer in enumerate(layers):
        inputs = inputs @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        if i < len(layers) - 1:
            inputs = np.maximum(inputs, 0.0)
    return inputs


def values(params, observation, action) -> list[np.ndarray]:
    inputs = np.concatenate([observation, action], axis=1)
    return [perceptron(params[name], inputs)[:, 0] for name in sorted(params)]


def test_losses_of_a_batch_in_numpy():
    method, state = make(reward_scale=2.0, smoothing_noise=0.7, gamma=0.8)
    batch, key = off_policy.batch(), jax.random.key(5)
    _, metrics = jax.jit(method.loss_fn)(
        state.params, state.target_params, (), batch, key
    )
    observation, successor, reward, discount = (
        np.asarray(x, np.float64)
        for x in (
            batch.observation,
            batch.next_observation,
            batch.reward,
            batch.discount,
        )
    )
    slow, fast = state.target_params, state.params
    noise = 0.7 * np.asarray(jax.random.normal(key, batch.action.shape))
    action = np.tanh(perceptron(slow["actor"], successor))
    action = np.clip(action + np.clip(noise, -0.5, 0.5), -1, 1)
    target = np.minimum(*values(slow["critics"], successor, action))
    target = 2.0 * reward + 0.8 * discount * target
    taken = 2 * (np.asarray(batch.action) - LOW) / (HIGH - LOW) - 1
    critic = sum(
        0.5 * np.mean((value - target) ** 2)
        for value in values(fast["critics"], observation, taken)
    )
    chosen = np.tanh(perceptron(fast["actor"], observation))
    policy = -np.mean(values(fast["critics"], observation, chosen)[0])
    np.testing.assert_allclose(metrics["critic_loss"], critic, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy_loss"], policy, rtol=1e-5)


def test_policy_and_targets_step_once_in_d_steps_like_separate_optimisers():
    rates = {"actor": 1e-3, "critics": 2e-3}
    method, state = make(
        policy_delay=3,
        actor_learning_rate=rates["actor"],
        critic_learning_rate=rates["critics"],
    )
    batch = off_policy.batch()
    adams = {name: optax.adam(rate) for name, rate in rates.items()}

    @jax.jit
    def separate_steps(params, target, moments, key):
        """Each part stepped alone, the other a constant."""
        stepped, new_moments = {}, {}
        for name, adam in adams.items():

            def loss(part, name=name):
                whole = {**jax.lax.stop_gradient(params), name: part}
                return method.loss_fn(whole, target, (), batch, key)[0]

            updates, new_moments[name] = adam.update(
                jax.grad(loss)(params[name]), moments[name]
            )
            stepped[name] = optax.apply_updates(params[name], updates)
        return stepped, new_moments

    by_learner = jax.jit(
        lambda state, key: learner.gradient_step(method, state, batch, key)[0]
    )
    params, target = state.params, state.target_params
    moments = {name: adam.init(params[name]) for name, adam in adams.items()}
    first = params["actor"]
    for step in range(1, 8):
        key = jax.random.key(step)
        state = by_learner(state, key)
        stepped, after = separate_steps(params, target, moments, key)
        parts = adams if step in (3, 6) else ["critics"]
        params = {**params, **{name: stepped[name] for name in parts}}
        moments = {**moments, **{name: after[name] for name in parts}}
        if step in (3, 6):
            target = jax.tree.map(lambda t, p: 0.995 * t + 0.005 * p, target, params)
        chex.assert_trees_all_close(state.params, params, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(state.target_params, target, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal_comparator(
        lambda a, b: bool(jnp.any(a != b)),
        lambda a, b: "unmoved",
        first,
        params["actor"],
    )


def test_critics_are_constants_of_the_policys_loss():
    _, state = make()
    agent = _deterministic.make_agent(SPEC, td3.Config(hidden_sizes=(8,)), 2)

    def loss(params):
        return _deterministic.policy_loss(agent, params, off_policy.batch())

    gradient = jax.jit(jax.grad(loss))(state.params)
    assert float(optax.tree.norm(gradient["critics"])) == 0
    assert float(optax.tree.norm(gradient["actor"])) > 0


def test_exploration_adds_noise_in_the_policys_units_inside_the_bounds():
    method, state = make(exploration_noise=0.3)
    observation = jnp.zeros((20_000, 3))

    def unit(key):
        action, _, _ = method.act(state.params, (), observation, (), key)
        return 2 * (np.asarray(action) - LOW) / (HIGH - LOW) - 1

    mean, drawn = unit(None), unit(jax.random.key(1))
    assert np.abs(mean).max() < 0.1  # far enough from bounds: next to nothing clipped
    np.testing.assert_allclose(np.std(drawn, axis=0), 0.3, rtol=0.03)
    np.testing.assert_allclose(np.mean(drawn - mean, axis=0), 0, atol=0.01)
    wide, _ = make(exploration_noise=10.0)
    action, _, _ = wide.act(state.params, (), observation, (), jax.random.key(2))
    np.testing.assert_allclose(np.min(action, axis=0), LOW)
    np.testing.assert_allclose(np.max(action, axis=0), HIGH)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy_delay": 0}, "policy_delay must be at least 1"),
        ({"smoothing_noise": -0.1}, "smoothing_noise must not be negative"),
        ({"exploration_noise": -0.1}, "exploration_noise must not be negative"),
        ({"tau": 1.5}, "tau must lie in"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        td3.make(SPEC, td3.Config(**fields))


def test_it_learns_which_action_suits_which_observation():
    env = probe.make("observation_action_continuous")
    config = td3.Config(
        hidden_sizes=(32,),
        num_minibatches=4,
        actor_learning_rate=1e-3,
        critic_learning_rate=1e-2,
        exploration_noise=0.3,
    )
    actions = off_policy.learned_actions(td3.make(env.spec, config), [-1.0, 1.0])
    off_policy.assert_best(actions)
