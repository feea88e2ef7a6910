"""PPO: worked numbers, reductions, gradients."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from envs import probe
from rlx import train
from rlx.data.rollout import rollout
from rlx.methods import _on_policy, ppo
from tests.methods import conformance


def conformance_cases():
    return {
        "squashed": conformance.on_policy_case(
            ppo, "pendulum", squash=True, state_dependent_scale=True, value_clip=0.2
        ),
        "cartpole": conformance.on_policy_case(
            ppo, "cartpole", shared_torso=True, normalize_advantages="minibatch"
        ),
        "recurrent": conformance.on_policy_case(
            ppo, "memory", recurrent_size=4, target_kl=0.01
        ),
    }


def test_worked_numbers():
    # rho = 1.5, A = 2, clip .2: min(3.0, 2.4) = 2.4. rho = 0.5, A = -1: the clipped
    # term is -0.8, the plain one -0.5, the smaller is -0.8. rho = 1: A itself.
    log_prob = jnp.log(jnp.array([1.5, 0.5, 1.0]))
    advantage = jnp.array([2.0, -1.0, 3.0])
    losses = ppo.loss(log_prob, jnp.zeros(3), advantage, clip=0.2)
    np.testing.assert_allclose(losses, [-2.4, 0.8, -3.0], rtol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_against_rlax():
    import rlax  # its own dependencies warn while they are imported

    keys = jax.random.split(jax.random.key(0), 2)
    log_ratio = 0.5 * jax.random.normal(keys[0], (64,))
    advantage = jax.random.normal(keys[1], (64,))
    expected = rlax.clipped_surrogate_pg_loss(jnp.exp(log_ratio), advantage, 0.2)
    losses = ppo.loss(log_ratio, jnp.zeros(64), advantage, clip=0.2)
    np.testing.assert_allclose(jnp.mean(losses), expected, rtol=1e-5)


def test_gradient_against_finite_differences():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), 2)
        log_ratio = 0.3 * jax.random.normal(keys[0], (32,), jnp.float64)
        advantage = jax.random.normal(keys[1], (32,), jnp.float64)
        old = jnp.zeros(32, jnp.float64)
        check_grads(
            lambda x: ppo.loss(x, old, advantage, clip=0.2), (log_ratio,), 1, ["rev"]
        )


def test_the_gradient_is_zero_where_the_clip_binds():
    log_prob = jnp.log(jnp.array([1.3, 0.7, 1.3, 0.7]))
    advantage = jnp.array([1.0, -1.0, -1.0, 1.0])
    gradient = jax.grad(
        lambda x: jnp.sum(ppo.loss(x, jnp.zeros(4), advantage, clip=0.2))
    )(log_prob)
    np.testing.assert_array_equal(gradient[:2], 0.0)
    np.testing.assert_allclose(gradient[2:], [1.3, -0.7], rtol=1e-6)


def test_an_infinite_clip_and_one_step_is_the_advantage_actor_critic():
    env = probe.make("cartpole")
    config = ppo.Config(
        clip=float("inf"), num_epochs=1, num_minibatches=1, hidden_sizes=(8,)
    )
    method = ppo.make(env.spec, config)
    source = rollout(env, num_envs=4, length=8)
    state, batch = conformance.first_batch(method, source)
    agent = _on_policy.make_agent(env.spec, config)

    def a2c(params):
        prediction = _on_policy.predict(agent, config, params, batch)
        policy_loss = -jnp.mean(prediction.log_prob * batch.advantage)
        value_loss = jnp.mean((prediction.value - batch.value_target) ** 2)
        return policy_loss + config.value_coefficient * value_loss

    def ours(params):
        return method.loss_fn(params, (), (), batch, jax.random.key(2))[0]

    chex.assert_trees_all_close(
        jax.jit(jax.grad(ours))(state.params),
        jax.jit(jax.grad(a2c))(state.params),
        rtol=1e-4,
        atol=1e-6,
    )


def test_target_kl_ends_the_steps_on_a_batch():
    env = probe.make("lqr")
    source = rollout(env, num_envs=8, length=8)
    config = ppo.Config(learning_rate=0.05, num_epochs=20, num_minibatches=2)

    def kl_after(target_kl):
        method = ppo.make(env.spec, dataclasses.replace(config, target_kl=target_kl))
        state, _ = jax.jit(
            lambda key: train.step(method, source, train.init(method, source, key))
        )(jax.random.key(0))
        return int(state.learner.step)

    assert kl_after(None) == 40
    assert 1 <= kl_after(0.01) < 40


@pytest.mark.parametrize(
    "fields",
    [
        {"clip": 0.0},
        {"gamma": 1.5},
        {"num_epochs": 0},
        {"learning_rate": -1.0},
        {"normalize_advantages": "always"},
        {"activation": "sine"},
    ],
)
def test_impossible_fields_are_named(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=name):
        ppo.make(probe.make("lqr").spec, ppo.Config(**fields))


def test_minibatches_that_do_not_divide_the_batch_are_named():
    env = probe.make("lqr")
    method = ppo.make(env.spec, ppo.Config(num_minibatches=7))
    source = rollout(env, num_envs=4, length=8)
    with pytest.raises(ValueError, match="divisors of 32"):
        jax.eval_shape(
            lambda key: train.step(method, source, train.init(method, source, key)),
            jax.random.key(0),
        )
