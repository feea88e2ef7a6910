"""The simulator as `rlx.methods.unicorn` sees it: graphs in, asked or told out."""

from __future__ import annotations

import jax.numpy as jnp

from envs.conversation import simulator
from envs.conversation.simulator import Options, State
from rlx.methods import unicorn
from rlx.ops import catalogue as links_lib
from rlx.ops import conversation
from rlx.ops.catalogue import Catalogue, Dense
from rlx.ops.conversation import Observation
from rlx.types import Array, Env, Key, Step


def knowledge(catalogue: Catalogue) -> unicorn.Knowledge:
    """What the method is told before any conversation; questions must be binary.

    Raises:
      ValueError: questions are enumerated: the method's graph knows attributes only.
    """
    if catalogue.children.shape[1] > 1:
        raise ValueError(
            "rlx.methods.unicorn needs binary questions: leave out parents"
        )

    def has(items: Array, attributes: Array) -> Array:
        items, attributes = items[..., :, None], attributes[..., None, :]
        links = catalogue.links
        if isinstance(links, Dense):
            return links.has[items, attributes]
        start, end = links.item_start[items], links.item_start[items + 1]
        return _found(links.attributes, start, end, attributes, links.wide)

    return unicorn.Knowledge(
        catalogue.user_embedding,
        catalogue.item_embedding,
        catalogue.attribute_embedding,
        has,
    )


def make(catalogue: Catalogue, options: Options | None = None, name: str = "") -> Env:
    """The simulator with `GraphState` observations and the method's `Choice` actions.

    Raises:
      ValueError: as `simulator.make` and `knowledge`.
    """
    knowledge(catalogue)  # complain now
    inner = simulator.make(catalogue, options, name)
    pruning = inner.spec.pruning  # type: ignore[attr-defined]

    def graph(seen: Observation) -> unicorn.GraphState:
        asked = slice(pruning.num_items, None)
        attributes = seen.action_ids[asked] - catalogue.num_items
        return unicorn.graph_state(
            seen.user,
            seen.accepted_order,
            seen.candidate,
            conversation.scores(catalogue, seen),
            jnp.where(seen.action_mask[asked], attributes, -1),
            counts=lambda rows: links_lib.attribute_totals(catalogue.links, rows),
            num_items=pruning.num_nodes,
            num_actions=pruning.num_items,
        )

    def reset(key: Key) -> tuple[State, unicorn.GraphState]:
        state, seen = inner.reset(key)
        return state, graph(seen)

    def step(state: State, action: unicorn.Choice, key: Key) -> tuple[State, Step]:
        plain = conversation.Choice(slot=action.index, items=action.items)
        state, new = inner.step(state, plain, key)
        return state, new.replace(observation=graph(new.observation))

    return Env(reset, step, inner.spec)


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
