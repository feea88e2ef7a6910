"""Scores, entropies and metrics of conversational recommendation.

Symbols: a user u accepted the attributes A and rejected R; C ⊆ V are the items that
remain; P_v are the attributes of item v. Deng et al. 2021 (UNICORN),
https://arxiv.org/abs/2105.09710; Lei et al. 2020 (EAR), 10.1145/3336191.3371769.

Turns are counted in actions of the agent. `turn` is 0-based: success at the agent's
first action is turn 0. The user's opening move (one volunteered attribute) is free.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array

SCORE_LIMIT = 30.0
"""Scores are clipped to ± this: inner products of embeddings have no bound, and the
weights σ(score) must neither be 0 nor overflow."""


def item_scores(query: Array, items: Array, penalty: Array) -> Array:
    """Preference scores of all items, whose σ is the weight w_v (UNICORN, eq. 5).

    score_v = clip(q·e_v − penalty_v, ±30), where q = e_u + Σ_{p∈A} e_p and
    penalty_v = Σ_{p∈R∩P_v} e_p·e_v.

    Args:
      query: `[..., D]` q.
      items: `[NI, D]` e_v.
      penalty: `[..., NI]`.

    Returns:
      `[..., NI]`.
    """
    chex.assert_rank(items, 2)
    chex.assert_axis_dimension(query, -1, items.shape[1])
    chex.assert_shape(penalty, (*query.shape[:-1], items.shape[0]))
    return jnp.clip(query @ items.T - penalty, -SCORE_LIMIT, SCORE_LIMIT)


def binary_entropy(share: Array) -> Array:
    """H(q) = −q log₂ q − (1 − q) log₂(1 − q) in bits; 0 where q is 0 or 1.

    Args:
      share: `[...]` q; what rounding pushed out of [0, 1] is clipped.
    """
    share = jnp.clip(share, 0.0, 1.0)
    inside = (share > 0) & (share < 1)
    q = jnp.where(inside, share, 0.5)
    entropy = -q * jnp.log2(q) - (1 - q) * jnp.log2(1 - q)
    return jnp.where(inside, entropy, 0.0)


def attribute_entropy(
    weight: Array, total: Array, carriers: Array, candidates: Array
) -> Array:
    """Weighted entropy of attributes from their totals (UNICORN, eq. 8; SCPR, eq. 8).

    q_p = Σ_{v∈C, p∈P_v} w_v / Σ_{v∈C} w_v, then H(q_p). It is exactly 0 where all of C
    has the attribute or none, however the sums are rounded.

    Args:
      weight: `[..., NA]` Σ_{v∈C, p∈P_v} w_v.
      total: `[...]` Σ_{v∈C} w_v; where it is 0, C is empty and so are all entropies.
      carriers: `[..., NA]` how many items of C have the attribute.
      candidates: `[...]` how many items C has.

    Returns:
      `[..., NA]` bits.
    """
    chex.assert_equal_shape([weight, carriers])
    chex.assert_shape([total, candidates], weight.shape[:-1])
    share = weight / jnp.maximum(total, jnp.finfo(weight.dtype).tiny)[..., None]
    splits = (carriers > 0) & (carriers < candidates[..., None])
    return jnp.where(splits, binary_entropy(share), 0.0)


def top(score: Array, valid: Array, count: int) -> tuple[Array, Array]:
    """The `count` best valid entries of the last axis; the lower index wins a tie.

    Args:
      score: `[..., X]` finite.
      valid: bool `[..., X]`.
      count: at most X.

    Returns:
      `int32[..., count]` indices, best first, and bool `[..., count]`: False from where
      fewer than `count` entries are valid (what the index is there means nothing).

    Raises:
      ValueError: there are fewer than `count` entries.
    """
    chex.assert_equal_shape([score, valid])
    if not 0 <= count <= score.shape[-1]:
        raise ValueError(f"cannot choose {count} of {score.shape[-1]} entries")
    chosen = jax.lax.top_k(jnp.where(valid, score, -jnp.inf), count)
    # Without the barrier XLA's CPU compiler turns a top-k whose results are sliced
    # into a sort of everything: an observation of 7,432 items took ten times as long.
    best, index = jax.lax.optimization_barrier(chosen)
    return index.astype(jnp.int32), best > -jnp.inf


def hdcg(turn: Array, rank: Array, success: Array) -> Array:
    """Hierarchical DCG@(T, k) of single conversations (UNICORN, section 4.1.3).

    1/log₂(t + 3) + (1/log₂(t + 2) − 1/log₂(t + 3)) / log₂(j + 1) for success at turn t
    with the item at rank j, else 0. The first item of the first turn scores 1.

    Args:
      turn: `int[...]` t, 0-based.
      rank: `int[...]` j, 1-based.
      success: bool `[...]`; what turn and rank say of failures is ignored.

    Returns:
      `float32[...]` in [0, 1]; the metric is their mean.
    """
    chex.assert_equal_shape([turn, rank, success])
    t = jnp.where(success, turn, 0).astype(jnp.float32)
    j = jnp.where(success, rank, 1).astype(jnp.float32)
    later, now = 1 / jnp.log2(t + 3), 1 / jnp.log2(t + 2)
    return jnp.where(success, later + (now - later) / jnp.log2(j + 1), 0.0)


def success_rate(turn: Array, success: Array, max_turns: int) -> Array:
    """SR@t for t = 1 … `max_turns`: shares of conversations that succeeded by then.

    Args:
      turn: `int[E]` 0-based turn of success.
      success: bool `[E]`.
      max_turns: T.

    Returns:
      `float32[T]`, never decreasing; its last entry is SR@T.
    """
    chex.assert_rank([turn, success], 1)
    chex.assert_equal_shape([turn, success])
    limit = jnp.arange(1, max_turns + 1)
    return jnp.mean(success[:, None] & (turn[:, None] < limit[None]), axis=0)


def average_turns(turn: Array, success: Array, max_turns: int) -> Array:
    """AT: the mean number of turns; a failure counts T = `max_turns`.

    Args:
      turn: `int[E]` 0-based turn of success.
      success: bool `[E]`.
      max_turns: T.

    Returns:
      `float32[]` in [1, T].
    """
    chex.assert_rank([turn, success], 1)
    chex.assert_equal_shape([turn, success])
    return jnp.mean(jnp.where(success, turn + 1, max_turns).astype(jnp.float32))
