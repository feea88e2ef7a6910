"""Records of token sequences: what language methods learn from.

A row holds a prompt and its response, one after the other; padding may stand on either
side. B rows of S tokens.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp
from flax import struct

from rlx.types import Array


@struct.dataclass
class Sequences:
    """Prompts with their responses."""

    tokens: Array
    """`int32[..., S]`."""
    mask: Array
    """`bool[..., S]` True for real tokens, False for padding."""
    response: Array
    """`bool[..., S]` True for the response's tokens, its stop token included."""


@struct.dataclass
class Preferences:
    """Pairs of responses to the same prompt, one preferred."""

    chosen: Sequences
    rejected: Sequences
    weight: Array
    """`float32[...]` of each pair; 0: as if it were not there."""


def joined(
    prompt: Array, prompt_mask: Array, answer: Array, answer_mask: Array
) -> Sequences:
    """Prompts `[..., L]` and responses `[..., T]` in one row of L + T.

    Args:
      prompt: `int[..., L]`, padded on the left.
      prompt_mask: `bool[..., L]`.
      answer: `int[..., T]`, padded on the right.
      answer_mask: `bool[..., T]`.

    Raises:
      AssertionError: tokens and masks differ in shape.
    """
    chex.assert_equal_shape([prompt, prompt_mask])
    chex.assert_equal_shape([answer, answer_mask])
    nothing = jnp.zeros(prompt.shape, bool)
    return Sequences(
        tokens=jnp.concatenate([prompt, answer], axis=-1),
        mask=jnp.concatenate([prompt_mask, answer_mask], axis=-1),
        response=jnp.concatenate([nothing, answer_mask], axis=-1),
    )


@struct.dataclass
class Calibrated:
    """Preferences, and for each pair a response from a calibration distribution."""

    pairs: Preferences
    calibration: Sequences
    """To the same prompts; as many rows as there are pairs."""


@struct.dataclass
class Labelled:
    """Texts with answers to C questions about each."""

    tokens: Array
    """`int32[..., T]`."""
    mask: Array
    """`bool[..., T]` False for padding, wherever it stands."""
    label: Array
    """`float32[..., C]` 1 for yes, 0 for no."""
