"""The multi-round conversational recommendation simulator.

Lei et al. 2020 (EAR), https://doi.org/10.1145/3336191.3371769; Deng et al. 2021
(UNICORN), https://arxiv.org/abs/2105.09710, section 3.1.

A user u looks for an item v*. The user opens by naming one attribute of v*, drawn
uniformly. In each turn the agent asks a question or recommends k items, and the user
answers truthfully. With A the accepted attributes, R the rejected ones and C the
candidate items:

- an accepted attribute joins A, and C loses the items without it: +0.01;
- a rejected one joins R and, unless `filter_rejected`, leaves C as it is: −0.1. An
  enumerated question is accepted where any of its attributes is;
- a recommendation with v* ends the conversation: +1; else its items leave C: −0.1;
- at the turn limit the conversation ends: −0.3.

**Turns.** `turns="agent"`, the default: the agent has `max_turns` actions, and −0.3 is
added to the reward of the last one. `turns="published"` counts as the authors' code
does: the user's opening is turn 1, so that `max_turns=15` gives the agent 14 actions;
what it chooses then is not carried out: the 15th step only brings −0.3. The turn limit
is part of the task (its penalty says so), hence `terminated` and never `truncated`.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct

from rlx.ops import catalogue as links_lib
from rlx.ops import conversation
from rlx.ops.catalogue import Catalogue
from rlx.ops.conversation import Choice, ConversationSpec, Dialogue, Observation
from rlx.types import Array, Box, Discrete, Env, Key, PyTree, Step


@dataclasses.dataclass(frozen=True)
class Options:
    """Rules of the conversation; the defaults are the paper's."""

    max_turns: int = 15
    """T."""
    turns: str = "agent"
    """How T is counted: `"agent"` or `"published"`, see the module."""
    filter_rejected: bool = False
    """Whether items with a rejected attribute leave C. The published simulators keep
    them, which makes the task much harder."""
    reward_accept: float = 0.01
    reward_reject: float = -0.1
    reward_hit: float = 1.0
    reward_miss: float = -0.1
    reward_quit: float = -0.3
    """At the turn limit."""
    pruning: conversation.Pruning = dataclasses.field(
        default_factory=conversation.Pruning
    )

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
          ValueError: one is impossible.
        """
        if self.turns not in ("agent", "published"):
            raise ValueError(
                f"turns must be 'agent' or 'published', got {self.turns!r}"
            )
        if self.max_turns < 1 + (self.turns == "published"):
            raise ValueError(f"max_turns={self.max_turns} leaves the agent no action")

    @property
    def num_actions(self) -> int:
        """Actions that the agent really has in a conversation."""
        return self.max_turns - (self.turns == "published")


@struct.dataclass
class State:
    """A conversation, with what only the user knows."""

    user: Array
    target: Array
    """`int32[]` v*."""
    accepted_order: Array
    rejected_order: Array
    candidate: Array
    """bool `[NI]` C."""
    turn: Array
    action_ids: Array
    """The observation's, to know what a slot means."""
    action_mask: Array
    best_items: Array
    """`int32[k]` the best candidates by preference, −1 pads: what an item slot
    recommends beside its own item."""


def make(catalogue: Catalogue, options: Options | None = None, name: str = "") -> Env:
    """The simulator as an environment; each reset draws one of the interactions.

    Actions are slots, positions in `Observation.action_ids`. An item's slot recommends
    it first, then the best others by preference. A `Choice` gives the list itself. A
    slot that the mask forbids wastes the turn and costs a rejection. `Step.info` has
    `hit` (bool), `rank` (1-based, of v* in the list; 0 where it is not) and `asked`
    (bool: the action was a question).

    Args:
      catalogue: what conversations are about.
      options: the rules.
      name: of the environment.

    Raises:
      ValueError: the catalogue has too few items for a recommendation, or no
        interactions to draw from.
    """
    options = fitted(catalogue, options or Options())
    if catalogue.interactions.shape[0] == 0:
        raise ValueError("the catalogue has no interactions to draw conversations from")

    def reset(key: Key) -> tuple[State, Observation]:
        pair_key, key = jax.random.split(key)
        count = catalogue.interactions.shape[0]
        pair = catalogue.interactions[jax.random.randint(pair_key, (), 0, count)]
        return start(catalogue, options, pair[0], pair[1], key)

    def advance(state: State, action: PyTree, key: Key) -> tuple[State, Step]:
        del key  # users answer truthfully
        return step(catalogue, options, state, action)

    spec = ConversationSpec(
        name=name or "conversation",
        observation=Box((dialogue_bytes(catalogue, options),), 0, 255, "uint8"),
        action=Discrete(options.pruning.num_items + options.pruning.num_questions),
        time_limit=options.max_turns,
        catalogue=catalogue,
        pruning=options.pruning,
    )
    return Env(reset, advance, spec)


