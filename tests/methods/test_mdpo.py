"""On-policy MDPO: worked numbers, the paper's identities, gradients."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from envs import probe
from rlx import learner, train
from rlx.data.rollout import rollout
from rlx.methods import _on_policy, mdpo, ppo
from rlx.ops import distributions
from tests.methods import conformance


def test_worked_numbers():
    # rho = 2, A = 1.5, KL = 0.4, t = 0.5: -2 * 1.5 + 0.4 / 0.5 = -2.2.
    # rho = 1, A = -1, KL = 0: 1.
    losses = mdpo.loss(
        jnp.log(jnp.array([2.0, 1.0])),
        jnp.zeros(2),
        jnp.array([1.5, -1.0]),
        jnp.array([0.4, 0.0]),
        step_size=0.5,
    )
    np.testing.assert_allclose(losses, [-2.2, 1.0], rtol=1e-6)


def test_gradient_against_finite_differences():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), 4)
        old = distributions.DiagonalGaussian(
            jax.random.normal(keys[0], (16, 3), jnp.float64), jnp.zeros((16, 3))
        )
        action = jax.random.normal(keys[1], (16, 3), jnp.float64)
        advantage = jax.random.normal(keys[2], (16,), jnp.float64)

        def loss(mean, log_scale):
            new = distributions.DiagonalGaussian(mean, log_scale)
            return mdpo.loss(
                new.log_prob(action),
                old.log_prob(action),
                advantage,
                distributions.kl_divergence(new, old),
                step_size=0.7,
            )

        shift = 0.1 * jax.random.normal(keys[3], (16, 3), jnp.float64)
        check_grads(loss, (old.mean + shift, old.log_scale + shift), 1, ["rev"])


def _prepared(config, env_name="lqr"):
    env = probe.make(env_name)
    method = mdpo.make(env.spec, config)
    return method, *conformance.first_batch(method, rollout(env, num_envs=4, length=8))


@pytest.mark.parametrize("env_name", ["lqr", "cartpole"])
@pytest.mark.parametrize("step_size", [1e-3, 1.0, 1e6])
def test_the_first_step_is_the_policy_gradient(env_name, step_size):
    config = mdpo.Config(
        step_size=step_size,
        minimum_step_size=1e-6,
        hidden_sizes=(8,),
        value_coefficient=0.0,
    )
    method, state, batch = _prepared(config, env_name)

    def loss(params):
        return method.loss_fn(params, params, (), batch, jax.random.key(2))[0]

    def policy_gradient(params):
        agent = _on_policy.make_agent(probe.make(env_name).spec, config)
        prediction = _on_policy.predict(agent, config, params, batch)
        return -jnp.mean(prediction.log_prob * batch.advantage)

    # 1/t amplifies the rounding of a gradient that is zero in exact arithmetic.
    chex.assert_trees_all_close(
        jax.jit(jax.grad(loss))(state.params),
        jax.jit(jax.grad(policy_gradient))(state.params),
        rtol=1e-3,
        atol=1e-5 + 1e-7 / step_size,
    )


def test_an_infinite_step_size_is_ppo_with_an_infinite_clip():
    infinite = float("inf")
    shared = {"num_minibatches": 2, "num_epochs": 3, "hidden_sizes": (8,)}
    env = probe.make("lqr")
    source = rollout(env, num_envs=4, length=8)
    finals = []
    for method in (
        mdpo.make(env.spec, mdpo.Config(step_size=infinite, **shared)),
        ppo.make(env.spec, ppo.Config(clip=infinite, **shared)),
    ):
        state, _ = jax.jit(
            lambda key, m=method: train.run(m, source, train.init(m, source, key), 3)
        )(jax.random.key(0))
        finals.append(state.learner.params)
    # Two programs fuse differently: equal up to rounding, not to the bit.
    chex.assert_trees_all_close(*finals, rtol=1e-4, atol=1e-6)


def test_the_kl_is_that_of_the_new_policy_from_the_old():
    config = mdpo.Config(hidden_sizes=(8,))
    method, state, batch = _prepared(config, "cartpole")
    loss, metrics = method.loss_fn(state.params, (), (), batch, jax.random.key(0))
    assert abs(float(metrics["kl"])) < 1e-6
    moved = jax.tree.map(
        lambda x: x + 0.5 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), state.params
    )
    _, metrics = method.loss_fn(moved, (), (), batch, jax.random.key(0))
    old_logits = np.asarray(batch.behaviour, np.float64)
    agent = _on_policy.make_agent(probe.make("cartpole").spec, config)
    new_logits, _, _ = agent.network.apply(moved, batch.observation, ())

    def probabilities(logits):
        e = np.exp(logits - logits.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = probabilities(np.asarray(new_logits, np.float64)), probabilities(old_logits)
    expected = np.mean(np.sum(p * np.log(p / q), axis=-1))
    assert expected > 0
    np.testing.assert_allclose(metrics["kl"], expected, rtol=1e-4)


def test_a_tiny_step_size_holds_the_policy_in_place():
    # For exact minimisation KL(new || old) -> 0 as t -> 0: after 50 full-batch steps
    # the policy with t = 1e-3 must have moved far less than the one with t = 10.
    def kl(step_size):
        config = mdpo.Config(
            step_size=step_size,
            num_epochs=50,
            num_minibatches=1,
            learning_rate=1e-2,
            value_coefficient=0.0,
            hidden_sizes=(16,),
        )
        method, state, batch = _prepared(config, "cartpole")
        kept = method._replace(prepare=lambda learner, batch: (learner.stats, batch))
        after, _ = jax.jit(lambda s: learner.update(kept, s, batch, jax.random.key(2)))(
            state
        )
        _, metrics = method.loss_fn(after.params, (), (), batch, jax.random.key(3))
        return float(metrics["kl"])

    assert kl(1e-3) < 0.01 * kl(10.0)


def test_the_step_size_falls_linearly_and_keeps_its_floor():
    config = mdpo.Config(step_size=0.8, minimum_step_size=0.01)
    progress = jnp.array([0.0, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(
        mdpo.step_size_at(progress, config), [0.8, 0.6, 0.4, 0.01], rtol=1e-6
    )


def test_an_infinite_step_size_stays_infinite_to_the_end_of_the_schedule():
    config = mdpo.Config(step_size=float("inf"), anneal_steps=10)
    progress = jnp.array([0.0, 0.5, 1.0])
    np.testing.assert_array_equal(mdpo.step_size_at(progress, config), jnp.inf)


def test_an_infinite_step_size_counts_as_finite_learning():
    env = probe.make("cartpole")
    config = mdpo.Config(
        step_size=float("inf"), num_minibatches=2, num_epochs=2, hidden_sizes=(8,)
    )
    method, source = mdpo.make(env.spec, config), rollout(env, num_envs=4, length=8)
    _, metrics = jax.jit(
        lambda key: train.step(method, source, train.init(method, source, key))
    )(jax.random.key(0))
    assert float(metrics["learner_finite"]) == 1.0
    assert float(metrics["proximal_weight"]) == 0.0


@pytest.mark.parametrize("name", ["step_size", "minimum_step_size"])
def test_impossible_fields_are_named(name):
    with pytest.raises(ValueError, match=name):
        mdpo.make(probe.make("lqr").spec, mdpo.Config(**{name: -1.0}))


def conformance_cases():
    return {
        "lqr": conformance.on_policy_case(mdpo, "lqr"),
        "cartpole": conformance.on_policy_case(mdpo, "cartpole"),
    }
