"""How a slow copy of the parameters follows them: makers of `Method.target_update`.

Each maker returns a function `(params, target_params, step) -> target_params`, where
`step` counts the gradient steps taken, the last one included. The functions are pure
and may be jitted and vmapped; what they return is a constant for the methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlx.types import Array, Params

TargetUpdate: TypeAlias = Callable[[Params, Params, Array], Params]


def frozen() -> TargetUpdate:
    """The copy never changes: a reference policy."""

    def update(params: Params, target_params: Params, step: Array) -> Params:
        del params, step
        return target_params

    return update


def ema(tau: float | Array) -> TargetUpdate:
    """Exponential moving average: target ← (1 − τ) target + τ params.

    Polyak averaging as in Lillicrap et al. 2016 (DDPG),
    https://arxiv.org/abs/1509.02971, algorithm 1. τ = 1 is a copy at every step, τ = 0
    is `frozen`. Leaves that are no floats are copied. In half precision steps of a
    small τ round to nothing: keep such parameters in float32.

    Args:
      tau: τ in [0, 1], scalar; may be traced.

    Returns:
      The update; it raises AssertionError if the two trees differ in structure,
      shapes or dtypes.

    Raises:
      ValueError: τ is a number outside [0, 1].
      AssertionError: τ is no scalar.
    """
    chex.assert_rank(tau, 0)
    if isinstance(tau, int | float) and not 0 <= tau <= 1:
        raise ValueError(f"tau must lie in [0, 1], got {tau}")

    def of_leaf(new: Array, old: Array) -> Array:
        if not jnp.issubdtype(jnp.result_type(old), jnp.inexact):
            return new
        return ((1 - tau) * old + tau * new).astype(old.dtype)

    def update(params: Params, target_params: Params, step: Array) -> Params:
        del step
        chex.assert_trees_all_equal_shapes_and_dtypes(params, target_params)
        return jax.tree.map(of_leaf, params, target_params)

    return update


def periodic(every: int | Array) -> TargetUpdate:
    """A copy after every `every` gradient steps, and no change between.

    Mnih et al. 2015 (DQN), https://doi.org/10.1038/nature14236, algorithm 1. 1 is a
    copy at every step.

    Args:
      every: gradient steps between copies, ≥ 1, scalar integer; may be traced.

    Returns:
      The update; it raises AssertionError if the two trees differ in structure,
      shapes or dtypes.

    Raises:
      ValueError: `every` is a number below 1.
      AssertionError: `every` is no scalar integer.
    """
    chex.assert_rank(every, 0)
    chex.assert_type(every, int)
    if isinstance(every, int | np.integer) and every < 1:
        raise ValueError(f"every must be at least 1, got {every}")

    def update(params: Params, target_params: Params, step: Array) -> Params:
        chex.assert_trees_all_equal_shapes_and_dtypes(params, target_params)
        now = step % every == 0
        return jax.tree.map(
            lambda new, old: jnp.where(now, new, old), params, target_params
        )

    return update
