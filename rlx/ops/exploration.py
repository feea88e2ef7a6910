"""Exploration of discrete actions: ε-greedy choice, and a schedule for ε."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array, Key


def linear(
    step: Array | int,
    *,
    start: float | Array,
    end: float | Array,
    steps: int | Array,
) -> Array:
    """A straight line from `start` to `end`, and `end` ever after.

    Mnih et al. 2015, https://doi.org/10.1038/nature14236, extended data table 1.

    Args:
      step: `[...]` steps taken.
      start: value at step 0.
      end: value from step `steps` on.
      steps: length of the line; 0: `end` at once.

    Returns:
      `[...]` the value, float32.
    """
    share = jnp.where(
        jnp.asarray(steps) > 0, step / jnp.maximum(steps, 1), jnp.float32(1)
    )
    return start + (end - start) * jnp.clip(share, 0.0, 1.0)


def greedy(action_values: Array, where: Array) -> Array:
    """The best of the actions that are allowed; 0 where none is.

    Args:
      action_values: `[..., A]` Q(s, ·).
      where: `bool[..., A]` what is allowed.

    Returns:
      `int32[...]`; the first of several best.

    Raises:
      AssertionError: shapes differ.
    """
    chex.assert_equal_shape([action_values, where])
    masked = jnp.where(where, action_values, -jnp.inf)
    return jnp.argmax(masked, axis=-1).astype(jnp.int32)


def epsilon_greedy(
    key: Key, action_values: Array, where: Array, epsilon: float | Array
) -> Array:
    """With probability ε any allowed action, all equally likely; else the best.

    Sutton & Barto 2018, section 2.2.

    Args:
      key: used once.
      action_values: `[..., A]` Q(s, ·).
      where: `bool[..., A]` what is allowed.
      epsilon: ε in [0, 1], scalar.

    Returns:
      `int32[...]`; 0 where no action is allowed.

    Raises:
      AssertionError: shapes differ, or ε is no scalar.
    """
    chex.assert_rank(epsilon, 0)
    best = greedy(action_values, where)
    whether_key, which_key = jax.random.split(key)
    explore = jax.random.bernoulli(whether_key, epsilon, best.shape)
    # The greatest of equal uniforms is any of them.
    noise = jax.random.uniform(which_key, action_values.shape)
    return jnp.where(explore, greedy(noise, where), best)
