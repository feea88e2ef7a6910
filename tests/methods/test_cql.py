"""CQL: the penalty's gradient and value, SAC as a special case, the multiplier."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from jax.test_util import check_grads

from envs import probe
from rlx import learner
from rlx.methods import _offline, cql, sac
from rlx.ops import offline as ops
from tests.methods import offline

SPEC = offline.SPEC
KEY = jax.random.key(1)
SMALL = {"hidden_sizes": (8,), "num_actions": 3}


def conformance_cases():
    return {
        "lagrange": offline.case(
            cql, num_actions=3, lagrange=True, backup_entropy=True
        ),
    }


def test_worked_numbers():
    losses = cql.loss(jnp.array([2.0, -1.0]), jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(losses, [1.5, -2.0])


# A grid of five actions, each standing for a fifth of an interval of length 2.
UNIFORM = np.full(5, np.log(0.5), np.float32)


def penalty(value, shares):
    """The expected penalty, the data's actions having these shares."""
    soft = ops.log_integral_exp(value, jnp.asarray(UNIFORM))
    return jnp.sum(shares * cql.loss(jnp.broadcast_to(soft, (5,)), value))


def test_the_penalty_is_zero_in_gradient_where_exp_q_is_the_datas_density():
    shares = jnp.array([0.1, 0.2, 0.4, 0.25, 0.05])
    at_data = jnp.log(shares) + 7.0
    value, gradient = jax.value_and_grad(penalty)(at_data, shares)
    np.testing.assert_allclose(gradient, np.zeros(5), atol=1e-6)
    # There it is the entropy of the data's density, shares over 0.4 each.
    entropy = -np.sum(np.asarray(shares) * np.log(np.asarray(shares) / 0.4))
    np.testing.assert_allclose(value, entropy, rtol=1e-5)
    # Everywhere else it is larger: by the divergence of the two.
    other = jnp.array([1.0, -0.5, 0.3, 2.0, 0.0])
    softmax = np.asarray(jax.nn.softmax(other))
    divergence = np.sum(np.asarray(shares) * np.log(np.asarray(shares) / softmax))
    np.testing.assert_allclose(penalty(other, shares), entropy + divergence, rtol=1e-5)
    gradient = jax.grad(penalty)(other, shares)
    np.testing.assert_allclose(gradient, softmax - np.asarray(shares), atol=1e-6)


def test_the_penalty_does_not_see_a_constant():
    shares = jnp.array([0.1, 0.2, 0.4, 0.25, 0.05])
    value = jnp.array([1.0, -0.5, 0.3, 2.0, 0.0])
    np.testing.assert_allclose(
        penalty(value, shares), penalty(value + 100.0, shares), rtol=1e-4
    )
    gradient = jax.grad(penalty)(value, shares)
    np.testing.assert_allclose(jnp.sum(gradient), 0, atol=1e-6)


def test_gradient_against_finite_differences():
    with jax.enable_x64(True):
        value = jax.random.normal(jax.random.key(1), (4, 6), jnp.float64)
        log_proposal = jax.random.normal(jax.random.key(2), (4, 6), jnp.float64)

        def total(value):
            soft = ops.log_integral_exp(value, log_proposal, 0.6)
            return jnp.mean(cql.loss(soft, jnp.sin(value[:, 0])))

        check_grads(jax.jit(total), (value,), 1, ["rev"], rtol=1e-6, eps=1e-5)


# ------------------------------------------------------------------------ the method


def make(**fields):
    config = cql.Config(**{**SMALL, **fields})
    method = cql.make(SPEC, config)
    state = jax.jit(lambda key: learner.init(method, key))(jax.random.key(0))
    return method, config, state


def test_the_estimate_approaches_the_integral_over_the_box():
    """Linear critics: the integral of exp(w · a + c) over [-1, 1]² is known."""
    method, _, state = make(hidden_sizes=(), num_actions=4000)
    slopes = {"critic_0": (1.0, -0.5), "critic_1": (0.4, 2.0)}
    critics = jax.tree.map(jnp.zeros_like, state.params["critics"])
    for name, slope in slopes.items():
        layer = critics[name]["layer_0"]
        layer["kernel"] = layer["kernel"].at[3:, 0].set(jnp.array(slope))
    params = {**state.params, "critics": critics}
    batch = offline.batch(number=2)
    _, metrics = jax.jit(lambda p: method.loss_fn(p, p, (), batch, jax.random.key(4)))(
        params
    )
    unit = np.array(
        [[batch.action[i, 0], (batch.action[i, 1] - 0.5) / 2.5] for i in range(2)]
    )
    expected = []
    for slope in slopes.values():
        integral, _ = scipy.integrate.dblquad(
            lambda y, x, s=slope: np.exp(s[0] * x + s[1] * y), -1, 1, -1, 1
        )
        expected.append(np.log(integral) - unit @ np.array(slope))
    # 12,000 actions: the standard error of each logarithm is below 1.5 %.
    np.testing.assert_allclose(metrics["value_gap"], np.mean(expected), atol=0.05)


