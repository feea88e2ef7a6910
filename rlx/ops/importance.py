"""Importance ratios of policies, and the surrogate that PPO made of them."""

from __future__ import annotations

import chex
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
