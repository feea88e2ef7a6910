"""Twin Delayed Deep Deterministic policy gradient (TD3).

Fujimoto, van Hoof and Meger 2018, https://arxiv.org/abs/1802.09477, algorithm 1: DDPG
with the smaller of two target critics (section 4.2), a policy and targets that step
less often than the critics (5.2), and noise on the target's action (5.3).

Critics and policy step by the gradient at the same parameters.

With both critics equal, no target noise and no delay it is DDPG.
"""

from __future__ import annotations

import dataclasses

import chex
import jax.numpy as jnp

from rlx.methods import _deterministic
from rlx.ops import soft, values
from rlx.types import Array, EnvSpec, Key, Method, Metrics, Params, PyTree, Transition

SOURCE = "replay"
smoothed_action = _deterministic.smoothed_action


@dataclasses.dataclass(frozen=True)
class Config(_deterministic.TwinDelayedConfig):
    """TD3's fields; step sizes and layers as in the authors' later code."""


def loss(
    action_value: Array,
    reward: Array,
    discount: Array,
    next_value: Array,
    next_twin_value: Array,
    *,
    gamma: float | Array,
) -> Array:
    """The loss of one critic, with clipped double Q-learning (section 4.2).

    L = ½ (Q_i(s, a) − sg[r + γ d min(Q̄₁(s', ã), Q̄₂(s', ã))])²

    Elementwise; means are the caller's.

    Args:
      action_value: `[...]` Q_i(s, a).
      reward: `[...]` r.
      discount: `[...]` d, 0 where the episode terminated; a truncated step bootstraps.
      next_value: `[...]` Q̄₁(s', ã) at the smoothed target action ã.
      next_twin_value: `[...]` Q̄₂(s', ã).
      gamma: γ in [0, 1], scalar.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    arrays = [action_value, reward, discount, next_value, next_twin_value]
    chex.assert_equal_shape(arrays)
    chex.assert_type(arrays, float)
    smaller = jnp.minimum(next_value, next_twin_value)
    target = soft.bellman_target(reward, discount, smaller, gamma)
    return 0.5 * values.squared_error(action_value, target)


def make(spec: EnvSpec, config: Config = Config()) -> Method:  # noqa: B008 (frozen)
    """TD3 for an environment with continuous, bounded actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value, or the actions are no
        vectors with finite bounds.
    """
    _deterministic.check_twin_delayed(config)
    agent = _deterministic.make_agent(spec, config, num_critics=2)

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Transition,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del stats
        ahead = _deterministic.smoothed_values(
            agent, config, target_params, batch.next_observation, key
        )
        both = agent.critics.apply(
            params["critics"], batch.observation, agent.from_env(batch.action)
        )
        reward = config.reward_scale * batch.reward
        errors = [
            loss(value, reward, batch.discount, *ahead, gamma=config.gamma)
            for value in both
        ]
        critic = jnp.mean(errors[0]) + jnp.mean(errors[1])
        policy = _deterministic.policy_loss(agent, params, batch)
        return critic + policy, {
            "critic_loss": critic,
            "policy_loss": policy,
            "action_value": jnp.mean(both),
        }

    delay = config.policy_delay
    return Method(
        init=lambda key: _deterministic.init(agent, key),
        act=_deterministic.make_act(agent, config.exploration_noise),
        loss_fn=loss_fn,
        optimizer=_deterministic.make_optimizer(config, delay),
        target_update=_deterministic.follow(config.tau, delay),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