def fitted(catalogue: Catalogue, options: Options) -> Options:
    """The options with `pruning.fitted(catalogue)`."""
    return dataclasses.replace(options, pruning=options.pruning.fitted(catalogue))


def order_sizes(catalogue: Catalogue, options: Options) -> tuple[int, int]:
    """L and X: how many attributes can be accepted and rejected in a conversation."""
    asked = options.max_turns * catalogue.children.shape[1]
    limit = catalogue.num_attributes
    return min(1 + asked, limit), min(asked, limit)


def dialogue_bytes(catalogue: Catalogue, options: Options) -> int:
    """Bytes of one `Dialogue`: what a replay buffer keeps of an observation."""
    return 4 * (2 + sum(order_sizes(catalogue, options))) + math.ceil(
        catalogue.num_items / 8
    )


def start(
    catalogue: Catalogue, options: Options, user: Array, target: Array, key: Key
) -> tuple[State, Observation]:
    """Begins a conversation: the user names an attribute of the target, at random.

    Args:
      catalogue: what the conversation is about.
      options: fitted to the catalogue.
      user: `int32[]`.
      target: `int32[]` v*.
      key: for the attribute.
    """
    unit = jax.random.uniform(key)
    first = links_lib.draw_attribute(catalogue.links, target, unit)
    accepted, rejected = (
        jnp.full((size,), -1, jnp.int32) for size in order_sizes(catalogue, options)
    )
    pruning = options.pruning
    slots = pruning.num_items + pruning.num_questions
    state = State(
        user=jnp.asarray(user, jnp.int32),
        target=jnp.asarray(target, jnp.int32),
        accepted_order=accepted.at[0].set(first),
        rejected_order=rejected,
        candidate=links_lib.carriers(catalogue.links, first),
        turn=jnp.zeros((), jnp.int32),
        action_ids=jnp.zeros((slots,), jnp.int32),
        action_mask=jnp.zeros((slots,), bool),
        best_items=jnp.zeros((pruning.list_size,), jnp.int32),
    )
    return _observed(catalogue, options, state)


def step(
    catalogue: Catalogue, options: Options, state: State, action: PyTree
) -> tuple[State, Step]:
    """One turn of the agent and the user's answer; `make` says what actions are.

    Args:
      catalogue: what the conversation is about.
      options: fitted to the catalogue.
      state: not at its end.
      action: `int32[]` slot, or a `Choice`.
    """
    slot, items = _read(options, state, action)
    identity, allowed = state.action_ids[slot], state.action_mask[slot]
    allowed &= state.turn < options.num_actions  # "published" has one step more
    recommends = allowed & (slot < options.pruning.num_items)
    asks = allowed & ~recommends

    number = jnp.maximum(identity - catalogue.num_items, 0)
    asked, accepted = _ask(catalogue, options, state, jnp.where(asks, number, -1))
    said, rank = _recommend(state, jnp.where(recommends, items, -1))
    hit = rank > 0
    turn = state.turn + 1
    over = turn >= options.max_turns
    if options.turns == "published":
        acted = state.turn < options.num_actions
        reward = jnp.where(acted, _reward(options, accepted, recommends, hit), 0.0)
    else:
        reward = _reward(options, accepted, recommends, hit)
    reward = jnp.where(over & ~hit, reward + options.reward_quit, reward)
    # The barrier keeps XLA from working C out again for each of its readers.
    candidate = jax.lax.optimization_barrier(asked.candidate & said)
    state = asked.replace(candidate=candidate, turn=turn)
    state, observation = _observed(catalogue, options, state)
    return state, Step(
        observation=observation,
        reward=reward.astype(jnp.float32),
        terminated=hit | over,
        truncated=jnp.zeros((), bool),
        info={"hit": hit, "rank": rank, "asked": asks},
    )


