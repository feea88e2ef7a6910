"""What UNICORN sees of a conversation and what it does in it: records, no learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct

from rlx.types import Array


class Knowledge(NamedTuple):
    """What is known before any conversation."""

    user_vectors: Array
    """`[U, D]`, from training interactions alone."""
    item_vectors: Array
    """`[I, D]`"""
    attribute_vectors: Array
    """`[P, D]`"""
    has: Callable[[Array, Array], Array]
    """`(items int[..., M], attributes int[..., N]) -> bool[..., M, N]`."""
    num_features: int = 0
    """F, of `GraphState.features`."""
    num_action_features: int = 0
    """G, of `GraphState.action_features`."""


@struct.dataclass
class GraphState:
    """A conversation as the method sees it: the nodes of its graph, and the actions.

    Edges follow from the nodes and are not kept. Ids of what is not there are -1.
    """

    user: Array
    """`int32[...]`"""
    accepted: Array
    """`int32[..., T]` attributes, in the order of acceptance."""
    items: Array
    """`int32[..., M]` the candidates with the greatest weights."""
    weights: Array
    """`[..., M]` in (0, 1): how well each suits; the edges to the user."""
    rest: Array
    """`[..., 1 + T + L]` all other candidates, merged into one node: the sums of their
    edges to the user, the accepted attributes and `attribute_actions`."""
    item_actions: Array
    """`int32[..., K]` items that can be recommended, best first."""
    attribute_actions: Array
    """`int32[..., L]` attributes that can be asked for."""
    features: Array
    """`float32[..., F]` numbers of order one about the conversation, such as how many
    candidates are left; F may be 0. The paper's state has none."""
    action_features: Array
    """`float32[..., K + L, G]` numbers of order one about each action; G may be 0."""


@struct.dataclass
class Choice:
    """What the method does: ask for an attribute, or recommend a list."""

    attribute: Array
    """`int32[...]`; -1: recommend."""
    items: Array
    """`int32[..., K]` the list, best first by Q; -1 in places that stay empty."""
    index: Array
    """`int32[...]` which of the K + L actions this was."""


def graph_state(  # noqa: PLR0913 (what is known about a conversation)
    user: Array,
    accepted: Array,
    candidate: Array,
    scores: Array,
    attribute_actions: Array,
    *,
    counts: Callable[[Array], Array],
    num_items: int,
    num_actions: int,
    features: Array | None = None,
    action_features: Array | None = None,
) -> GraphState:
    """What is known about a conversation, as an observation. No batch axes: `vmap`.

    The paper's graph has all candidates as nodes. Here those beyond the best M are one
    node, whose edges are the sums of theirs: degrees stay those of the whole graph.

    Args:
      user: `int32[]`.
      accepted: `int32[T]` attributes in their order, -1 behind the last.
      candidate: `bool[I]` items that are still possible.
      scores: `[I]` how well every item suits, before the logistic function.
      attribute_actions: `int32[L]`, -1 where there are fewer.
      counts: `float[I] -> [P]`: sums over the items that have each attribute.
      num_items: M, items kept as nodes: those with the greatest scores.
      num_actions: K, items that can be recommended.
      features: `[F]`; none unless given.
      action_features: `[K + L, G]`; none unless given.

    Raises:
      AssertionError: shapes do not match, or K > M.
    """
    chex.assert_equal_shape([candidate, scores])
    if num_actions > num_items:
        raise ValueError(f"{num_actions} actions of {num_items} items")
    masked = jnp.where(candidate, scores, -jnp.inf)
    best, items = jax.lax.top_k(masked, num_items)
    there = best > -jnp.inf
    items = jnp.where(there, items, -1).astype(jnp.int32)
    weights = jnp.where(there, _suits(best), 0.0)
    others = candidate.at[jnp.where(there, items, candidate.size)].set(
        False, mode="drop"
    )
    attributes = jnp.concatenate([accepted, attribute_actions])
    edges = counts(others.astype(jnp.float32))[jnp.maximum(attributes, 0)]
    to_user = jnp.sum(jnp.where(others, _suits(scores), 0.0))
    slots = num_actions + attribute_actions.size
    if features is None:
        features = jnp.zeros((0,))
    if action_features is None:
        action_features = jnp.zeros((slots, 0))
    chex.assert_shape(features, (None,))
    chex.assert_shape(action_features, (slots, None))
    return GraphState(
        user=user.astype(jnp.int32),
        accepted=accepted.astype(jnp.int32),
        items=items,
        weights=weights,
        rest=jnp.append(to_user, jnp.where(attributes >= 0, edges, 0.0)),
        item_actions=items[:num_actions],
        attribute_actions=attribute_actions.astype(jnp.int32),
        features=features.astype(jnp.float32),
        action_features=action_features.astype(jnp.float32),
    )


def _suits(scores: Array) -> Array:
    return jax.nn.sigmoid(jnp.clip(scores, -30, 30))


def flat(observation: GraphState) -> GraphState:
    """All leading axes as one."""
    number, size = observation.user.ndim, observation.user.size
    return jax.tree.map(lambda x: x.reshape(size, *x.shape[number:]), observation)


def allowed(observation: GraphState) -> Array:
    ids = [observation.item_actions, observation.attribute_actions]
    return jnp.concatenate(ids, axis=-1) >= 0


def choose(observation: GraphState, everything: Array, index: Array) -> Choice:
    """The chosen action; a list holds the candidates by Q."""
    items = observation.item_actions
    num_items = items.shape[-1]
    values = jnp.where(items >= 0, everything[..., :num_items], -jnp.inf)
    ranked = jnp.argsort(-values, axis=-1, stable=True)
    asked = index >= num_items
    place = jnp.where(asked, index - num_items, 0)
    attributes = observation.attribute_actions
    attribute = jnp.take_along_axis(attributes, place[..., None], axis=-1)[..., 0]
    return Choice(
        attribute=jnp.where(asked, attribute, -1),
        items=jnp.take_along_axis(items, ranked, axis=-1),
        index=index,
    )
