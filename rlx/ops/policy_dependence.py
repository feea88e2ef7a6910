"""How a policy's trajectories change with the reward that it optimises, from samples.

Chakraborty et al. 2024 (PARL), https://arxiv.org/abs/2308.02585, section 4. The policy
θ*(ν) is the best for the reward r_ν with entropy regularisation λ; an objective
G(ν) = E[U(τ)] over its trajectories depends on ν through it too:

    (dθ*/dν)ᵀ ∂_θ E[U] = ∂²_{νθ}V u,   −∂²_{θθ}V u = ∂_θ E[U]

The two terms below are plain losses whose gradients are ∂_θ E[U] and ∂²_{νθ}V u; the
linear system between them is `rlx.ops.bilevel`'s. Both are unbiased, and neither
differentiates twice.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array


def score_term(log_prob: Array, utility: Array, mask: Array | None = None) -> Array:
    """U Σ_t log π_θ(a_t|s_t): its mean has the gradient ∂_θ E[U(τ)] (REINFORCE).

    Williams 1992, https://doi.org/10.1007/BF00992696. The sum begins where the
    *trajectory* does, not where a segment cut from it does: earlier actions decide
    whether the segment occurs. For a pair of independent trajectories add the terms of
    both, with the same utility. A baseline that does not depend on the trajectory, such
    as the mean utility of the others, may be subtracted from U.

    Args:
      log_prob: `[T, ...]` log π_θ(a_t|s_t), what is differentiated.
      utility: `[...]` U, a constant of the gradient.
      mask: `bool[T, ...]`, False for padding; None: there is none.

    Returns:
      `[...]`.

    Raises:
      AssertionError: the shapes differ, or one does not hold floats.
    """
    chex.assert_type([log_prob, utility], float)
    chex.assert_equal_shape([log_prob[0], utility])
    total = jnp.sum(_masked(log_prob, mask), 0)
    return jax.lax.stop_gradient(utility) * total


def reward_weight(log_prob_tangent: Array, mask: Array | None = None) -> Array:
    """w_t = Σ_{j<=t} <u, ∂_θ log π(a_j|s_j)>: what moves the chance to be at step t.

    Args:
      log_prob_tangent: `[T, ...]` the derivative of log π(a_t|s_t) along u, from one
        `jax.jvp` of the log-probabilities.
      mask: `bool[T, ...]`, False for padding; None: there is none.

    Returns:
      `[T, ...]` w, a constant of the gradient; 0 where masked.

    Raises:
      AssertionError: the mask has another shape, or the tangents are no floats.
    """
    chex.assert_type(log_prob_tangent, float)
    weight = jnp.cumsum(_masked(log_prob_tangent, mask), 0)
    return jax.lax.stop_gradient(_masked(weight, mask))


def reward_term(weight: Array, reward: Array, gamma: float | Array) -> Array:
    """Σ_t γᵗ w_t r_ν(s_t, a_t): its mean has the gradient ∂²_{νθ}V u.

    Args:
      weight: `[T, ...]` w, from `reward_weight`; a constant of the gradient.
      reward: `[T, ...]` r_ν of whole trajectories, what is differentiated.
      gamma: γ in [0, 1] of the lower problem, scalar.

    Returns:
      `[...]`.

    Raises:
      AssertionError: the shapes differ, one holds no floats, or γ is no scalar.
    """
    chex.assert_equal_shape([weight, reward])
    chex.assert_type([weight, reward], float)
    chex.assert_rank(gamma, 0)
    time = jnp.arange(reward.shape[0], dtype=reward.dtype)
    discount = jnp.power(jnp.asarray(gamma, reward.dtype), time)
    discount = discount.reshape((-1,) + (1,) * (reward.ndim - 1))
    weight = jax.lax.stop_gradient(weight)
    return jnp.sum(discount * jnp.where(weight == 0, 0.0, weight * reward), 0)


def episode_sum(x: Array, first: Array) -> Array:
    """Sums over an episode so far: y_t = x_t + y_{t−1}, or x_t where one begins.

    Linear and differentiable in x: of log-probabilities it is what `score_term` sums
    up to each step, of their tangents it is `reward_weight`, for batches in which
    episodes end and others begin.

    Args:
      x: `[T, ...]`.
      first: `bool[T, ...]`, True at the first step of an episode.

    Returns:
      `[T, ...]`.

    Raises:
      AssertionError: the shapes differ, or x does not hold floats.
    """
    chex.assert_equal_shape([x, first])
    chex.assert_type([x, first], [float, bool])

    def step(total: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        new, begins = inputs
        total = jnp.where(begins, 0.0, total) + new
        return total, total

    return jax.lax.scan(step, jnp.zeros_like(x[0]), (x, first))[1]


def episode_discount(first: Array, gamma: float | Array) -> Array:
    """γʰ, h the steps since an episode began: its un-normalised occupancy weights.

    Args:
      first: `bool[T, ...]`, True at the first step of an episode, and at t = 0.
      gamma: γ in [0, 1], scalar.

    Returns:
      `[T, ...]`.

    Raises:
      AssertionError: γ is no scalar, or `first` is not boolean.
    """
    chex.assert_type(first, bool)
    chex.assert_rank(gamma, 0)
    age = episode_sum(jnp.ones(first.shape), first) - 1.0
    return jnp.power(jnp.asarray(gamma, age.dtype), age)


def _masked(x: Array, mask: Array | None) -> Array:
    if mask is None:
        return x
    chex.assert_equal_shape([x, mask])
    chex.assert_type(mask, bool)
    return jnp.where(mask, x, 0.0)
