"""TRPO: worked numbers, its step against the definition, what it refuses, a probe."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from envs import probe
from rlx import learner, train
from rlx.data.rollout import rollout
from rlx.methods import _on_policy, trpo
from rlx.ops import distributions
from tests.methods import conformance

SMALL = {"hidden_sizes": (8,), "num_minibatches": 2, "num_epochs": 2}


def conformance_cases():
    return {
        "lqr": conformance.on_policy_case(trpo, "lqr"),
        "cartpole": conformance.on_policy_case(trpo, "cartpole"),
    }


def test_worked_numbers():
    # rho = 2, A = 1.5: -3. rho = 1, A = -1: 1.
    losses = trpo.loss(
        jnp.log(jnp.array([2.0, 1.0])), jnp.zeros(2), jnp.array([1.5, -1.0])
    )
    np.testing.assert_allclose(losses, [-3.0, 1.0], rtol=1e-6)


def test_an_update_improves_the_surrogate_inside_the_trust_region():
    env = probe.make("cartpole")
    config = trpo.Config(max_kl=0.02, **SMALL)
    method = trpo.make(env.spec, config)
    agent = _on_policy.make_agent(env.spec, config)
    state, batch = conformance.first_batch(method, rollout(env, num_envs=4, length=8))
    prepared = method._replace(prepare=lambda learner, batch: (learner.stats, batch))

    @jax.jit
    def go(state):
        after, metrics = learner.update(prepared, state, batch, jax.random.key(1))

        def judge(params):
            found = _on_policy.predict(agent, config, params, batch)
            kl = distributions.kl_divergence(found.behaviour, found.distribution)
            ratio = jnp.exp(found.log_prob - batch.behaviour_log_prob)
            return jnp.mean(ratio * batch.advantage), jnp.mean(kl), found.value

        def surrogate(params):
            return judge(params)[0]

        gradient = jax.grad(surrogate)(state.params)
        return after, metrics, gradient, judge(state.params), judge(after.params)

    after, metrics, gradient, before, then = go(state)
    assert float(then[0]) > float(before[0])
    # Conjugate gradients on a damped matrix: a full step lands near the bound, within
    # it, and the line search makes it obey.
    assert 0.25 * 0.02 < float(then[1]) <= 0.02
    np.testing.assert_allclose(metrics["kl"], then[1], rtol=1e-4)
    assert float(metrics["step_fraction"]) in (1.0, 0.5, 0.25)
    step = jax.tree.map(lambda a, b: a - b, after.params, state.params)
    names = ("policy", "policy_torso")
    policy_step = {name: step[name] for name in names}
    slope = optax.tree.vdot(policy_step, {name: gradient[name] for name in names})
    assert float(slope) > 0
    # The value was fitted, by so many gradient steps, and its gradient moved no policy.
    error = [np.mean((x[2] - batch.value_target) ** 2) for x in (before, then)]
    assert error[1] < error[0]
    assert int(after.step) == int(state.step) + 4


def test_where_nothing_is_acceptable_the_policy_stays():
    env = probe.make("cartpole")
    method = trpo.make(env.spec, trpo.Config(**SMALL))
    state, batch = conformance.first_batch(method, rollout(env, num_envs=4, length=8))
    flat = batch.replace(advantage=jnp.zeros_like(batch.advantage))
    after, metrics = jax.jit(lambda s: method.update(s, flat, jax.random.key(1)))(state)
    for name in ("policy", "policy_torso"):
        chex.assert_trees_all_equal(after.params[name], state.params[name])
    assert float(metrics["step_fraction"]) == 0.0
    assert float(metrics["kl"]) < 1e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shared_torso": True}, "shared_torso"),
        ({"recurrent_size": 4}, "recurrent_size"),
        ({"target_kl": 0.1}, "max_kl"),
        ({"max_kl": 0.0}, "max_kl must be positive"),
        ({"damping": -1.0}, "damping"),
        ({"solver_iterations": 0}, "solver_iterations"),
        ({"line_search_trials": 0}, "line_search_trials"),
        ({"normalize_advantages": "minibatch"}, "normalize_advantages"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        trpo.make(probe.make("lqr").spec, trpo.Config(**fields))


def test_it_learns_which_action_suits_which_observation():
    env = probe.make("observation_action_continuous")
    config = trpo.Config(
        hidden_sizes=(16,),
        max_kl=0.05,
        num_minibatches=2,
        learning_rate=0.02,
        normalize_observations=False,
        normalize_rewards=False,
        gamma=0.9,
    )
    method = trpo.make(env.spec, config)
    source = rollout(env, num_envs=16, length=8)

    def one(key):
        state = train.init(method, source, key)
        state, _ = train.run(method, source, state, 60)
        policy = learner.policy(method, state.learner)
        action, _, _ = policy.act(jnp.array([[-1.0], [1.0]]), (), None)
        return action[:, 0]

    keys = jax.random.split(jax.random.key(0), 4)
    actions = np.asarray(jax.jit(lambda: jax.lax.map(one, keys))())
    best = np.broadcast_to([-probe.BEST_ACTION, probe.BEST_ACTION], actions.shape)
    np.testing.assert_allclose(actions, best, atol=0.1)