def test_the_sum_has_the_gradients_of_separate_losses():
    method, config, state = make(
        lagrange=True, weight=2.0, threshold=0.7, temperature=0.3, reward_scale=2.0
    )
    agent = _offline.make_agent(SPEC, config, "tanh_gaussian")
    batch, key = offline.batch(), jax.random.key(3)
    target = jax.tree.map(lambda x: 0.8 * x + 0.05, state.params)

    @jax.jit
    def both(params):
        next_key, penalty_key, here_key = jax.random.split(key, 3)
        action = agent.from_env(batch.action)
        here, after = batch.observation, batch.next_observation
        alpha, weight = 0.3, 2.0

        def policy(part, observation):
            return agent.distribution(part, observation)

        next_action, _, _ = policy(params["actor"], after).sample_and_log_prob(next_key)
        slow = agent.critics.apply(target["critics"], after, next_action)
        goal = 2.0 * batch.reward
        goal += 0.99 * batch.discount * jnp.minimum(slow[0], slow[1])
        first, second, third = jax.random.split(penalty_key, 3)

        def many(observation, key):
            wide = jnp.broadcast_to(observation, (3, *observation.shape))
            return policy(params["actor"], wide).sample_and_log_prob(key)

        mine, theirs = many(here, first), many(after, second)
        uniform = jax.random.uniform(third, (3, 32, 2), minval=-1.0)
        wide = jnp.broadcast_to(here, (3, *here.shape))

        def gaps(part):
            at_data = agent.critics.apply(part, here, action)
            terms = [
                agent.critics.apply(part, wide, a) - jnp.stack([log_density] * 2)
                for a, log_density in (
                    (mine.action, mine.log_prob),
                    (theirs.action, theirs.log_prob),
                    (uniform, jnp.full((3, 32), -2 * np.log(2.0))),
                )
            ]
            stacked = jnp.concatenate(terms, axis=1)  # [2, 9, 32]
            return jnp.log(jnp.mean(jnp.exp(stacked), axis=1)) - at_data

        def critics(part):
            q = agent.critics.apply(part, here, action)
            errors = sum(0.5 * jnp.mean((x - goal) ** 2) for x in q)
            return errors + weight * jnp.sum(jnp.mean(gaps(part), axis=1))

        def actor(part):
            drawn = policy(part, here).sample_and_log_prob(here_key)
            q = agent.critics.apply(params["critics"], here, drawn.action)
            return jnp.mean(alpha * drawn.log_prob - jnp.minimum(q[0], q[1]))

        def log_temperature(part):
            log_prob = policy(params["actor"], here).sample_and_log_prob(here_key)[1]
            return -jnp.exp(part) * jnp.mean(log_prob - 2)

        def log_weight(part):
            return -jnp.exp(part) * jnp.mean(gaps(params["critics"]) - 0.7)

        losses = (critics, actor, log_temperature, log_weight)
        separate = {f.__name__: jax.grad(f)(params[f.__name__]) for f in losses}
        summed = jax.grad(lambda p: method.loss_fn(p, target, (), batch, key)[0])(
            params
        )
        return summed, separate

    chex.assert_trees_all_close(*both(state.params), rtol=1e-4, atol=1e-5)


def test_without_weight_it_is_sac():
    # The scale is pinned so low that samples are the mode, whatever the key: the two
    # methods draw from different ones. So is the temperature, for the same reason.
    fields = {
        "hidden_sizes": (8,),
        "minimum_log_scale": -18.0,
        "maximum_log_scale": -16.0,
        "temperature": 1e-5,
        "automatic_temperature": False,
    }
    config = cql.Config(weight=0.0, num_actions=3, backup_entropy=True, **fields)
    ours = cql.make(SPEC, config)
    theirs = sac.make(SPEC, sac.Config(**fields))
    batch, key = offline.batch(), jax.random.key(3)

    @jax.jit
    def both(start):
        params = ours.init(start)
        target = jax.tree.map(lambda x: 0.8 * x + 0.05, params)
        return tuple(
            jax.grad(lambda p, m=m: m.loss_fn(p, target, (), batch, key)[0])(params)
            for m in (ours, theirs)
        )

    mine, other = both(jax.random.key(0))
    # log pi near 30 nats, times 1e-5, and its noise are what may differ.
    chex.assert_trees_all_close(mine, other, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(("threshold", "sign"), [(-50.0, 1), (50.0, -1)])
def test_the_multiplier_rises_above_the_threshold_and_falls_below(threshold, sign):
    method, _, state = make(lagrange=True, threshold=threshold)

    @jax.jit
    def gradient(log_weight):
        params = {**state.params, "log_weight": log_weight}
        return jax.value_and_grad(
            lambda x: method.loss_fn(
                {**params, "log_weight": x}, params, (), offline.batch(), KEY
            ),
            has_aux=True,
        )(log_weight)

    (_, metrics), slope = gradient(state.params["log_weight"])
    assert np.sign(slope) == -sign  # a descent step is up for sign 1
    np.testing.assert_allclose(
        slope, -5.0 * (metrics["value_gap"] - threshold), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["penalty_weight"], 5.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1.0}, "weight must not be negative"),
        ({"weight": 0.0, "lagrange": True}, "weight must be positive with lagrange"),
        ({"num_actions": 0}, "num_actions must be at least 1"),
        ({"soft_temperature": 0.0}, "soft_temperature must be positive"),
        ({"tau": -0.1}, "tau must lie in"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        cql.make(SPEC, cql.Config(**fields))


def test_it_learns_from_data_that_does_not_know():
    env = probe.make("observation_action_continuous")
    config = cql.Config(
        hidden_sizes=(16,),
        num_minibatches=4,
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        weight=0.1,
        temperature=0.02,
        automatic_temperature=False,
        num_actions=2,
    )
    data = offline.uniform_bandit()
    offline.assert_best(offline.learned_actions(cql.make(env.spec, config), data, 150))
