"""Noise on texts: what a paraphraser learns to undo, and what a judge learns to see.

Denoising as in Lample et al. 2018, https://arxiv.org/abs/1711.00043 (section 2.3):
words are dropped, and moved by a few places. Beside them: words are replaced by given
neighbours or by any word, and said twice. All on rows that are padded on the right, all
pure; what the mask leaves out, such as a stop token, has no part in it.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array, Key


@dataclasses.dataclass(frozen=True)
class Noise:
    """How much of it; rates are per token. Floats may be swept under `vmap`."""

    drop: float = 0.1
    """Chance that a token is left out."""
    shuffle: float = 3.0
    """Tokens move by less than this many places; 0 or 1: they stay."""
    replace: float = 0.0
    """Chance that a token is replaced, by one of `choices`."""
    repeat: float = 0.0
    """Chance that a token takes the place of the next one."""


def corrupt(
    key: Key, tokens: Array, mask: Array, noise: Noise, choices: Array
) -> tuple[Array, Array]:
    """Rows with noise, and their masks.

    Args:
      key: used once.
      tokens: `int[B, T]`, padded on the right.
      mask: `bool[B, T]`.
      noise: see there.
      choices: `int[V, J]`: what each token may be replaced by, or `int[1, J]` for all.

    Returns:
      `int[B, T]` and `bool[B, T]`; of each row that has any at least one token stays.

    Raises:
      AssertionError: shapes do not fit.
    """
    chex.assert_rank([tokens, mask, choices], 2)
    chex.assert_equal_shape([tokens, mask])
    keys = jax.random.split(key, 4)
    tokens = replaced(keys[0], tokens, mask, noise.replace, choices)
    tokens = repeated(keys[1], tokens, mask, noise.repeat)
    tokens = shuffled(keys[2], tokens, mask, noise.shuffle)
    return dropped(keys[3], tokens, mask, noise.drop)


def replaced(
    key: Key, tokens: Array, mask: Array, rate: float | Array, choices: Array
) -> Array:
    """Replaces tokens by one of their choices `int[V, J]` or `int[1, J]`."""
    chance_key, choice_key = jax.random.split(key)
    hit = (jax.random.uniform(chance_key, tokens.shape) < rate) & mask
    which = jax.random.randint(choice_key, tokens.shape, 0, choices.shape[1])
    row = jnp.minimum(tokens, choices.shape[0] - 1)
    return jnp.where(hit, choices[row, which].astype(tokens.dtype), tokens)


def repeated(key: Key, tokens: Array, mask: Array, rate: float | Array) -> Array:
    """Says a token again in place of the one after it."""
    hit = (jax.random.uniform(key, tokens.shape) < rate) & mask
    before = jnp.roll(tokens, 1, axis=1)
    return jnp.where(hit.at[:, 0].set(False), before, tokens)


def shuffled(key: Key, tokens: Array, mask: Array, reach: float | Array) -> Array:
    """Sorts tokens by place + U(0, reach): none moves by `reach` places or more."""
    place = jnp.arange(tokens.shape[1], dtype=jnp.float32)[None]
    moved = place + reach * jax.random.uniform(key, tokens.shape)
    order = jnp.argsort(jnp.where(mask, moved, jnp.inf), axis=1, stable=True)
    return jnp.take_along_axis(tokens, order, axis=1)


def dropped(
    key: Key, tokens: Array, mask: Array, rate: float | Array
) -> tuple[Array, Array]:
    """Leaves tokens out and closes the gaps; what follows a row's end is 0."""
    draw = jax.random.uniform(key, tokens.shape)
    luckiest = jnp.where(mask, draw, -1.0)
    best = luckiest == jnp.max(luckiest, axis=1, keepdims=True)
    kept = mask & ((draw >= rate) | best)
    order = jnp.argsort(~kept, axis=1, stable=True)
    there = jnp.take_along_axis(kept, order, axis=1)
    return jnp.where(there, jnp.take_along_axis(tokens, order, axis=1), 0), there
