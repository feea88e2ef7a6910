"""IQL: expectiles by root finding, weighted regression in closed form, a probe."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jax.test_util import check_grads

from envs import probe
from rlx import learner
from rlx.methods import _off_policy, _offline, bc, iql
from rlx.ops import distributions, values
from tests.methods import offline

SPEC = offline.SPEC


def conformance_cases():
    return {
        "pendulum": offline.case(
            iql,
            policy="tanh_gaussian",
            normalize_observations=True,
            anneal_steps=50,
        ),
    }


def test_worked_numbers():
    # beta = 3: weights e^0 = 1, e^-3 and e^6 = 403, clipped at 100.
    losses = iql.loss(jnp.array([2.0, 2.0, -0.5]), jnp.array([0.0, -1.0, 2.0]))
    np.testing.assert_allclose(losses, [-2, -2 * np.exp(-3), 50], rtol=1e-6)


def test_gradients_against_finite_differences_and_the_constant():
    with jax.enable_x64(True):
        weights = jax.random.normal(jax.random.key(1), (3, 4), jnp.float64)
        observation = jax.random.normal(jax.random.key(2), (5, 3), jnp.float64)
        action = jax.random.normal(jax.random.key(3), (5, 2), jnp.float64)
        advantage = jax.random.normal(jax.random.key(4), (5,), jnp.float64)

        def loss(weights, advantage):
            mean, log_scale = jnp.split(observation @ weights, 2, axis=-1)
            policy = distributions.DiagonalGaussian(jnp.tanh(mean), log_scale)
            return jnp.mean(iql.loss(policy.log_prob(action), advantage))

        def of_weights(weights):
            return loss(weights, advantage)

        check_grads(jax.jit(of_weights), (weights,), 1, ["rev"], rtol=1e-6, eps=1e-5)
        constant = jax.grad(loss, argnums=1)(weights, advantage)
        np.testing.assert_array_equal(constant, np.zeros(5))


def linear(**fields):
    """IQL without hidden layers, whose target critics are linear in the action.

    Value, policy and critics ignore the observation where their biases say all.
    """
    config = iql.Config(hidden_sizes=(), **fields)
    method = iql.make(SPEC, config)
    params = jax.tree.map(jnp.zeros_like, method.init(jax.random.key(0)))
    target = jax.tree.map(jnp.copy, params)
    # Q = a · (1, -0.5) + 0.2 and, larger somewhere and smaller elsewhere, a second.
    slopes = {"critic_0": (1.0, -0.5), "critic_1": (0.4, 0.3)}
    for name, slope in slopes.items():
        layer = target["critics"][name]["layer_0"]
        layer["kernel"] = layer["kernel"].at[3:, 0].set(jnp.array(slope))
        layer["bias"] = jnp.array([0.2])
    return method, config, params, target


def q_of(batch):
    unit = np.asarray(
        distributions.rescale_from_box(batch.action, (-1.0, -2.0), (1.0, 3.0)),
        np.float64,
    )
    both = unit @ np.array([[1.0, 0.4], [-0.5, 0.3]]) + 0.2
    return unit, both.min(axis=1)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_the_value_loss_vanishes_at_the_expectile_found_by_root_finding(expectile):
    method, _, params, target = linear(expectile=expectile)
    batch = offline.batch(number=256)
    _, q = q_of(batch)

    def slope(v):
        above = np.maximum(q - v, 0).mean()
        return expectile * above - (1 - expectile) * np.maximum(v - q, 0).mean()

    root = scipy.optimize.brentq(slope, q.min(), q.max())

    @jax.jit
    def gradient(value):
        params["value"]["layer_0"]["bias"] = value[None]
        return jax.grad(
            lambda p: method.loss_fn(p, target, (), batch, jax.random.key(0))[0]
        )(params)["value"]["layer_0"]["bias"][0]

    np.testing.assert_allclose(gradient(jnp.float32(root)), 0, atol=1e-6)
    # The slope off the root is that of the paper's loss, by hand.
    expected = -2 * slope(root + 0.1)
    np.testing.assert_allclose(gradient(jnp.float32(root + 0.1)), expected, rtol=1e-4)


def test_known_expectiles_of_the_normal_distribution():
    # tau = 0.7 and 0.9 of N(0, 1), by root finding on its partial moments.
    grid = (np.arange(20_000) + 0.5) / 20_000
    sample = jnp.asarray(scipy.stats.norm.ppf(grid), jnp.float32)
    for tau, expected in ((0.7, 0.33712), (0.9, 0.86159)):
        gradient = jax.grad(
            lambda v, tau=tau: jnp.mean(
                values.expectile_loss(jnp.full(20_000, v), sample, tau)
            )
        )
        assert abs(float(gradient(expected))) < 1e-4
        assert (
            float(gradient(expected - 0.01)) < -1e-3 < 1e-3 < gradient(expected + 0.01)
        )


def test_the_policy_loss_vanishes_at_the_weighted_moments():
    """Weighted maximum likelihood of a Gaussian, solved in closed form."""
    method, config, params, target = linear(inverse_temperature=2.0, maximum_weight=3.0)
    batch = offline.batch(number=256)
    unit, q = q_of(batch)
    value = 0.1
    weight = np.minimum(np.exp(2.0 * (q - value)), 3.0)
    assert 3.0 in weight  # the clip is at work
    mean = (weight[:, None] * unit).sum(axis=0) / weight.sum()
    variance = (weight[:, None] * (unit - mean) ** 2).sum(axis=0) / weight.sum()
    params["value"]["layer_0"]["bias"] = jnp.array([value])
    actor = params["actor"]
    actor["mean"]["layer_0"]["bias"] = jnp.asarray(np.arctanh(mean), jnp.float32)
    low, high = config.minimum_log_scale, config.maximum_log_scale
    share = (0.5 * np.log(variance) - low) / (high - low)
    actor["scale"] = jnp.asarray(np.log(share / (1 - share)), jnp.float32)

    @jax.jit
    def gradient(params):
        return jax.grad(
            lambda p: method.loss_fn(p, target, (), batch, jax.random.key(0))[0]
        )(params)["actor"]

    found = gradient(params)
    np.testing.assert_allclose(found["mean"]["layer_0"]["bias"], [0, 0], atol=5e-6)
    np.testing.assert_allclose(found["scale"], [0, 0], atol=5e-6)
    # The unweighted moments are another point.
    actor["mean"]["layer_0"]["bias"] = jnp.asarray(
        np.arctanh(unit.mean(axis=0)), jnp.float32
    )
    assert np.abs(gradient(params)["mean"]["layer_0"]["bias"]).max() > 0.05


def test_the_sum_has_the_gradients_of_separate_losses():
    config = iql.Config(hidden_sizes=(8,), reward_scale=2.0, expectile=0.8)
    method = iql.make(SPEC, config)
    agent = _offline.make_agent(SPEC, config, config.policy)
    batch = offline.batch()

    @jax.jit
    def both(key):
        params = method.init(key)
        # Targets that differ from the parameters, so that a mix-up shows.
        target = jax.tree.map(lambda x: 0.8 * x + 0.05, params)
        action = agent.from_env(batch.action)
        slow = agent.critics.apply(target["critics"], batch.observation, action)
        slow = jnp.minimum(slow[0], slow[1])
        v = agent.value.apply(params["value"], batch.observation)
        next_v = agent.value.apply(params["value"], batch.next_observation)
        goal = 2.0 * batch.reward + 0.99 * batch.discount * next_v

        def value(part):
            u = slow - agent.value.apply(part, batch.observation)
            return jnp.mean(jnp.abs(0.8 - (u < 0)) * u**2)

        def critics(part):
            q = agent.critics.apply(part, batch.observation, action)
            return sum(0.5 * jnp.mean((x - goal) ** 2) for x in q)

        def actor(part):
            log_prob = agent.distribution(part, batch.observation).log_prob(action)
            return -jnp.mean(jnp.minimum(jnp.exp(3.0 * (slow - v)), 100.0) * log_prob)

        separate = {
            name: jax.grad(loss)(params[name])
            for name, loss in (("actor", actor), ("critics", critics), ("value", value))
        }
        summed = jax.grad(
            lambda p: method.loss_fn(p, target, (), batch, jax.random.key(2))[0]
        )(params)
        return summed, separate

    summed, separate = both(jax.random.key(0))
    chex.assert_trees_all_close(summed, separate, rtol=1e-4, atol=1e-6)


def test_without_temperature_the_policy_is_behaviour_cloning():
    fields = {"hidden_sizes": (8,)}
    method = iql.make(SPEC, iql.Config(inverse_temperature=0.0, **fields))
    cloning = bc.make(SPEC, bc.Config(normalize_observations=False, **fields))
    batch, key = offline.batch(), jax.random.key(0)
    params = method.init(key)
    ours = jax.grad(lambda p: method.loss_fn(p, params, (), batch, key)[0])(params)
    mine = {"actor": params["actor"]}
    theirs = jax.grad(lambda p: cloning.loss_fn(p, p, (), batch, key)[0])(mine)
    chex.assert_trees_all_close(ours["actor"], theirs["actor"], rtol=1e-5, atol=1e-7)


def test_the_step_size_of_the_policy_falls_as_a_cosine():
    fields = {"hidden_sizes": (8,), "actor_learning_rate": 1e-2, "anneal_steps": 4}
    method = iql.make(SPEC, iql.Config(**fields))
    steady = iql.make(SPEC, iql.Config(**fields, anneal_actor=False))
    batch = offline.batch()
    state = jax.jit(lambda key: learner.init(method, key))(jax.random.key(0))
    step = jax.jit(lambda s: learner.gradient_step(method, s, batch, jax.random.key(1)))
    same = jax.jit(lambda s: learner.gradient_step(steady, s, batch, jax.random.key(1)))

    def moved(new, old, name):
        distances = jax.tree.map(
            lambda a, b: jnp.max(jnp.abs(a - b)), new.params[name], old.params[name]
        )
        return max(float(x) for x in jax.tree.leaves(distances))

    for share in (1.0, 0.5 * (1 + np.sqrt(0.5)), 0.5, 0.5 * (1 - np.sqrt(0.5)), 0.0):
        new, _ = step(state)
        full = same(state)[0]
        ratio = moved(new, state, "actor") / moved(full, state, "actor")
        np.testing.assert_allclose(ratio, share, atol=1e-3)
        chex.assert_trees_all_close(new.params["critics"], full.params["critics"])
        state = new


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expectile": 1.0}, "expectile must lie in"),
        ({"inverse_temperature": -1.0}, "inverse_temperature must not be negative"),
        ({"maximum_weight": 0.0}, "maximum_weight must be positive"),
        ({"policy": "deterministic"}, "has no likelihood"),
        ({"tau": 1.5}, "tau must lie in"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        iql.make(SPEC, iql.Config(**fields))


def test_targets_follow_the_critics_alone():
    method = iql.make(SPEC, iql.Config(hidden_sizes=(8,)))
    params = method.init(jax.random.key(0))
    moved = jax.tree.map(lambda x: x + 1.0, params)
    target = method.target_update(moved, params, jnp.int32(1))
    slow = jax.tree.map(lambda x: x + 0.005, params["critics"])
    chex.assert_trees_all_close(target["critics"], slow, atol=1e-6)
    chex.assert_trees_all_equal(target["value"], params["value"])
    assert set(_off_policy.follow()(moved, params, 1)) == set(params)


def test_it_learns_from_data_that_does_not_know():
    env = probe.make("observation_action_continuous")
    config = iql.Config(
        hidden_sizes=(32,),
        num_minibatches=4,
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        tau=0.05,
        inverse_temperature=20.0,
    )
    data = offline.uniform_bandit()
    offline.assert_best(offline.learned_actions(iql.make(env.spec, config), data, 150))
