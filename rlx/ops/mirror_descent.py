"""Policy mirror descent: exact steps on finite actions, and its divergences.

Tomar, Shani, Efroni and Ghavamzadeh 2022, https://arxiv.org/abs/2005.09814. One step
from π_k maximises, in every state,

    E_{a~π}[Q(s, a)] + λ H(π) − B(π, π_k) / t

B is the Bregman divergence of the mirror map: the Kullback-Leibler divergence for
negative Shannon entropy, its Tsallis relatives for an index q' other than 1.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.ops import importance
from rlx.ops.tsallis import tsallis_log
from rlx.types import Array

_LARGEST_EXPONENT = 40.0


def mirror_step(
    log_policy: Array,
    action_value: Array,
    step_size: float | Array,
    temperature: float | Array = 0.0,
) -> Array:
    """The exact step with the KL divergence, in closed form.

        log π_{k+1} = (log π_k + t Q) / (1 + λ t) + constant

    λ = 0 is the exponentiated gradient π_k exp(t Q). t → ∞ is the greedy policy for
    λ = 0 and softmax(Q/λ) otherwise: (soft) policy iteration.

    Args:
      log_policy: `[..., A]` log π_k.
      action_value: `[..., A]` Q; any function of the state may be subtracted.
      step_size: t > 0, finite, scalar.
      temperature: λ >= 0, the weight of the new policy's entropy, scalar.

    Returns:
      `[..., A]` log π_{k+1}, normalised.

    Raises:
      AssertionError: shapes differ, or t or λ is no scalar.
    """
    chex.assert_equal_shape([log_policy, action_value])
    chex.assert_rank([step_size, temperature], 0)
    logits = (log_policy + step_size * action_value) / (1.0 + temperature * step_size)
    return jax.nn.log_softmax(logits)


def linearized_mirror_step(
    log_policy: Array,
    action_value: Array,
    step_size: float | Array,
    temperature: float | Array,
) -> Array:
    """The exact step with the entropy linearised at π_k: what the authors' code does.

        log π_{k+1} = (1 − λ t) log π_k + t Q + constant

    The same as `mirror_step` with the step size t' for which 1/t = 1/t' + λ.

    Args:
      log_policy: `[..., A]` log π_k.
      action_value: `[..., A]` Q.
      step_size: t > 0, scalar; at most 1/λ, or the step moves away from π_k.
      temperature: λ >= 0, scalar.

    Returns:
      `[..., A]` log π_{k+1}, normalised.

    Raises:
      AssertionError: shapes differ, or t or λ is no scalar.
    """
    chex.assert_equal_shape([log_policy, action_value])
    chex.assert_rank([step_size, temperature], 0)
    kept = (1.0 - temperature * step_size) * log_policy
    return jax.nn.log_softmax(kept + step_size * action_value)


def bregman_divergence(
    log_policy: Array, reference_log_policy: Array, index: float | Array = 1.0
) -> Array:
    """Bregman divergence of negative Tsallis entropy, over finite actions.

    With q = 2 − q' and ψ(π) = E_π[log_q π]:

        B = E_π[log_q π − q' log_q π_k] + (q' − 1) E_{π_k}[log_q π_k]

    Non-negative, zero for equal policies only. q' = 1 is KL(π ‖ π_k), q' = 2 the
    squared distance Σ (π − π_k)².

    Args:
      log_policy: `[..., A]` log π, normalised and finite.
      reference_log_policy: `[..., A]` log π_k, likewise.
      index: q' in [1, 2], scalar; may be traced.

    Returns:
      `[...]` divergences.

    Raises:
      AssertionError: shapes differ, or q' is no scalar.
    """
    chex.assert_equal_shape([log_policy, reference_log_policy])
    chex.assert_rank(index, 0)
    new = tsallis_log(log_policy, 2.0 - index)
    old = tsallis_log(reference_log_policy, 2.0 - index)
    under_new = jnp.sum(jnp.exp(log_policy) * (new - index * old), axis=-1)
    under_old = jnp.sum(jnp.exp(reference_log_policy) * old, axis=-1)
    return under_new + (index - 1.0) * under_old


def bregman_estimate(
    log_prob: Array, reference_log_prob: Array, index: float | Array = 1.0
) -> Array:
    """An unbiased estimate of `bregman_divergence` from an action of the *reference*.

        ρ (log_q π − q' log_q π_k) + (q' − 1) log_q π_k       ρ = π(a) / π_k(a)

    Without the ratio ρ the expectation has the wrong sign: for q' = 1 it is
    −KL(π_k ‖ π), and subtracting it rewards leaving the old policy.

    Elementwise.

    Args:
      log_prob: `[...]` log π(a|s), a drawn from π_k.
      reference_log_prob: `[...]` log π_k(a|s).
      index: q' in [1, 2], scalar.

    Returns:
      `[...]` estimates; single ones may be negative.

    Raises:
      AssertionError: shapes differ, or q' is no scalar.
    """
    chex.assert_equal_shape([log_prob, reference_log_prob])
    chex.assert_rank(index, 0)
    new = tsallis_log(log_prob, 2.0 - index)
    old = tsallis_log(reference_log_prob, 2.0 - index)
    ratio = importance.ratio(log_prob, reference_log_prob)
    return ratio * (new - index * old) + (index - 1.0) * old


def density_log(log_prob: Array, index: float | Array) -> Array:
    """log_q of a density, q = 2 − q', kept from overflowing.

    Densities, unlike probabilities, are unbounded: (q' − 1) log π counts as at most
    40, where log_q is 10¹⁷ and its gradient stops. q' = 1 is the identity.

    Args:
      log_prob: `[...]` log π(a|s).
      index: q' in [1, 2], scalar; may be traced.

    Returns:
      `[...]` log_q π(a|s).

    Raises:
      AssertionError: q' is no scalar.
    """
    chex.assert_rank(index, 0)
    largest = _LARGEST_EXPONENT / jnp.maximum(index - 1.0, 1e-6)
    limited = jnp.minimum(log_prob, jnp.asarray(largest, log_prob.dtype))
    return tsallis_log(limited, 2.0 - index)
