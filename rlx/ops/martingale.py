"""Martingale increments, traces and losses of policy evaluation in continuous time.

Jia & Zhou, "Policy Evaluation and Temporal-Difference Learning in Continuous Time and
Space: A Martingale Approach", JMLR 23 (2022), https://arxiv.org/abs/2108.06655. For the
value J of a policy, M_t = e^{-βt} J(t, X_t) + ∫₀ᵗ e^{-βs} r_s ds is a martingale; every
function here measures how far a candidate is from one, on a mesh.

Conventions, as everywhere in rlx: time is axis 0, any axes may follow, `[T, ...]`.
`discount` is 0 where the path ended at its horizon, else 1. `cut` is True at the last
step of a path, whether it ended or was truncated: nothing crosses it. `duration` is Δt
of each step. No gradient is stopped here.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array


class Steps(NamedTuple):
    """What the mathematics needs of the steps of paths, all `[T, ...]`."""

    reward: Array
    """∫ of the reward over a step, worth at its start; the last adds e^{-βΔt} h."""
    discount: Array
    """0 where the path ended at its horizon, else 1."""
    duration: Array
    """Δt, in units of time."""
    cut: Array
    """bool, last step of its path."""


def elapsed_time(
    duration: Array, cut: Array, start: float | Array = 0.0
) -> tuple[Array, Array]:
    """Time since each path began: before every step `[T, ...]`, and at the end `[...]`.

    Args:
      duration: Δt `[T, ...]`.
      cut: `[T, ...]`; time starts anew behind it.
      start: `[...]` time that had passed before the first step.
    """
    chex.assert_equal_shape([duration, cut])

    def body(elapsed: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        duration, cut = inputs
        return jnp.where(cut, 0.0, elapsed + duration), elapsed

    first = jnp.broadcast_to(start, duration.shape[1:]).astype(duration.dtype)
    end, before = jax.lax.scan(body, first, (duration, cut))
    return before, end


def start_discount(
    steps: Steps, discount_rate: float | Array, elapsed: float | Array = 0.0
) -> Array:
    """D_i = e^{-β t_i} `[T, ...]`, with t counted from the beginning of each path.

    Args:
      steps: the paths.
      discount_rate: β >= 0, per unit of time.
      elapsed: `[...]` t of the first step, where paths began earlier.
    """
    chex.assert_equal_shape([steps.duration, steps.cut])
    before, _ = elapsed_time(steps.duration, steps.cut, elapsed)
    return jnp.exp(-discount_rate * before)


def increments(
    value: Array,
    next_value: Array,
    steps: Steps,
    discount_rate: float | Array = 0.0,
    average_reward: float | Array = 0.0,
    elapsed: float | Array = 0.0,
) -> Array:
    """dM_i = D_i (e^{-βΔt} J_{i+1} - J_i + r_i Δt - V Δt): the discounted TD error.

    At mesh one (Δt = 1, γ = e^{-β}) without D this is the TD error of Sutton (1988).

    Args:
      value: J_i `[T, ...]`.
      next_value: J_{i+1} `[T, ...]` of the true successor; ignored where discount is 0.
      steps: the paths.
      discount_rate: β.
      average_reward: V, for ergodic problems (β = 0); 0 otherwise.
      elapsed: `[...]` time that had passed before the first step.

    Returns:
      `[T, ...]`.
    """
    chex.assert_equal_shape([value, next_value, *steps])
    gamma = jnp.exp(-discount_rate * steps.duration) * steps.discount
    error = gamma * next_value - value + steps.reward - average_reward * steps.duration
    return start_discount(steps, discount_rate, elapsed) * error


def reverse_sum(increment: Array, cut: Array) -> Array:
    """M_end - M_i = Σ_{j>=i} dM_j `[T, ...]`, within each path."""
    chex.assert_equal_shape([increment, cut])
    return reverse_trace(increment, jnp.ones_like(increment), cut, 1.0)


def trace_weight(duration: Array, lambda_: float | Array) -> Array:
    """∫₀^Δt λˢ ds / ∫₀¹ λˢ ds: Δt at λ = 1; 1 at λ = 0, where the trace forgets all.

    The normalisation keeps step sizes comparable over λ: without it the trace of the
    paper grows like -1/ln λ. At mesh one it is 1: the accumulating trace of TD(λ).
    """
    lambda_ = jnp.asarray(lambda_, duration.dtype)
    inner = (lambda_ > 0) & (lambda_ < 1)
    # The logarithm is taken inside (0, 1) only, so that no branch is NaN.
    log = jnp.log(jnp.where(inner, lambda_, 0.5))
    weight = jnp.expm1(duration * log) / jnp.expm1(log)
    edge = jnp.where(lambda_ > 0, duration, jnp.ones_like(duration))
    return jnp.where(inner, weight, edge)


def trace(
    gradient: Array,
    duration: Array,
    cut: Array,
    lambda_: float | Array,
    start: float | Array = 0.0,
) -> Array:
    """The test process ξ_t = ∫₀ᵗ λ^{t-s} ∇J_s ds of CTD(λ), normalised.

    z_i = λ^{Δt_i} z_{i-1} + w_i ∇J_i with `trace_weight` w; z starts at 0 on each path.
    λ = 0 gives ∇J itself, CTD(0); λ = 1 gives the undecayed integral, CTD(1).

    Args:
      gradient: ∇J `[T, ..., P]`.
      duration: Δt `[T, ...]`.
      cut: `[T, ...]`.
      lambda_: λ in [0, 1], per unit of time; may be traced.
      start: `[..., P]` the trace before the first step, where paths began earlier.

    Returns:
      `[T, ..., P]`.
    """
    chex.assert_equal_shape([duration, cut])
    chex.assert_equal_shape_prefix([gradient, duration], duration.ndim)
    decay = jnp.asarray(lambda_, duration.dtype) ** duration
    weight = trace_weight(duration, lambda_)

    def body(before: Array, inputs) -> tuple[Array, Array]:
        gradient, decay, weight, cut = inputs
        now = decay[..., None] * before + weight[..., None] * gradient
        return jnp.where(cut[..., None], 0.0, now), now

    first = jnp.broadcast_to(start, gradient.shape[1:]).astype(gradient.dtype)
    return jax.lax.scan(body, first, (gradient, decay, weight, cut))[1]


def reverse_trace(
    increment: Array, duration: Array, cut: Array, lambda_: float | Array
) -> Array:
    """The adjoint of `trace`: c with Σ_i z_i dM_i = Σ_i c_i ∇J_i, without any `[T, P]`.

    c_i = w_i C_i, C_i = dM_i + λ^{Δt_{i+1}} C_{i+1}. One product of c with the Jacobian
    gives the direction of CTD(λ) for a network of any size.

    Args:
      increment: dM `[T, ...]`.
      duration: Δt `[T, ...]`.
      cut: `[T, ...]`.
      lambda_: λ in [0, 1]; may be traced.

    Returns:
      `[T, ...]`.
    """
    summed, _ = _decayed_sum(increment, duration, cut, lambda_)
    return trace_weight(duration, lambda_) * summed


def carried_coefficient(
    increment: Array, duration: Array, cut: Array, lambda_: float | Array
) -> Array:
    """Σ_i λ^{t_{i+1} - t_0} dM_i `[...]` to the first cut: a carried trace's share.

    With a trace z₋₁ from an earlier batch, Σ_i z_i dM_i = Σ_i c_i ∇J_i + z₋₁ times
    this, c from `reverse_trace`.

    Args:
      increment: dM `[T, ...]`.
      duration: Δt `[T, ...]`.
      cut: `[T, ...]`.
      lambda_: λ in [0, 1]; may be traced.
    """
    summed, decay = _decayed_sum(increment, duration, cut, lambda_)
    return decay[0] * summed[0]


def _decayed_sum(
    increment: Array, duration: Array, cut: Array, lambda_: float | Array
) -> tuple[Array, Array]:
    """C_i = dM_i + λ^{Δt_{i+1}} C_{i+1} within each path, and λ^{Δt_i}."""
    chex.assert_equal_shape([increment, duration, cut])
    decay = jnp.asarray(lambda_, duration.dtype) ** duration

    def body(after: tuple[Array, Array], inputs):
        increment, decay, cut = inputs
        later, later_decay = after
        now = increment + jnp.where(cut, 0.0, later_decay * later)
        return (now, decay), now

    zero = jnp.zeros_like(increment[0])
    _, summed = jax.lax.scan(body, (zero, zero), (increment, decay, cut), reverse=True)
    return summed, decay


def martingale_loss(residual: Array, duration: Array) -> Array:
    """½ (M_T - M_i)² Δt `[T, ...]`, elementwise: the martingale loss.

    Its minimiser is the best approximation of J in the mean square along the paths:
    gradient Monte Carlo in continuous time.

    Args:
      residual: M_T - M_i, where M_T is a constant of the gradient.
      duration: Δt.
    """
    chex.assert_equal_shape([residual, duration])
    return 0.5 * residual**2 * duration


def mean_square_td_loss(increment: Array, duration: Array) -> Array:
    """½ (dM_i / Δt)² Δt `[T, ...]`, elementwise: the mean-square TD error.

    Times Δt it tends to half the expected quadratic variation of M, which the value
    does not minimise: the theory rejects this objective, and here it can be measured.
    """
    chex.assert_equal_shape([increment, duration])
    return 0.5 * increment**2 / duration


def orthogonality_loss(value: Array, coefficient: Array) -> Array:
    """-c_i J_i `[T, ...]`, elementwise: its gradient is *minus* Σ c_i ∇J_i.

    Descending it solves E ∫ ξ dM = 0 by stochastic approximation when c comes from
    `reverse_trace`. A semi-gradient: c is a constant of the gradient, and the value of
    the loss means nothing.
    """
    chex.assert_equal_shape([value, coefficient])
    return -jax.lax.stop_gradient(coefficient) * value


def moment_z_scores(instrument: Array, increment: Array) -> Array:
    """Is M a martingale? z-scores `[K]` of the moments E Σ ξ_i dM_i over paths.

    At the true value all of them are standard normal, up to the mesh's bias.

    Args:
      instrument: ξ `[T, B, K]`.
      increment: dM `[T, B]`.
    """
    chex.assert_rank([instrument, increment], [3, 2])
    moments = jnp.einsum("tbk,tb->bk", instrument, increment)
    error = jnp.std(moments, 0, ddof=1) / jnp.sqrt(moments.shape[0])
    return jnp.mean(moments, 0) / error
