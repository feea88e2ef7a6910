"""Importance ratios, PPO's surrogate, and how far a sampler lies from its policy."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array

_LARGEST_LOG_RATIO = 20.0
"""exp overflows float32 near 88; at e^20 only the sign of what it weighs matters."""


def ratio(log_prob: Array, behaviour_log_prob: Array) -> Array:
    """ρ = exp(log π(a|s) − log π_old(a|s)), between e^−20 and e^20.

    Elementwise.

    Args:
      log_prob: `[...]` log π(a|s).
      behaviour_log_prob: `[...]` log π_old(a|s).

    Returns:
      `[...]` ratios.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([log_prob, behaviour_log_prob])
    chex.assert_type([log_prob, behaviour_log_prob], float)
    difference = log_prob - behaviour_log_prob
    return jnp.exp(jnp.clip(difference, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO))


def clipped_surrogate(
    log_prob: Array,
    behaviour_log_prob: Array,
    advantage: Array,
    clip: float | Array,
) -> Array:
    """min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) (Schulman et al. 2017, equation 7).

    Elementwise.

    Args:
      log_prob: `[...]` log π(a|s).
      behaviour_log_prob: `[...]` log π_old(a|s).
      advantage: `[...]` A.
      clip: ε > 0, a scalar or `[...]`.

    Returns:
      `[...]` the surrogate, to be maximised.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([log_prob, behaviour_log_prob, advantage])
    chex.assert_type([log_prob, behaviour_log_prob, advantage], float)
    weight = ratio(log_prob, behaviour_log_prob)
    clipped = jnp.clip(weight, 1.0 - clip, 1.0 + clip)
    return jnp.minimum(weight * advantage, clipped * advantage)


def truncated(log_prob: Array, sampler_log_prob: Array, cap: float | Array) -> Array:
    """min(π(a|s) / μ(a|s), C), a constant of the gradient (Ionides 2008).

    Corrects for samples of μ where they should be π's, such as those of an engine that
    computes π a little differently (Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training"). Elementwise.

    Args:
      log_prob: `[...]` log π(a|s), of what the samples should have come from.
      sampler_log_prob: `[...]` log μ(a|s), as it was when they were drawn.
      cap: C > 0, a scalar or `[...]`.

    Returns:
      `[...]` weights in (0, C].

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    weight = jnp.minimum(ratio(log_prob, sampler_log_prob), cap)
    return jax.lax.stop_gradient(weight)


def k3(log_prob: Array, other_log_prob: Array) -> Array:
    """ν/π − log(ν/π) − 1 >= 0 at samples of π: its mean is KL(π ‖ ν), without bias.

    Schulman 2020, "Approximating KL divergence"; Shao et al. 2024,
    https://arxiv.org/abs/2402.03300, equation 4. Elementwise. Beyond ν/π = e^20 it is
    constant, so that nothing overflows.

    Args:
      log_prob: `[...]` log π(a|s), of what the samples came from.
      other_log_prob: `[...]` log ν(a|s).

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([log_prob, other_log_prob])
    chex.assert_type([log_prob, other_log_prob], float)
    difference = jnp.minimum(other_log_prob - log_prob, _LARGEST_LOG_RATIO)
    return jnp.expm1(difference) - difference


class Mismatch(NamedTuple):
    """How far the sampler's log-probabilities lie from those of the policy; scalars."""

    mean_absolute: Array
    """Mean |log π − log μ|."""
    kl: Array
    """KL(μ ‖ π) per sample, by `k3`."""
    largest_ratio: Array
    """Of π / μ, at most e^20."""


def mismatch(log_prob: Array, sampler_log_prob: Array, mask: Array) -> Mismatch:
    """Compares two log-probabilities of the same samples of μ.

    Args:
      log_prob: `[...]` log π.
      sampler_log_prob: `[...]` log μ.
      mask: `bool[...]` what counts; if nothing does: 0, 0 and 0.

    Raises:
      AssertionError: shapes differ, or a log-probability does not hold floats.
    """
    chex.assert_equal_shape([log_prob, sampler_log_prob, mask])
    count = jnp.maximum(jnp.sum(mask), 1)

    def mean(x: Array) -> Array:
        return jnp.sum(jnp.where(mask, x, 0.0)) / count

    ratios = jnp.where(mask, ratio(log_prob, sampler_log_prob), 0.0)
    return Mismatch(
        mean(jnp.abs(log_prob - sampler_log_prob)),
        mean(k3(sampler_log_prob, log_prob)),
        jnp.max(ratios, initial=0.0),
    )