def _reward(options, accepted, recommends, hit):
    asked = jnp.where(accepted, options.reward_accept, options.reward_reject)
    told = jnp.where(hit, options.reward_hit, options.reward_miss)
    return jnp.where(recommends, told, asked)


def _read(options: Options, state: State, action: PyTree) -> tuple[Array, Array]:
    """The slot and the items that it recommends."""
    if isinstance(action, Choice):
        return action.slot, action.items
    own = state.action_ids[action][None]
    others = state.best_items
    # The slot's own item first, then the others in their order.
    others = others[jnp.argsort(others == own, stable=True)]
    return action, jnp.concatenate([own, others])[: options.pruning.list_size]


def _ask(
    catalogue: Catalogue, options: Options, state: State, number: Array
) -> tuple[State, Array]:
    """The state after question `number` (−1: none), and whether it was accepted."""
    asked = jnp.where(number >= 0, catalogue.children[number], -1)
    known = jnp.concatenate([state.accepted_order, state.rejected_order])
    fresh = (asked >= 0) & ~jnp.any(asked[:, None] == known[None], axis=1)
    yes = fresh & links_lib.has(catalogue.links, state.target, asked)
    no = fresh & ~yes

    def narrow(index: Array | int, candidate: Array) -> Array:
        with_it = links_lib.carriers(catalogue.links, jnp.maximum(asked[index], 0))
        candidate &= with_it | ~yes[index]
        if options.filter_rejected:
            candidate &= ~(with_it & no[index])
        return candidate

    width = asked.shape[0]
    candidate = state.candidate
    if width == 1:
        candidate = narrow(0, candidate)
    else:
        candidate = jax.lax.fori_loop(0, width, narrow, candidate)
    state = state.replace(
        accepted_order=_append(state.accepted_order, asked, yes),
        rejected_order=_append(state.rejected_order, asked, no),
        candidate=candidate,
    )
    return state, jnp.any(yes)


def _append(order: Array, ids: Array, chosen: Array) -> Array:
    place = jnp.sum(order >= 0) + jnp.cumsum(chosen) - 1
    return order.at[jnp.where(chosen, place, order.shape[0])].set(ids, mode="drop")


def _recommend(state: State, items: Array) -> tuple[Array, Array]:
    """Which items stay candidates, and the rank of the target (0: not in the list)."""
    count = state.candidate.shape[0]
    inside = (items >= 0) & (items < count)
    inside &= state.candidate[jnp.clip(items, 0, count - 1)]
    places = jnp.arange(items.shape[0])
    earlier = (items[:, None] == items[None]) & (places[:, None] > places[None])
    inside &= ~jnp.any(earlier, axis=1)
    found = inside & (items == state.target)
    # Ranks count what the user is shown: items that stand in the list for nothing do
    # not push the others down.
    rank = jnp.sum(jnp.where(found, jnp.cumsum(inside), 0), dtype=jnp.int32)
    told = jnp.zeros((count,), bool).at[jnp.where(inside, items, count)]
    # The target itself stays a candidate: it was found.
    return ~told.set(True, mode="drop") | (rank > 0), rank


def _observed(
    catalogue: Catalogue, options: Options, state: State
) -> tuple[State, Observation]:
    dialogue = Dialogue(
        user=state.user,
        accepted_order=state.accepted_order,
        rejected_order=state.rejected_order,
        candidate_bits=jnp.zeros((0,), jnp.uint8),  # unread
        turn=state.turn,
    )
    seen = conversation.derive(catalogue, dialogue, state.candidate, options.pruning)
    best = slice(options.pruning.list_size)
    state = state.replace(
        action_ids=seen.action_ids,
        action_mask=seen.action_mask,
        best_items=jnp.where(seen.item_mask[best], seen.item_ids[best], -1),
    )
    return state, seen
