"""Products of experts: what one language model finds plausible, others rank.

Liu et al. 2021 (DExperts), https://arxiv.org/abs/2105.03023, as Hallinan et al. 2023
(STEER), https://arxiv.org/abs/2311.07167, decode a paraphraser with the language model
of a style. `rlx.generation.experts` speaks by it.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.ops import sampling
from rlx.types import Array

LIMIT = 20.0
"""Nats that the experts may add to or take from a word, at most."""
LEAST = -1e4
"""The log-probability of what an expert holds to be impossible: finite, so that two
experts of this opinion cancel."""


def product(
    base: Array,
    expert: Array,
    anti_expert: Array | None = None,
    *,
    strength: float | Array,
    nucleus: float | Array = 1.0,
) -> Array:
    """Logits of P_base, cut to its nucleus, times (P_expert / P_anti)^a.

        z = nucleus_p(z_base) + clip(a (log P_expert − log P_anti), ±20)

    The cut comes first: a word that the base does not find plausible has probability 0,
    whatever the experts say; among those that stay the experts decide. Without an
    anti-expert its log P is 0. A constant added to any of the logits changes nothing.
    Temper and filter the result as usual, and sample.

    Args:
      base: `[..., V]` logits.
      expert: `[..., V]` logits; they may be −∞, but not everywhere.
      anti_expert: `[..., V]` logits, or None.
      strength: a; 0 is the base alone; scalar or `[...]`.
      nucleus: p in (0, 1], mass of the base's most probable words; 1 keeps all.

    Raises:
      AssertionError: shapes differ, or an array does not hold floats.
    """
    given = [base, expert] if anti_expert is None else [base, expert, anti_expert]
    chex.assert_equal_shape(given)
    chex.assert_type(given, float)
    kept = sampling.top_p(base.astype(jnp.float32), nucleus)
    opinion = _log_prob(expert)
    if anti_expert is not None:
        opinion = opinion - _log_prob(anti_expert)
    weight = jnp.asarray(strength)
    weight = weight[..., None] if weight.ndim else weight
    return kept + jnp.clip(weight * opinion, -LIMIT, LIMIT)


def _log_prob(logits: Array) -> Array:
    found = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.maximum(found, LEAST)
