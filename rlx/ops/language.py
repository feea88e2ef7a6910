"""Log-probabilities of token sequences.

One convention: prompt and response stand in one row, `tokens[B, S]`; `response[B, S]`
says which tokens belong to the response, the stop token included. Logits at s − 1
predict token s. Sums are float32, whatever the network computes in.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array


def token_log_prob(logits: Array, tokens: Array) -> Array:
    """The log-softmax: log softmax(logits)[token], float32.

    Args:
      logits: `[..., V]` that predict these very tokens.
      tokens: `int[...]`.

    Raises:
      AssertionError: leading shapes differ.
    """
    chex.assert_equal_shape_prefix([logits, tokens], tokens.ndim)
    chex.assert_rank(logits, tokens.ndim + 1)
    chex.assert_type([logits, tokens], [float, int])
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def response_log_prob(logits: Array, tokens: Array, response: Array) -> Array:
    """Log π(token | all before it) of a response's tokens; 0 elsewhere.

    Args:
      logits: `[B, S, V]` of the whole row.
      tokens: `int[B, S]`.
      response: `bool[B, S]`; False at s = 0, which nothing predicts.

    Returns:
      `float32[B, S]`.

    Raises:
      AssertionError: shapes differ.
    """
    chex.assert_equal_shape([tokens, response])
    chex.assert_equal_shape_prefix([logits, tokens], 2)
    found = token_log_prob(logits[:, :-1], tokens[:, 1:])
    found = jnp.where(response[:, 1:], found, 0.0)
    return jnp.pad(found, ((0, 0), (1, 0)))


def sequence_log_prob(
    log_prob: Array, response: Array, *, normalize: bool = False
) -> Array:
    """The sum over a response, `[B]`; its mean over the response if `normalize`.

    Args:
      log_prob: `[B, S]` of tokens.
      response: `bool[B, S]`; a row without any gives 0.
      normalize: divide by the number of the response's tokens.
    """
    chex.assert_equal_shape([log_prob, response])
    total = jnp.sum(jnp.where(response, log_prob, 0.0), axis=-1, dtype=jnp.float32)
    if not normalize:
        return total
    return total / jnp.maximum(jnp.sum(response, axis=-1), 1)
