"""AWAC: weighted regression in closed form, separate gradients, cloning as a limit."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from envs import probe
from rlx import learner
from rlx.methods import _offline, awac, bc
from rlx.ops import distributions
from rlx.ops import offline as ops
from tests.methods import offline

SPEC = offline.SPEC


def conformance_cases():
    return {
        "pendulum": offline.case(awac),
    }


def test_worked_numbers():
    losses = awac.loss(jnp.array([2.0, -1.0]), jnp.array([0.5, 3.0]))
    np.testing.assert_allclose(losses, [-1.0, 3.0])


def test_gradients_against_finite_differences_and_the_constant():
    with jax.enable_x64(True):
        log_prob = jax.random.normal(jax.random.key(1), (6,), jnp.float64)
        advantage = jax.random.normal(jax.random.key(2), (6,), jnp.float64)

        def loss(log_prob, advantage):
            weight = ops.normalized_advantage_weight(advantage, 0.5)
            return jnp.mean(awac.loss(jnp.sin(log_prob), weight))

        check_grads(
            lambda x: loss(x, advantage), (log_prob,), 1, ["rev"], rtol=1e-6, eps=1e-5
        )
        constant = jax.grad(loss, argnums=1)(log_prob, advantage)
        np.testing.assert_array_equal(constant, np.zeros(6))


def test_regression_recovers_the_improved_policy_of_a_bandit():
    """π ∝ π_β exp(A/λ) in closed form, for a Gaussian π_β and a quadratic Q.

    With π_β = N(0, 1) and A = −(a − 1)²/2 + constant the product is Gaussian, of
    precision 1 + 1/λ and mean (1/λ) / (1 + 1/λ). Quantiles stand for the data.
    """
    number, temperature = 4000, 0.5
    action = jax.scipy.stats.norm.ppf((jnp.arange(number) + 0.5) / number)
    advantage = -0.5 * jnp.square(action - 1.0)
    precision = 1 + 1 / temperature
    mean, log_scale = (1 / temperature) / precision, -0.5 * np.log(precision)

    def loss(mean, log_scale, weight):
        policy = distributions.diagonal_gaussian(
            jnp.full((number, 1), mean), log_scale[None]
        )
        return jnp.mean(awac.loss(policy.log_prob(action[:, None]), weight))

    for weight in (
        ops.normalized_advantage_weight(advantage, 1 / temperature),
        ops.advantage_weight(advantage, 1 / temperature, 100.0),
    ):
        gradient = jax.grad(loss, (0, 1))(mean, jnp.float32(log_scale), weight)
        np.testing.assert_allclose(gradient, [0, 0], atol=2e-3)
        away = jax.grad(loss)(0.0, jnp.float32(log_scale), weight)
        assert float(away) < -0.2


@pytest.mark.parametrize("normalized", [True, False])
def test_the_sum_has_the_gradients_of_separate_losses(normalized):
    config = awac.Config(
        hidden_sizes=(8,),
        temperature=0.5,
        normalize_weights=normalized,
        initial_log_scale=-1.0,
    )
    method = awac.make(SPEC, config)
    agent = _offline.make_agent(SPEC, config, config.policy, -1.0)
    batch, key = offline.batch(), jax.random.key(3)

    @jax.jit
    def both(start):
        params = method.init(start)
        target = jax.tree.map(lambda x: 0.8 * x + 0.05, params)
        next_key, here_key = jax.random.split(key)
        action = agent.from_env(batch.action)

        def drawn(observation, key):
            policy = agent.distribution(params["actor"], observation)
            return jnp.clip(policy.sample(key), -1, 1)

        def smallest(params, observation, action):
            q = agent.critics.apply(params["critics"], observation, action)
            return jnp.minimum(q[0], q[1])

        successor = batch.next_observation
        next_q = smallest(target, successor, drawn(successor, next_key))
        goal = batch.reward + 0.99 * batch.discount * next_q
        here = batch.observation
        advantage = smallest(params, here, action)
        advantage -= smallest(params, here, drawn(here, here_key))
        weight = jnp.exp(advantage / 0.5)
        if normalized:
            weight = weight / jnp.mean(weight)

        def critics(part):
            q = agent.critics.apply(part, here, action)
            return sum(0.5 * jnp.mean((x - goal) ** 2) for x in q)

        def actor(part):
            log_prob = agent.distribution(part, here).log_prob(action)
            return -jnp.mean(weight * log_prob)

        separate = {
            "actor": jax.grad(actor)(params["actor"]),
            "critics": jax.grad(critics)(params["critics"]),
        }
        summed = jax.grad(lambda p: method.loss_fn(p, target, (), batch, key)[0])(
            params
        )
        return summed, separate

    summed, separate = both(jax.random.key(0))
    chex.assert_trees_all_close(summed, separate, rtol=1e-4, atol=1e-5)


def test_a_hot_temperature_is_behaviour_cloning():
    fields = {"hidden_sizes": (8,), "minimum_log_scale": -6.0, "maximum_log_scale": 0.0}
    fields["initial_log_scale"] = -3.0
    method = awac.make(SPEC, awac.Config(temperature=1e9, **fields))
    cloning = bc.make(SPEC, bc.Config(normalize_observations=False, **fields))
    batch, key = offline.batch(), jax.random.key(0)
    params = method.init(key)
    ours = jax.grad(lambda p: method.loss_fn(p, params, (), batch, key)[0])(params)
    mine = {"actor": params["actor"]}
    theirs = jax.grad(lambda p: cloning.loss_fn(p, p, (), batch, key)[0])(mine)
    chex.assert_trees_all_close(ours["actor"], theirs["actor"], rtol=1e-5, atol=1e-5)


def test_the_policys_weights_decay():
    # Adam's first step is the sign of gradient + decay: a huge decay shrinks them all.
    config = awac.Config(hidden_sizes=(8,), actor_weight_decay=1e9)
    method = awac.make(SPEC, config)
    state = jax.jit(lambda key: learner.init(method, key))(jax.random.key(0))
    new, _ = jax.jit(
        lambda s: learner.gradient_step(method, s, offline.batch(), jax.random.key(1))
    )(state)
    old = state.params["actor"]["mean"]["layer_0"]["kernel"]
    moved = new.params["actor"]["mean"]["layer_0"]["kernel"] - old
    np.testing.assert_allclose(moved, -3e-4 * jnp.sign(old), rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"maximum_weight": -1.0}, "maximum_weight must be positive"),
        ({"policy": "deterministic"}, "has no likelihood"),
        ({"initial_log_scale": 0.5}, "initial_log_scale must lie between"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        awac.make(SPEC, awac.Config(**fields))


def test_it_learns_from_data_that_does_not_know():
    env = probe.make("observation_action_continuous")
    config = awac.Config(
        hidden_sizes=(32,),
        num_minibatches=4,
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        tau=0.05,
        temperature=0.05,
    )
    data = offline.uniform_bandit()
    offline.assert_best(offline.learned_actions(awac.make(env.spec, config), data, 150))
