"""DDPG: worked numbers, TD3 without its three changes, a probe."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import probe
from rlx import learner
from rlx.methods import ddpg, td3
from rlx.types import Box
from tests.methods import off_policy

SPEC = off_policy.SPEC


def conformance_cases():
    return {"pendulum": off_policy.case(ddpg)}


def test_worked_numbers():
    # Targets 1 + 0.9 * 2 = 2.8 and, terminated, -1: errors 0.8 and -2.
    losses = ddpg.loss(
        jnp.array([2.0, 1.0]),
        jnp.array([1.0, -1.0]),
        jnp.array([1.0, 0.0]),
        jnp.array([2.0, 7.0]),
        gamma=0.9,
    )
    np.testing.assert_allclose(losses, [0.32, 2.0], rtol=1e-6)


def twins(critics):
    return {"critic_0": critics["critic_0"], "critic_1": critics["critic_0"]}


def test_td3_with_equal_critics_no_noise_and_no_delay_is_ddpg():
    shared = {
        "hidden_sizes": (8,),
        "actor_learning_rate": 1e-3,
        "critic_learning_rate": 2e-3,
        "tau": 0.1,
        "reward_scale": 0.5,
    }
    plain = ddpg.make(SPEC, ddpg.Config(**shared))
    twin = td3.make(SPEC, td3.Config(**shared, policy_delay=1, smoothing_noise=0.0))

    @jax.jit
    def three_steps(key):
        one = learner.init(plain, key)
        target = jax.tree.map(lambda x: 0.8 * x + 0.05, one.params)
        one = one.replace(target_params=target)
        two = learner.init(twin, key).replace(
            params={**one.params, "critics": twins(one.params["critics"])},
            target_params={**target, "critics": twins(target["critics"])},
        )
        for i in range(3):
            key = jax.random.key(i)
            one, _ = learner.gradient_step(plain, one, off_policy.batch(), key)
            two, _ = learner.gradient_step(twin, two, off_policy.batch(), key)
        return one, two

    one, two = three_steps(jax.random.key(0))
    for mine, theirs in (
        (one.params, two.params),
        (one.target_params, two.target_params),
    ):
        chex.assert_trees_all_close(mine["actor"], theirs["actor"], rtol=1e-5)
        for critic in theirs["critics"].values():
            chex.assert_trees_all_close(mine["critics"]["critic_0"], critic, rtol=1e-5)


def test_bad_spaces_and_fields_are_named():
    with pytest.raises(ValueError, match="finite bounds"):
        ddpg.make(SPEC.__class__("free", Box((3,)), Box((2,))))
    with pytest.raises(ValueError, match="actor_learning_rate must be positive"):
        ddpg.make(SPEC, ddpg.Config(actor_learning_rate=0.0))


def test_it_learns_which_action_suits_which_observation():
    env = probe.make("observation_action_continuous")
    config = ddpg.Config(
        hidden_sizes=(32,),
        num_minibatches=4,
        actor_learning_rate=3e-3,
        critic_learning_rate=1e-2,
        tau=5e-3,
        exploration_noise=0.3,
    )
    actions = off_policy.learned_actions(ddpg.make(env.spec, config), [-1.0, 1.0])
    off_policy.assert_best(actions)
