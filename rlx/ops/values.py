"""Elementwise value losses, and one-step temporal differences.

Losses take `[...]` and return `[...]`: masks, weights and means are the caller's.
Their targets are constants of the gradient; so are the bootstraps of the temporal
differences, which are therefore semi-gradient errors, target minus prediction.

`discount` is 0 where the episode terminated, else 1; γ is separate. A truncated step
needs no special treatment here: its successor is the true one and bootstraps.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array


def squared_error(value: Array, target: Array) -> Array:
    """(target − value)², without a factor ½.

    Args:
      value: `[...]` prediction.
      target: `[...]`, a constant of the gradient.

    Returns:
      `[...]` losses.

    Raises:
      AssertionError: shapes differ.
    """
    chex.assert_equal_shape([value, target])
    return jnp.square(jax.lax.stop_gradient(target) - value)


def huber(value: Array, target: Array, threshold: float | Array = 1.0) -> Array:
    """Huber's loss: quadratic near the target, linear far from it.

    Huber 1964, https://doi.org/10.1214/aoms/1177703732, with u = target − value:

        ½ u²            for |u| ≤ κ
        κ (|u| − κ/2)   beyond

    κ → ∞ is half the squared error.

    Args:
      value: `[...]` prediction.
      target: `[...]`, a constant of the gradient.
      threshold: κ > 0, scalar.

    Returns:
      `[...]` losses.

    Raises:
      AssertionError: shapes differ, or κ is no scalar.
    """
    chex.assert_equal_shape([value, target])
    chex.assert_rank(threshold, 0)
    return _huber(jax.lax.stop_gradient(target) - value, threshold)


def clipped_value_loss(
    value: Array, behaviour_value: Array, target: Array, clip: float | Array
) -> Array:
    """PPO's clipped value loss, without a factor ½.

    Schulman et al., OpenAI baselines; Engstrom et al. 2020,
    https://arxiv.org/abs/2005.12729, section 3:

        max[(target − V)², (target − V_old − clip(V − V_old, −ε, ε))²]

    Where the value has moved by more than ε towards the target, the gradient is 0.
    ε → ∞ is the squared error.

    Args:
      value: `[...]` V.
      behaviour_value: `[...]` V_old, when the data was taken; a constant of the
        gradient.
      target: `[...]`, a constant of the gradient.
      clip: ε > 0, scalar, in units of the value.

    Returns:
      `[...]` losses.

    Raises:
      AssertionError: shapes differ, or ε is no scalar.
    """
    chex.assert_equal_shape([value, behaviour_value, target])
    chex.assert_rank(clip, 0)
    old = jax.lax.stop_gradient(behaviour_value)
    near = old + jnp.clip(value - old, -clip, clip)
    return jnp.maximum(squared_error(value, target), squared_error(near, target))


def expectile_loss(value: Array, target: Array, expectile: float | Array) -> Array:
    """The asymmetric squared error whose minimum is an expectile.

    Newey & Powell 1987, https://doi.org/10.2307/1911031; implicit Q-learning,
    Kostrikov et al. 2022, https://arxiv.org/abs/2110.06169, eq. 4 and 5:

        |τ − 1{u < 0}| u²,   u = target − value

    τ = ½ is half the squared error; τ → 1 approaches the maximum of the targets.

    Args:
      value: `[...]` V(s).
      target: `[...]` Q(s, a), a constant of the gradient.
      expectile: τ in (0, 1), scalar.

    Returns:
      `[...]` losses.

    Raises:
      AssertionError: shapes differ, or τ is no scalar.
    """
    chex.assert_equal_shape([value, target])
    chex.assert_rank(expectile, 0)
    error = jax.lax.stop_gradient(target) - value
    return jnp.where(error < 0, 1 - expectile, expectile) * jnp.square(error)


def quantile_huber(
    quantiles: Array, levels: Array, targets: Array, threshold: float | Array = 1.0
) -> Array:
    """Quantile regression with Huber's loss, of a set against a set.

    Dabney et al. 2018 (QR-DQN), https://arxiv.org/abs/1710.10044, eq. 10, with
    u_{ij} = targetⱼ − θᵢ:

        Σᵢ (1/M) Σⱼ |τᵢ − 1{u_{ij} < 0}| huber_κ(u_{ij}) / κ

    Args:
      quantiles: `[..., N]` θ, predicted quantiles.
      levels: `[..., N]` τ in (0, 1), of which they are the quantiles.
      targets: `[..., M]` samples or quantiles, constants of the gradient.
      threshold: κ > 0, scalar.

    Returns:
      `[...]` losses.

    Raises:
      AssertionError: shapes do not match, or κ is no scalar.
    """
    chex.assert_equal_shape([quantiles, levels])
    chex.assert_equal_shape_prefix([quantiles, targets], quantiles.ndim - 1)
    chex.assert_equal_rank([quantiles, targets])
    chex.assert_rank(threshold, 0)
    error = jax.lax.stop_gradient(targets)[..., None, :] - quantiles[..., :, None]
    weight = jnp.abs(levels[..., :, None] - (error < 0))
    return jnp.sum(jnp.mean(weight * _huber(error, threshold) / threshold, -1), -1)


def td_error(
    value: Array,
    reward: Array,
    discount: Array,
    next_value: Array,
    gamma: float | Array,
) -> Array:
    """The temporal difference r + γ d V(s') − V(s).

    Sutton 1988, https://doi.org/10.1007/BF00115009.

    Args:
      value: `[...]` V(s).
      reward: `[...]` r.
      discount: `[...]` d, 0 at termination, else 1.
      next_value: `[...]` V(s') of the true successor, a constant of the gradient.
      gamma: γ in [0, 1], scalar.

    Returns:
      `[...]` errors.

    Raises:
      AssertionError: shapes differ, or γ is no scalar.
    """
    chex.assert_equal_shape([value, reward, discount, next_value])
    chex.assert_rank(gamma, 0)
    return jax.lax.stop_gradient(reward + gamma * discount * next_value) - value


def q_learning_error(
    action_values: Array,
    action: Array,
    reward: Array,
    discount: Array,
    next_action_values: Array,
    gamma: float | Array,
) -> Array:
    """The error of Q-learning, r + γ d maxₐ Q(s', a) − Q(s, a).

    Watkins & Dayan 1992, https://doi.org/10.1007/BF00992698; with Q(s', ·) from a
    target network, Mnih et al. 2015, https://doi.org/10.1038/nature14236.

    Args:
      action_values: `[..., A]` Q(s, ·).
      action: `int[...]` a, the action taken.
      reward: `[...]` r.
      discount: `[...]` d, 0 at termination, else 1.
      next_action_values: `[..., A]` Q(s', ·), constants of the gradient.
      gamma: γ in [0, 1], scalar.

    Returns:
      `[...]` errors.

    Raises:
      AssertionError: shapes do not match, actions are no integers, or γ no scalar.
    """
    chex.assert_equal_shape([action_values, next_action_values])
    value = value_of_action(action_values, action)
    next_value = jnp.max(next_action_values, axis=-1)
    return td_error(value, reward, discount, next_value, gamma)


def double_q_error(
    action_values: Array,
    action: Array,
    reward: Array,
    discount: Array,
    next_action_values: Array,
    next_selector_values: Array,
    gamma: float | Array,
) -> Array:
    """The error of double Q-learning: one network selects, the other evaluates.

    van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461, eq. 4:

        r + γ d Q̄(s', argmaxₐ Q(s', a)) − Q(s, a)

    Args:
      action_values: `[..., A]` Q(s, ·).
      action: `int[...]` a, the action taken.
      reward: `[...]` r.
      discount: `[...]` d, 0 at termination, else 1.
      next_action_values: `[..., A]` Q̄(s', ·) of the target network, constants.
      next_selector_values: `[..., A]` Q(s', ·) of the online network, constants.
      gamma: γ in [0, 1], scalar.

    Returns:
      `[...]` errors.

    Raises:
      AssertionError: shapes do not match, actions are no integers, or γ no scalar.
    """
    chex.assert_equal_shape([action_values, next_action_values, next_selector_values])
    value = value_of_action(action_values, action)
    best = jnp.argmax(next_selector_values, axis=-1)
    next_value = value_of_action(next_action_values, best)
    return td_error(value, reward, discount, next_value, gamma)


def expected_sarsa_error(
    action_values: Array,
    action: Array,
    reward: Array,
    discount: Array,
    next_action_values: Array,
    next_probs: Array,
    gamma: float | Array,
) -> Array:
    """The error of expected SARSA, r + γ d Σₐ π(a|s') Q(s', a) − Q(s, a).

    van Seijen et al. 2009, https://doi.org/10.1109/ADPRL.2009.4927542, eq. 6.

    Args:
      action_values: `[..., A]` Q(s, ·).
      action: `int[...]` a, the action taken.
      reward: `[...]` r.
      discount: `[...]` d, 0 at termination, else 1.
      next_action_values: `[..., A]` Q(s', ·), constants of the gradient.
      next_probs: `[..., A]` π(·|s'), summing to 1, constants of the gradient.
      gamma: γ in [0, 1], scalar.

    Returns:
      `[...]` errors.

    Raises:
      AssertionError: shapes do not match, actions are no integers, or γ no scalar.
    """
    chex.assert_equal_shape([action_values, next_action_values, next_probs])
    value = value_of_action(action_values, action)
    next_value = jnp.sum(next_probs * next_action_values, axis=-1)
    return td_error(value, reward, discount, next_value, gamma)


def value_of_action(action_values: Array, action: Array) -> Array:
    """Picks Q(s, a) out of Q(s, ·).

    Args:
      action_values: `[..., A]`, one number for every action.
      action: integer `[...]` in 0 … A−1.

    Returns:
      `[...]`; NaN for an action outside the range, which would else pass unseen.

    Raises:
      AssertionError: the action is no integer, or shapes do not match.
    """
    chex.assert_type(action, int)
    chex.assert_shape(action, action_values.shape[:-1])
    # Negative indices would count from the end: send them out of range too.
    index = jnp.where(action < 0, action_values.shape[-1], action)[..., None]
    taken = jnp.take_along_axis(
        action_values, index, axis=-1, mode="fill", fill_value=jnp.nan
    )
    return taken[..., 0]


def dueling(value: Array, advantages: Array, where: Array | None = None) -> Array:
    """Action values of a dueling network: V + A − mean A over what is allowed.

    Wang et al. 2016, https://arxiv.org/abs/1511.06581, equation 9. A constant added to
    all advantages changes nothing.

    Args:
      value: `[...]` V(s).
      advantages: `[..., A]` A(s, ·).
      where: `bool[..., A]` actions that are allowed; all unless given. Others do not
        count in the mean.

    Returns:
      `[..., A]` Q(s, ·).

    Raises:
      AssertionError: shapes do not match.
    """
    chex.assert_shape(value, advantages.shape[:-1])
    if where is None:
        mean = jnp.mean(advantages, axis=-1)
    else:
        chex.assert_equal_shape([advantages, where])
        total = jnp.sum(jnp.where(where, advantages, 0.0), axis=-1)
        mean = total / jnp.maximum(jnp.sum(where, axis=-1), 1)
    return (value - mean)[..., None] + advantages


def _huber(error: Array, threshold: float | Array) -> Array:
    size = jnp.abs(error)
    near = jnp.minimum(size, threshold)
    return near * (size - 0.5 * near)
