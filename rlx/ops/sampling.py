"""What a language model may say next: filters on logits before sampling.

Every filter keeps the most probable word, whatever its argument. What it forbids has
the logit −∞; equal logits stand or fall together, so that ties keep more, never fewer.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array


def top_k(logits: Array, k: int) -> Array:
    """Keeps the k greatest logits of `[..., V]`; k = 0 or k >= V keeps all.

    Raises:
      ValueError: k is negative.
    """
    chex.assert_type(logits, float)
    if k < 0:
        raise ValueError(f"top_k must not be negative, got {k}")
    if k == 0 or k >= logits.shape[-1]:
        return logits
    least = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits >= least, logits, -jnp.inf)


def top_p(logits: Array, p: float | Array) -> Array:
    """The nucleus: the fewest words whose probability together reaches p.

    Holtzman et al. 2020, https://arxiv.org/abs/1904.09751.

    Args:
      logits: `[..., V]`.
      p: in (0, 1]; 1 keeps all.
    """
    chex.assert_type(logits, float)
    ordered = jnp.sort(logits, axis=-1, descending=True)
    share = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(share, axis=-1) - share
    kept = ((before < p) | (jnp.asarray(p) >= 1.0)).at[..., 0].set(True)
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def min_p(logits: Array, p: float | Array) -> Array:
    """Keeps what is at least p times as probable as the most probable word.

    Nguyen et al. 2024, https://arxiv.org/abs/2407.01082.

    Args:
      logits: `[..., V]`.
      p: in [0, 1]; 0 keeps all.
    """
    chex.assert_type(logits, float)
    greatest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.where(logits - greatest >= jnp.log(p), logits, -jnp.inf)


def tempered(logits: Array, temperature: float | Array) -> Array:
    """Logits divided by a temperature > 0, `[..., V]`."""
    chex.assert_type(logits, float)
    return logits / temperature
