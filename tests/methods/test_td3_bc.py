"""TD3+BC: the scale of Q, its invariance, delayed steps, separate gradients."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from envs import probe
from rlx import learner
from rlx.methods import _deterministic, bc, td3_bc
from tests.methods import offline

SPEC = offline.SPEC


def conformance_cases():
    return {"pendulum": offline.case(td3_bc)}


def test_worked_numbers():
    # lambda = 2.5 / mean(|-1|, |2|, |3|) = 1.25.
    value = jnp.array([-1.0, 2.0, 3.0])
    scale = td3_bc.value_scale(value, 2.5)
    np.testing.assert_allclose(scale, 1.25)
    # d - lambda Q.
    losses = td3_bc.loss(value, jnp.array([0.5, 0.0, 0.25]), scale=scale)
    np.testing.assert_allclose(losses, [1.75, -2.5, -3.5])


def test_the_scaled_value_has_the_size_alpha_whatever_its_unit():
    value = jax.random.normal(jax.random.key(0), (50,)) * 7 + 3
    for unit in (1e-3, 1.0, 1e4):
        scale = td3_bc.value_scale(unit * value, 2.5)
        size = jnp.mean(jnp.abs(scale * unit * value))
        np.testing.assert_allclose(size, 2.5, rtol=1e-5)
    gradient = jax.grad(lambda q: td3_bc.value_scale(q, 2.5))(value)
    np.testing.assert_array_equal(gradient, np.zeros(50))
    assert np.isfinite(td3_bc.value_scale(jnp.zeros(3), 2.5))


def test_gradient_against_finite_differences():
    with jax.enable_x64(True):
        weights = jax.random.normal(jax.random.key(1), (3, 2), jnp.float64)
        observation = jax.random.normal(jax.random.key(2), (5, 3), jnp.float64)
        data = jnp.tanh(jax.random.normal(jax.random.key(3), (5, 2), jnp.float64))

        def loss(weights, scale):
            action = jnp.tanh(observation @ weights)
            value = jnp.sum(jnp.sin(3 * action) * observation[:, :2], axis=-1)
            distance = jnp.mean(jnp.square(action - data), axis=-1)
            return jnp.mean(td3_bc.loss(value, distance, scale=scale))

        check_grads(
            jax.jit(lambda w: loss(w, 0.7)), (weights,), 1, ["rev"], rtol=1e-6, eps=1e-5
        )


def make(**fields):
    config = td3_bc.Config(
        **{"hidden_sizes": (8,), "normalize_observations": False, **fields}
    )
    method = td3_bc.make(SPEC, config)
    return method, jax.jit(lambda key: learner.init(method, key))(jax.random.key(0))


def test_the_sum_has_the_gradients_of_separate_losses():
    method, state = make(reward_scale=2.0)
    agent = _deterministic.make_agent(SPEC, td3_bc.Config(hidden_sizes=(8,)), 2)
    batch, key = offline.batch(), jax.random.key(3)
    target = jax.tree.map(lambda x: 0.8 * x + 0.05, state.params)

    @jax.jit
    def both(params):
        action = agent.from_env(batch.action)

        def pi(part, observation):
            return agent.actor.apply(part, observation)

        after = pi(target["actor"], batch.next_observation)
        noise = jnp.clip(0.2 * jax.random.normal(key, after.shape), -0.5, 0.5)
        after = jnp.clip(after + noise, -1, 1)
        slow = agent.critics.apply(target["critics"], batch.next_observation, after)
        goal = 2.0 * batch.reward
        goal += 0.99 * batch.discount * jnp.minimum(slow[0], slow[1])

        def critics(part):
            q = agent.critics.apply(part, batch.observation, action)
            return sum(0.5 * jnp.mean((x - goal) ** 2) for x in q)

        def actor(part):
            mine = pi(part, batch.observation)
            q = agent.critics.apply(params["critics"], batch.observation, mine)[0]
            scale = 2.5 / jnp.mean(jnp.abs(jax.lax.stop_gradient(q)))
            return -scale * jnp.mean(q) + jnp.mean((mine - action) ** 2)

        separate = {
            "actor": jax.grad(actor)(params["actor"]),
            "critics": jax.grad(critics)(params["critics"]),
        }
        summed = jax.grad(lambda p: method.loss_fn(p, target, (), batch, key)[0])(
            params
        )
        return summed, separate

    chex.assert_trees_all_close(*both(state.params), rtol=1e-4, atol=1e-6)


def test_scaling_the_critics_leaves_the_policys_gradient():
    method, state = make()
    batch, key = offline.batch(), jax.random.key(3)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: method.loss_fn(p, p, (), batch, key)[0])(params)

    scaled = jax.tree.map(jnp.copy, state.params)
    for critic in scaled["critics"].values():
        critic["layer_1"] = jax.tree.map(lambda x: 50.0 * x, critic["layer_1"])
    ours, theirs = gradient(state.params), gradient(scaled)
    chex.assert_trees_all_close(ours["actor"], theirs["actor"], rtol=1e-4, atol=1e-6)


def test_without_weight_it_is_behaviour_cloning():
    method, state = make(value_weight=0.0)
    config = bc.Config("deterministic", hidden_sizes=(8,), normalize_observations=False)
    cloning = bc.make(SPEC, config)
    batch, key = offline.batch(), jax.random.key(3)

    @jax.jit
    def both(params):
        mine = {"actor": params["actor"]}
        return (
            jax.grad(lambda p: method.loss_fn(p, p, (), batch, key)[0])(params)[
                "actor"
            ],
            jax.grad(lambda p: cloning.loss_fn(p, p, (), batch, key)[0])(mine)["actor"],
        )

    chex.assert_trees_all_close(*both(state.params), rtol=1e-5, atol=1e-7)


def test_policy_and_targets_step_every_second_time():
    method, state = make(actor_learning_rate=1e-2)
    batch = offline.batch()
    step = jax.jit(lambda s, k: learner.gradient_step(method, s, batch, k)[0])
    adam = optax.adam(1e-2)
    actor, moments = state.params["actor"], adam.init(state.params["actor"])

    @jax.jit
    def by_hand(params, target, actor, moments, key):
        gradient = jax.grad(lambda p: method.loss_fn(p, target, (), batch, key)[0])(
            params
        )
        updates, moments = adam.update(gradient["actor"], moments)
        return optax.apply_updates(actor, updates), moments

    for i in range(4):
        key = jax.random.key(i)
        new = step(state, key)
        if i % 2 == 0:
            chex.assert_trees_all_equal(new.params["actor"], state.params["actor"])
            chex.assert_trees_all_equal(new.target_params, state.target_params)
        else:
            actor, moments = by_hand(
                state.params, state.target_params, actor, moments, key
            )
            chex.assert_trees_all_close(
                new.params["actor"], actor, rtol=1e-4, atol=1e-6
            )
            slow = jax.tree.map(
                lambda t, p: 0.995 * t + 0.005 * p, state.target_params, new.params
            )
            chex.assert_trees_all_close(new.target_params, slow, rtol=1e-5, atol=1e-7)
        moved = jax.tree.map(
            lambda a, b: bool(jnp.any(a != b)),
            new.params["critics"],
            state.params["critics"],
        )
        assert all(jax.tree.leaves(moved))
        state = new


def test_it_acts_on_standardised_observations_and_explores_only_with_a_key():
    config = td3_bc.Config(hidden_sizes=(8,), exploration_noise=0.3)
    method = td3_bc.make(SPEC, config)
    state = learner.init(method, jax.random.key(0))
    batch = offline.batch()
    stats, prepared = method.prepare(state, batch)
    plain, _ = make()
    greedy, _, _ = method.act(state.params, stats, batch.observation, (), None)
    expected, _, _ = plain.act(state.params, (), prepared.observation, (), None)
    np.testing.assert_array_equal(greedy, expected)
    noisy, _, _ = method.act(
        state.params, stats, batch.observation, (), jax.random.key(1)
    )
    # The second action has 2.5 times the unit: 0.3 of it is 0.75.
    spread = np.std(np.asarray(noisy - greedy), axis=0)
    np.testing.assert_allclose(spread, [0.3, 0.75], rtol=0.3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value_weight": -1.0}, "value_weight must not be negative"),
        ({"policy_delay": 0}, "policy_delay must be at least 1"),
        ({"smoothing_clip": -0.1}, "smoothing_clip must not be negative"),
        ({"gamma": 1.5}, "gamma must lie in"),
        ({"exploration_noise": -0.1}, "exploration_noise"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        td3_bc.make(SPEC, td3_bc.Config(**fields))


def test_it_learns_from_data_that_does_not_know():
    env = probe.make("observation_action_continuous")
    config = td3_bc.Config(
        hidden_sizes=(32,),
        num_minibatches=4,
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        tau=0.05,
        value_weight=10.0,
    )
    method = td3_bc.make(env.spec, config)
    actions = offline.learned_actions(method, offline.uniform_bandit(), 150)
    # Minimises lambda (a - 1/2)² + a² around the mean 0 of the data: short of 1/2.
    offline.assert_best(actions, 0.12)
