"""From what was said in a conversation to the graph that UNICORN sees."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx.methods._conversation import GraphState, Knowledge, graph_state
from rlx.ops import catalogue as links_lib
from rlx.ops import conversation, recommendation
from rlx.ops.catalogue import Catalogue, Dense
from rlx.ops.conversation import ConversationSpec, Observation
from rlx.types import Array


def knowledge_of(spec: ConversationSpec) -> Knowledge:
    """What UNICORN is told before any conversation about the spec's catalogue.

    Raises:
      ValueError: questions are enumerated: the method's graph knows attributes only.
    """
    catalogue = spec.catalogue
    require_binary(catalogue)

    def has(items: Array, attributes: Array) -> Array:
        items, attributes = items[..., :, None], attributes[..., None, :]
        links = catalogue.links
        if isinstance(links, Dense):
            return links.has[items, attributes]
        start, end = links.item_start[items], links.item_start[items + 1]
        return _found(links.attributes, start, end, attributes, links.wide)

    return Knowledge(
        catalogue.user_embedding,
        catalogue.item_embedding,
        catalogue.attribute_embedding,
        has,
        num_features=_bits(catalogue) + _turns(spec) + 3,
        num_action_features=3,
    )


def require_binary(catalogue: Catalogue) -> None:
    """Checks that every question asks for one attribute.

    Raises:
      ValueError: one does not.
    """
    if catalogue.children.shape[1] > 1:
        raise ValueError(
            "rlx.methods.unicorn needs binary questions: leave out parents"
        )


def graph(
    spec: ConversationSpec, seen: Observation, sharpness: float = 0.0
) -> GraphState:
    """The graph of a conversation; no batch axis.

    Args:
      spec: of the conversation.
      seen: what was said, and what follows from it.
      sharpness: `features` and `action_features` take a candidate to be what the user
        wants with probability ∝ exp(sharpness · score); 0: ∝ σ(score), the weight of
        its edge. Edges are the same in any case.
    """
    catalogue, pruning = spec.catalogue, spec.pruning
    asked = slice(pruning.num_items, None)
    there = seen.action_mask[asked]
    attributes = jnp.where(there, seen.action_ids[asked] - catalogue.num_items, -1)
    scores = conversation.scores(catalogue, seen)
    weights = conversation.weights(scores, seen.candidate, sharpness)
    total = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
    known = jnp.where(seen.item_mask, weights[seen.item_ids], 0.0)
    best = jnp.sum(known[: pruning.list_size]) / total
    return graph_state(
        seen.user,
        seen.accepted_order,
        seen.candidate,
        scores,
        attributes,
        counts=lambda rows: links_lib.attribute_totals(catalogue.links, rows),
        num_items=pruning.num_nodes,
        num_actions=pruning.num_items,
        features=_features(spec, seen, best),
        action_features=_action_features(spec, seen, attributes, weights, sharpness),
    )


def _features(spec: ConversationSpec, seen: Observation, best: Array) -> Array:
    """`[F]`: bits of |C|, the turn, shares of answers, the share of the best list.

    The first two as 0 and 1, one place for each value.
    """
    size = jnp.ceil(jnp.log2(jnp.maximum(seen.num_candidates, 1).astype(jnp.float32)))
    turns = _turns(spec)
    counts = jnp.stack([jnp.sum(seen.accepted), jnp.sum(seen.rejected)]) / turns
    return jnp.concatenate(
        [
            jax.nn.one_hot(size.astype(jnp.int32), _bits(spec.catalogue)),
            jax.nn.one_hot(seen.turn, turns),
            counts,
            best[None],
        ]
    )


def _action_features(
    spec: ConversationSpec,
    seen: Observation,
    attributes: Array,
    weights: Array,
    sharpness: float,
) -> Array:
    """`[K + L, 3]`: whether an item, its weight or an attribute's share, and entropy.

    Args:
      spec: of the conversation.
      seen: the conversation.
      attributes: `int32[L]`, -1 where there is none.
      weights: `[I]` of the candidates, 0 of other items.
      sharpness: of these; where it is not 0, items have their share of all weight.
    """
    first = spec.pruning.num_items
    total = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
    shares = weights / total
    there, ids = attributes >= 0, jnp.maximum(attributes, 0)
    likely = links_lib.attribute_totals(spec.catalogue.links, shares)
    own, entropy = seen.item_weight[:first], seen.entropy
    if sharpness:
        own = jnp.where(seen.item_mask, shares[seen.item_ids], 0.0)[:first]
        entropy = recommendation.binary_entropy(likely)
    zeros = jnp.zeros((first,))
    items = jnp.stack([zeros + 1, own, zeros], axis=1)
    asked = jnp.stack([jnp.zeros(ids.shape), likely[ids], entropy[ids]], axis=1)
    return jnp.concatenate([items, jnp.where(there[:, None], asked, 0.0)])


def _bits(catalogue: Catalogue) -> int:
    return (catalogue.num_items - 1).bit_length() + 1


def _turns(spec: ConversationSpec) -> int:
    return spec.time_limit or 1


def _found(values: Array, low: Array, high: Array, wanted: Array, wide: int) -> Array:
    """Whether sorted `values[low:high]` holds what is wanted, by bisection."""
    shape = jnp.broadcast_shapes(low.shape, wanted.shape)
    low, end = (jnp.broadcast_to(x, shape) for x in (low, high))
    high = end
    for _ in range(wide.bit_length()):
        middle = (low + high) // 2
        right = (values[middle] < wanted) & (low < high)
        low, high = jnp.where(right, middle + 1, low), jnp.where(right, high, middle)
    return (low < end) & (values[low] == wanted)
