"""SAC: worked numbers, the summed loss against separate gradients, a probe."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from envs import probe
from rlx import evaluate, learner, train
from rlx.data.replay import replay
from rlx.methods import _off_policy, sac
from rlx.types import Box
from tests.methods import off_policy

SPEC = off_policy.SPEC


def conformance_cases():
    return {
        "pendulum": off_policy.case(sac),
    }


def test_worked_numbers():
    # alpha = 0.5: 0.5 * 2 - 3 = -2, and 0.5 * (-1) - 1 = -1.5.
    losses = sac.loss(jnp.array([2.0, -1.0]), jnp.array([3.0, 1.0]), temperature=0.5)
    np.testing.assert_allclose(losses, [-2.0, -1.5])
    # Entropies of 1 and 3 nats, 2 wanted, alpha = e: it pays to raise alpha in the
    # first: -e (-1 + 2) = -e, and -e (-3 + 2) = e.
    price = sac.temperature_loss(
        jnp.array([-1.0, -3.0]), log_temperature=jnp.array(1.0), target_entropy=2.0
    )
    np.testing.assert_allclose(price, [-np.e, np.e], rtol=1e-6)


def make(**fields):
    config = sac.Config(**{"hidden_sizes": (8,), "policy_critic": "min", **fields})
    method = sac.make(SPEC, config)
    state = jax.jit(lambda key: learner.init(method, key))(jax.random.key(0))
    return method, config, state


def separate_losses(config, target, batch, key):
    """The three losses as the paper has them, each a function of its own part."""
    agent = _off_policy.make_agent(SPEC, config)
    next_key, key = jax.random.split(key)

    def pieces(actor, observation, key):
        return agent.distribution(actor, observation).sample_and_log_prob(key)

    def q(critics, observation, action):
        return agent.critics.apply(critics, observation, action)

    def critic(part, rest):
        alpha = jnp.exp(rest["log_temperature"])
        action, log_prob, _ = pieces(rest["actor"], batch.next_observation, next_key)
        both = q(target["critics"], batch.next_observation, action)
        soft = jnp.minimum(both[0], both[1]) - alpha * log_prob
        goal = config.reward_scale * batch.reward + 0.99 * batch.discount * soft
        both = q(part, batch.observation, agent.from_env(batch.action))
        return sum(0.5 * jnp.mean((q - goal) ** 2) for q in both)

    def actor(part, rest):
        action, log_prob, _ = pieces(part, batch.observation, key)
        both = q(rest["critics"], batch.observation, action)
        alpha = jnp.exp(rest["log_temperature"])
        return jnp.mean(alpha * log_prob - jnp.minimum(both[0], both[1]))

    def temperature(part, rest):
        _, log_prob, _ = pieces(rest["actor"], batch.observation, key)
        return -jnp.exp(part) * jnp.mean(log_prob - SPEC.action.shape[0])

    return {"critics": critic, "actor": actor, "log_temperature": temperature}


def test_the_sum_has_the_gradients_of_separate_losses_and_steps_like_them():
    rates = {"actor": 1e-3, "critics": 2e-3, "log_temperature": 5e-3}
    method, config, state = make(
        reward_scale=2.0,
        temperature=0.3,
        actor_learning_rate=rates["actor"],
        critic_learning_rate=rates["critics"],
        temperature_learning_rate=rates["log_temperature"],
    )
    # Targets that differ from the parameters, so that a mix-up shows.
    target = jax.tree.map(lambda x: 0.9 * x + 0.01, state.params)
    state = state.replace(target_params=target)
    batch, key = off_policy.batch(), jax.random.key(3)

    @jax.jit
    def both(state):
        new, _ = learner.gradient_step(method, state, batch, key)
        summed = jax.grad(
            lambda p: method.loss_fn(p, target, (), batch, key)[0], allow_int=False
        )(state.params)
        separate, stepped = {}, {}
        for name, loss in separate_losses(config, target, batch, key).items():
            part = state.params[name]
            separate[name] = jax.grad(loss)(part, state.params)
            adam = optax.adam(rates[name])
            updates, _ = adam.update(separate[name], adam.init(part))
            stepped[name] = optax.apply_updates(part, updates)
        return new, summed, separate, stepped

    new, summed, separate, stepped = both(state)
    chex.assert_trees_all_close(summed, separate, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(new.params, stepped, rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(
        lambda t, p: 0.995 * t + 0.005 * p, target["critics"], new.params["critics"]
    )
    chex.assert_trees_all_close(new.target_params["critics"], moved, rtol=1e-5)
    chex.assert_trees_all_equal(new.target_params["actor"], target["actor"])


def test_gradient_steps_per_environment_step_are_exact():
    env = probe.make("pendulum")
    method = sac.make(env.spec, sac.Config(**off_policy.SMALL))
    # 2 steps of 2 environments, 2 minibatches, 2 epochs: one gradient step each.
    method = method._replace(num_epochs=2)
    source = replay(
        env, num_envs=2, length=2, num_minibatches=2, capacity=8, warmup=4, batch_size=4
    )
    assert train.gradient_steps(method, source, 40) == 40


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"tau": 1.5}, "tau must lie in"),
        ({"policy_critic": "max"}, "policy_critic"),
        ({"num_minibatches": 0}, "num_minibatches"),
        ({"actor_learning_rate": -1.0}, "actor_learning_rate"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        sac.make(SPEC, sac.Config(**fields))


@pytest.mark.parametrize("action", [probe.make("cartpole").spec.action, Box((2,))])
def test_actions_must_be_bounded_vectors(action):
    with pytest.raises(ValueError, match="finite bounds"):
        sac.make(dataclasses.replace(SPEC, action=action))


def test_it_learns_which_action_suits_which_observation():
    env = probe.make("observation_action_continuous")
    config = sac.Config(
        hidden_sizes=(32,),
        num_minibatches=4,
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        temperature_learning_rate=1e-2,
        target_entropy=-2.0,
    )
    actions = off_policy.learned_actions(sac.make(env.spec, config), [-1.0, 1.0])
    off_policy.assert_best(actions)


def pendulum_returns(method) -> np.ndarray:
    """Mean greedy return of 4 seeds after 30,000 steps and as many gradient steps."""
    env = probe.make("pendulum")
    source = replay(
        env,
        num_envs=8,
        batch_size=128,
        num_minibatches=8,
        capacity=32_000,
        warmup=1_000,
    )

    def one(key):
        train_key, evaluation_key = jax.random.split(key)
        state = train.init(method, source, train_key)
        iterations = train.iterations_for(source, 30_000)
        state, _ = train.run(method, source, state, iterations)
        policy = learner.policy(method, state.learner)
        episodes = evaluate.episodes(
            env, policy, evaluation_key, num_episodes=64, max_steps=200
        )
        return jnp.mean(episodes.returns)

    keys = jax.random.split(jax.random.key(0), 4)
    # The suite compiles without optimisation; this runs long enough to want it.
    optimised = {"xla_backend_optimization_level": 3}
    run = jax.jit(lambda: jax.lax.map(one, keys), compiler_options=optimised)
    return np.asarray(run())


PENDULUM = {
    "hidden_sizes": (64, 64),
    "num_minibatches": 8,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "gamma": 0.95,
    "reward_scale": 0.1,
    "temperature": 0.2,
}


@pytest.mark.slow
def test_it_swings_up_the_pendulum():
    config = sac.Config(automatic_temperature=False, **PENDULUM)
    method = sac.make(probe.make("pendulum").spec, config)
    returns = pendulum_returns(method)
    print("greedy pendulum returns:", returns)
    assert returns.min() >= -250
