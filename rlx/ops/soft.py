"""Values with an entropy bonus: what soft (maximum-entropy) methods share.

Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905. α is the temperature, the
price of one nat of entropy in units of reward.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array


def soft_value(
    action_value: Array, log_prob: Array, temperature: float | Array
) -> Array:
    """V(s) ≈ Q(s, a) − α log π(a|s) with a drawn from π (equation 3).

    Args:
      action_value: `[...]` Q(s, a).
      log_prob: `[...]` log π(a|s).
      temperature: α >= 0, scalar.

    Returns:
      `[...]` unbiased estimates of the soft value.

    Raises:
      AssertionError: shapes differ, or α is no scalar.
    """
    chex.assert_equal_shape([action_value, log_prob])
    chex.assert_rank(temperature, 0)
    return action_value - temperature * log_prob


def bellman_target(
    reward: Array, discount: Array, next_value: Array, gamma: float | Array
) -> Array:
    """Bellman target r + γ d V(s'), a constant of the gradient.

    d is 0 where the episode terminated. A truncated step bootstraps: its successor is
    the true one.

    Args:
      reward: `[...]` r.
      discount: `[...]` d.
      next_value: `[...]` V(s').
      gamma: γ in [0, 1], scalar.

    Returns:
      `[...]` targets.

    Raises:
      AssertionError: shapes differ, or γ is no scalar.
    """
    chex.assert_equal_shape([reward, discount, next_value])
    chex.assert_rank(gamma, 0)
    return jax.lax.stop_gradient(reward + gamma * discount * next_value)


def multiplier_loss(violation: Array, *, log_multiplier: Array) -> Array:
    """The loss of a Lagrange multiplier that keeps a constraint g <= 0.

        L = −α g: α = exp(log α) rises while g > 0 and falls while g < 0

    SAC's temperature (g = log π + H̄) and CQL's weight (g = gap − τ) are such.

    Elementwise.

    Args:
      violation: `[...]` g, a constant of the gradient.
      log_multiplier: log α, a scalar: what is learned.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: `violation` holds no floats, or log α is no scalar.
    """
    chex.assert_type(violation, float)
    chex.assert_rank(log_multiplier, 0)
    return -jnp.exp(log_multiplier) * jax.lax.stop_gradient(violation)
