"""Policies that learn nothing: they read `Observation`s and choose slots.

Slots begin with the best items, each of which recommends the best ten, and go on with
every question by falling weighted entropy.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.unicorn.benchmark import ACTIONS, LIST
from experiments.unicorn.scoring import Act
from rlx.ops import catalogue as links_lib
from rlx.ops import conversation
from rlx.ops.catalogue import Catalogue
from rlx.ops.conversation import Observation
from rlx.types import Array, Key

RECOMMEND, ASK = 0, LIST
"""The slots of the best list and of the question with the greatest entropy."""
QUESTIONS = 10
"""Questions that looking ahead compares."""


def threshold(catalogue: Catalogue, size: float) -> Act:
    """Ask for the greatest weighted entropy while more than `size` items are left.

    0 asks for as long as something can be learned, infinity never asks.
    """

    def one(seen: Observation) -> Array:
        best = seen.action_ids[ASK] - catalogue.num_items
        useful = seen.action_mask[ASK] & (seen.entropy[best] > 0)
        return jnp.where((seen.num_candidates > size) & useful, ASK, RECOMMEND)

    return lambda params, seen, key: jax.vmap(one)(seen)


def maximum_entropy(catalogue: Catalogue) -> Act:
    """Recommend with probability 10 / max(|C|, 10), else ask by plain entropy."""

    def one(seen: Observation, key: Key) -> Array:
        known = seen.accepted | seen.rejected
        equal = jnp.ones((catalogue.num_items,))
        bits, _ = conversation.questions(catalogue, equal, seen.candidate, known)
        lists = jax.random.bernoulli(key, 10 / jnp.maximum(seen.num_candidates, 10))
        best = jnp.argmax(bits)
        ask = ~lists & (bits[best] > 0)
        return jnp.where(ask, slot_of(catalogue, seen, best), RECOMMEND)

    def act(params: Any, seen: Observation, key: Key) -> Array:
        del params
        return jax.vmap(one)(seen, jax.random.split(key, seen.turn.shape[0]))

    return act


def lookahead(catalogue: Catalogue, lists: int, sharpness: float = 0.0) -> Act:
    """Ask if that makes finding the item likelier than recommending now.

    With m_n(C) the share of C's weight that its 10n best items have, and q the share
    of the items with attribute p, asking for p is worth
    q m_n(C ∩ p) + (1 − q) m_n(C): one question, then n lists. Of the ten questions
    with the greatest entropy the best is asked if it is worth more than recommending.

    Args:
      catalogue: what conversations are about; questions are binary.
      lists: 1 compares one list after the question with one list now, so that a
        question costs nothing. 0 compares as many lists as turns are left after the
        question with one list more: what always recommending would reach.
      sharpness: weights are exp(sharpness · score); 0: σ(score), as in the graph.
    """

    def one(seen: Observation) -> Array:
        scores = conversation.scores(catalogue, seen)
        weights = conversation.weights(scores, seen.candidate, sharpness)
        order = jnp.argsort(-weights)
        weights = (weights / jnp.sum(weights))[order][None]
        ids = seen.action_ids[ASK : ASK + QUESTIONS] - catalogue.num_items
        there = seen.action_mask[ASK : ASK + QUESTIONS]
        having = jax.vmap(lambda p: links_lib.carriers(catalogue.links, p))
        with_it = (
            having(jnp.where(there, ids, 0))[:, order] & seen.candidate[order][None]
        )
        later = jnp.int32(lists) if lists else _left(seen) - 1
        now = later if lists else later + 1
        places = jnp.arange(weights.size)[None]
        keep = jnp.sum(jnp.where(places < LIST * later, weights, 0.0))
        reach = jnp.sum(jnp.where(places < LIST * now, weights, 0.0))
        within = jnp.cumsum(with_it, axis=1) <= LIST * later
        hit = jnp.sum(jnp.where(with_it & within, weights, 0.0), axis=1)
        share = jnp.sum(jnp.where(with_it, weights, 0.0), axis=1)
        # q m(C ∩ p) is the weight of the best items with p.
        worth = jnp.where(there, hit + (1 - share) * keep, -1.0)
        ask = jnp.max(worth) > reach + 1e-6
        return jnp.where(ask, ASK + jnp.argmax(worth), RECOMMEND)

    return lambda params, seen, key: jax.vmap(one)(seen)


def _left(seen: Observation) -> Array:
    """Actions left, this one included."""
    return ACTIONS - seen.turn


def slot_of(catalogue: Catalogue, seen: Observation, question: Array) -> Array:
    """The slot that asks a question, which must be askable."""
    return jnp.argmax(seen.action_ids == catalogue.num_items + question)
