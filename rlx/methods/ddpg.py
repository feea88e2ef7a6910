"""Deep Deterministic Policy Gradient (DDPG).

Lillicrap et al. 2016, https://arxiv.org/abs/1509.02971, algorithm 1: a critic, a
deterministic policy that climbs it, and slow copies of both. Exploration is Gaussian
noise without memory, after Fujimoto et al. 2018 (https://arxiv.org/abs/1802.09477,
section 6.1), in place of the paper's Ornstein-Uhlenbeck process; there is no weight
decay and no batch normalisation.

Critic and policy step together, each by the gradient at the same parameters.

It is TD3 with both critics equal, no target noise and no delay.
"""

from __future__ import annotations

import dataclasses

import chex
import jax.numpy as jnp

from rlx.methods import _deterministic
from rlx.ops import soft, values
from rlx.types import Array, EnvSpec, Key, Method, Metrics, Params, PyTree, Transition

SOURCE = "replay"


@dataclasses.dataclass(frozen=True)
class Config(_deterministic.DeterministicConfig):
    """DDPG's own defaults."""

    actor_learning_rate: float = 1e-4
    """Adam's step size for the policy (section 7)."""
    critic_learning_rate: float = 1e-3
    """Adam's step size for the critic (section 7)."""
    tau: float = 1e-3
    """How fast both targets follow, per gradient step (section 7)."""
    hidden_sizes: tuple[int, ...] = (400, 300)
    """Units of the hidden layers of both networks (section 7)."""


def loss(
    action_value: Array,
    reward: Array,
    discount: Array,
    next_value: Array,
    *,
    gamma: float | Array,
) -> Array:
    """The critic's loss (Lillicrap et al. 2016, equations 4 and 5, with a factor ½).

    L = ½ (Q(s, a) − sg[r + γ d Q̄(s', π̄(s'))])²

    Elementwise; means are the caller's.

    Args:
      action_value: `[...]` Q(s, a).
      reward: `[...]` r.
      discount: `[...]` d, 0 where the episode terminated; a truncated step bootstraps.
      next_value: `[...]` Q̄(s', π̄(s')) of both targets.
      gamma: γ in [0, 1], scalar.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([action_value, reward, discount, next_value])
    chex.assert_type([action_value, reward, discount, next_value], float)
    target = soft.bellman_target(reward, discount, next_value, gamma)
    return 0.5 * values.squared_error(action_value, target)


def make(spec: EnvSpec, config: Config = Config()) -> Method:  # noqa: B008 (frozen)
    """DDPG for an environment with continuous, bounded actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value, or the actions are no
        vectors with finite bounds.
    """
    agent = _deterministic.make_agent(spec, config, num_critics=1)

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Transition,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del stats, key
        successor = batch.next_observation
        next_action = agent.actor.apply(target_params["actor"], successor)
        next_value = agent.critics.apply(
            target_params["critics"], successor, next_action
        )[0]
        value = agent.critics.apply(
            params["critics"], batch.observation, agent.from_env(batch.action)
        )[0]
        errors = loss(
            value,
            config.reward_scale * batch.reward,
            batch.discount,
            next_value,
            gamma=config.gamma,
        )
        critic = jnp.mean(errors)
        policy = _deterministic.policy_loss(agent, params, batch)
        return critic + policy, {
            "critic_loss": critic,
            "policy_loss": policy,
            "action_value": jnp.mean(value),
        }

    return Method(
        init=lambda key: _deterministic.init(agent, key),
        act=_deterministic.make_act(agent, config.exploration_noise),
        loss_fn=loss_fn,
        optimizer=_deterministic.make_optimizer(config),
        target_update=_deterministic.follow(config.tau),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
