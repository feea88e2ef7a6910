"""What PPO and MDPO learn where the answer is known.

Each probe needs one part of a method more than the one before it (see
`envs.probe.one_step`), so the first test that fails names the part that is broken. All
runs are four seeds, and probes of one shape share one compiled program.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import probe
from rlx import evaluate, learner, train
from rlx.data.rollout import rollout
from rlx.methods import _on_policy, mdpo, ppo
from rlx.ops import normalization
from rlx.types import Array, Env, LearnerState

SEEDS = 4
GAMMA = 0.9
METHODS = {"ppo": ppo, "mdpo": mdpo}
DISCRETE = (
    "constant_reward",
    "observation_reward",
    "delayed_reward",
    "action_reward",
    "observation_action",
)
CONTINUOUS = ("action_reward_continuous", "observation_action_continuous")
CUT_BY_TIME = ("chain", "ring")

both = pytest.mark.parametrize("name", METHODS)


def any_of(members: Sequence[Env], index: Array) -> Env:
    """The member at a traced index: many environments, one compiled program."""
    for member in members:
        assert member.spec.observation == members[0].spec.observation
        assert member.spec.action == members[0].spec.action

    def reset(key):
        return jax.lax.switch(index, [member.reset for member in members], key)

    def step(state, action, key):
        steps = [member.step for member in members]
        return jax.lax.switch(index, steps, state, action, key)

    return Env(reset, step, members[0].spec)


def probe_config(module: ModuleType, num_iterations: int, **fields):
    """Small and quick. Rewards keep their unit, so that values are the known ones."""
    small = {
        "gamma": GAMMA,
        "hidden_sizes": (16,),
        "learning_rate": 0.02,
        "num_epochs": 4,
        "num_minibatches": 2,
        "normalize_rewards": False,
        "anneal_learning_rate": True,
        "anneal_steps": num_iterations * 8,
    }
    return module.Config(**{**small, **fields})


@functools.cache
def learned(name: str, probes: tuple[str, ...]) -> tuple[_on_policy.Agent, dict]:
    """Trains on each probe: `{probe: LearnerState}`, with leaves `[SEEDS, ...]`."""
    num_iterations = 60
    members = [probe.make(member) for member in probes]
    config = probe_config(METHODS[name], num_iterations)
    method = METHODS[name].make(members[0].spec, config)

    def one(setting: tuple[Array, Array]) -> LearnerState:
        index, key = setting
        source = rollout(any_of(members, index), num_envs=16, length=8)
        state = train.init(method, source, key)
        state, _ = train.run(method, source, state, num_iterations)
        return state.learner

    indices = jnp.repeat(jnp.arange(len(members)), SEEDS)
    keys = jax.random.split(jax.random.key(0), len(members) * SEEDS)
    states = jax.jit(lambda: jax.lax.map(one, (indices, keys)))()
    by_probe = {
        member: jax.tree.map(lambda x, i=i: x[i * SEEDS : (i + 1) * SEEDS], states)
        for i, member in enumerate(probes)
    }
    return _on_policy.make_agent(members[0].spec, config), by_probe


def outputs(name: str, probes: tuple[str, ...], member: str, observations: Array):
    """Distribution and value `[SEEDS, K]` at `observations [K, D]`."""
    agent, states = learned(name, probes)

    def one(state: LearnerState):
        inputs = normalization.normalize(state.stats.observation, observations)
        policy, value, _ = agent.network.apply(state.params, inputs, ())
        return policy, value

    policy, value = jax.vmap(one)(states[member])
    return agent.distribution(policy), np.asarray(value)


KNOWN_VALUES = {
    # probe: (observations, their values, the part that is broken if others come out)
    "constant_reward": ([[0.0]], [1.0], "the value's loss or its optimiser"),
    "observation_reward": (
        [[-1.0], [1.0]],
        [-1.0, 1.0],
        "the way of the observation to the value",
    ),
    "delayed_reward": (
        [[0.0], [1.0]],
        [GAMMA, 1.0],
        "discounting, or the bootstrap from the successor",
    ),
}


@both
@pytest.mark.parametrize("member", KNOWN_VALUES)
def test_values_are_the_known_ones(name, member):
    observations, expected, broken = KNOWN_VALUES[member]
    _, value = outputs(name, DISCRETE, member, jnp.array(observations))
    expected = np.broadcast_to(expected, value.shape)
    np.testing.assert_allclose(value, expected, atol=0.05, err_msg=f"broken: {broken}")


BEST_ACTIONS = {
    "action_reward": ([[0.0]], [1], "the policy's gradient or its sign"),
    "observation_action": (
        [[-1.0], [1.0]],
        [0, 1],
        "the way of the observation to the policy, or advantages of other samples",
    ),
}


@both
@pytest.mark.parametrize("member", BEST_ACTIONS)
def test_discrete_policies_find_the_best_action(name, member):
    observations, best, broken = BEST_ACTIONS[member]
    distribution, value = outputs(name, DISCRETE, member, jnp.array(observations))
    actions = np.broadcast_to(best, value.shape)
    probability = np.exp(distribution.log_prob(jnp.asarray(actions)))
    assert probability.min() > 0.95, f"broken: {broken}; {probability}"
    # The value follows the policy that improves: 2p - 1 at its end.
    np.testing.assert_allclose(value, 2 * probability - 1, atol=0.1)


@both
@pytest.mark.parametrize("member", CONTINUOUS)
def test_continuous_policies_find_the_best_action(name, member):
    signs = [[-1.0], [1.0]] if member.startswith("observation") else [[0.0]]
    best = probe.BEST_ACTION * (np.array(signs) if len(signs) > 1 else np.ones((1, 1)))
    distribution, value = outputs(name, CONTINUOUS, member, jnp.array(signs))
    mean, scale = np.asarray(distribution.mode()), np.exp(distribution.log_scale)
    np.testing.assert_allclose(
        mean,
        np.broadcast_to(best, mean.shape),
        atol=0.05,
        err_msg="broken: the Gaussian's gradient, or the way from choice to action",
    )
    assert scale.max() < 0.3, f"broken: the gradient of the scale; {scale}"
    np.testing.assert_allclose(value, 0.0, atol=0.1)


@both
@pytest.mark.parametrize("member", CUT_BY_TIME)
def test_time_limits_bootstrap(name, member):
    known = {"chain": probe.chain_values, "ring": probe.ring_values}[member](GAMMA)
    _, value = outputs(name, CUT_BY_TIME, member, jnp.eye(3))
    np.testing.assert_allclose(
        value,
        np.broadcast_to(known, value.shape),
        rtol=0.02,
        err_msg="broken: truncation taken for an end, or a reset for a successor",
    )


def returns_on_memory(recurrent_size: int) -> np.ndarray:
    """Mean return `[SEEDS]` of 256 episodes after training; 1 is perfect, 0 chance."""
    env = probe.make("memory")
    num_iterations = 50
    config = probe_config(
        ppo, num_iterations, recurrent_size=recurrent_size, gamma=0.99
    )
    method = ppo.make(env.spec, config)
    source = rollout(env, num_envs=32, length=10)

    def one(key: Array) -> Array:
        train_key, evaluation_key = jax.random.split(key)
        state = train.init(method, source, train_key)
        state, _ = train.run(method, source, state, num_iterations)
        policy = learner.policy(method, state.learner)
        episodes = evaluate.episodes(
            env, policy, evaluation_key, num_episodes=256, max_steps=5
        )
        return jnp.mean(episodes.returns)

    keys = jax.random.split(jax.random.key(1), SEEDS)
    return np.asarray(jax.jit(lambda: jax.lax.map(one, keys))())


def test_a_recurrent_policy_remembers():
    returns = returns_on_memory(recurrent_size=16)
    assert returns.min() > 0.95, f"broken: the carry, or its resets; {returns}"


def test_without_memory_the_memory_probe_cannot_be_solved():
    # What is seen when it counts does not depend on the cue: every policy is worth 0,
    # give or take four standard errors of 256 coin flips.
    returns = returns_on_memory(recurrent_size=0)
    assert np.abs(returns).max() < 0.25, f"the probe leaks its cue; {returns}"
