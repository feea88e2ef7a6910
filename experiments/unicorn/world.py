"""Conversations about what is in a catalogue, for the learned methods' experiments.

The simulator of multi-round conversational recommendation (Lei et al. 2020,
https://arxiv.org/abs/2002.09102; Deng et al. 2021, https://arxiv.org/abs/2105.09710):
a user has one item in mind, volunteers one of its attributes, and answers truthfully.
An accepted attribute removes the items without it, a rejected one removes none; a list
of ten that misses removes those ten. The user's opening is turn 1, so that there are 14
actions in 15 turns.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlx.types import Array, Key

TURNS, LIST = 15, 10
ACCEPTED, REJECTED, HIT, LATE = 0.01, -0.1, 1.0, -0.3
"""Rewards: of an answer or a list, and of running out of turns."""


@dataclasses.dataclass(frozen=True)
class World:
    """A catalogue with what was learned of it from training interactions alone."""

    has: Array
    """`bool[I, P]`: which item has which attribute."""
    user_vectors: Array
    item_vectors: Array
    attribute_vectors: Array
    against: Array
    """`[I, P]` what a rejected attribute takes off the score of an item that has it."""
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    @property
    def num_attributes(self) -> int:
        """P."""
        return self.has.shape[1]


@struct.dataclass
class Conversation:
    """All there is; no batch axes."""

    user: Array
    target: Array
    turn: Array
    accepted: Array
    """`int32[TURNS]` attributes in their order; -1 behind the last."""
    asked: Array
    """`bool[P]` accepted or rejected."""
    rejected: Array
    """`bool[P]`"""
    candidate: Array
    """`bool[I]`"""
    history: Array
    """`int32[TURNS]`: 1 accepted, -1 rejected, -2 a list that missed, 0 yet to come."""


@struct.dataclass
class Beliefs:
    """What the rules and the learned methods know in common."""

    scores: Array
    """`[I]` how well every item suits."""
    entropy: Array
    """`[P]` bits of the weighted answer; 0 where nothing can be learned."""
    preference: Array
    """`[P]` how well every attribute suits the user and what was accepted."""
    askable: Array
    """`bool[P]`"""


@struct.dataclass
class Answer:
    """What one action led to."""

    conversation: Conversation
    reward: Array
    hit: Array
    over: Array
    rank: Array
    """`int32[]` place of the target in the list, from 1; no meaning without a hit."""


def lastfm(path: Path, coarse: bool = True, seed: int = 0) -> World:
    """The Last.fm benchmark: LastFM-33 (coarse attributes) or LastFM* (fine ones).

    Args:
      path: an `.npz` of the edge lists `item_attribute`, `attribute_group` and
        `interaction_{train,valid,test}`, all `int[*, 2]`.
      coarse: attributes are the groups of an item's attributes.
      seed: of the vectors' start.
    """
    with np.load(path) as data:
        edges = {name: np.asarray(data[name]) for name in data.files}
    pairs = [edges[f"interaction_{name}"] for name in ("train", "valid", "test")]
    belongs, groups = edges["item_attribute"], edges["attribute_group"]
    num_items = 1 + max(belongs[:, 0].max(), *(p[:, 1].max() for p in pairs))
    has = np.zeros((num_items, 1 + max(belongs[:, 1].max(), groups[:, 0].max())), bool)
    has[tuple(belongs.T)] = True
    if coarse:
        of_group = np.zeros((has.shape[1], 1 + groups[:, 1].max()), np.float32)
        of_group[tuple(groups.T)] = 1.0
        has = has.astype(np.float32) @ of_group > 0
    num_users = 1 + max(p[:, 0].max() for p in pairs)
    vectors = cold_aware(has, *factors(pairs[0], num_users, num_items, seed=seed))
    against = np.where(has, vectors[1] @ vectors[2].T, 0.0).astype(np.float32)
    users, items, attributes, taken = (jnp.asarray(x) for x in (*vectors, against))
    return World(jnp.asarray(has), users, items, attributes, taken, *pairs)


def factors(
    pairs: np.ndarray,
    num_users: int,
    num_items: int,
    *,
    size: int = 32,
    sweeps: int = 6,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of users and items by implicit alternating least squares.

    Hu, Koren and Volinsky 2008, https://doi.org/10.1109/ICDM.2008.22, equations 4, 5.
    """
    confidence, penalty = 20.0, 10.0
    generator = np.random.default_rng(seed)
    seen = np.zeros((num_users, num_items), bool)
    seen[tuple(pairs.T)] = True
    items = 0.1 * generator.normal(size=(num_items, size)).astype(np.float32)

    def solve(other: np.ndarray, seen: np.ndarray) -> np.ndarray:
        ridge = other.T @ other + penalty * np.eye(size, dtype=np.float32)
        found = np.zeros((len(seen), size), np.float32)
        for row, mask in enumerate(seen):
            mine = other[mask]
            if len(mine):
                weighed = ridge + confidence * mine.T @ mine
                found[row] = np.linalg.solve(weighed, (1 + confidence) * mine.sum(0))
        return found

    for _ in range(sweeps):
        users = solve(items, seen)
        items = solve(users, seen.T)
    return users, items


def cold_aware(
    has: np.ndarray, users: np.ndarray, items: np.ndarray, share: float = 0.7
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of attributes, and of items that lean on those of their attributes.

    Four in ten targets were never seen in training; all they have is attributes.
    """
    numbers = has.astype(np.float32)
    count = numbers.sum(axis=0)[:, None]
    attributes = numbers.T @ items / np.maximum(count, 1) * count / (count + 20)
    mine = numbers @ attributes / np.maximum(numbers.sum(axis=1)[:, None], 1)
    return users, items + share * mine, attributes


def begin(world: World, user: Array, target: Array, key: Key) -> Conversation:
    """The user volunteers any attribute of the target."""
    mine = jnp.where(world.has[target], 0.0, -jnp.inf)
    first = jax.random.categorical(key, mine).astype(jnp.int32)
    nothing = jnp.zeros((world.num_attributes,), bool)
    return Conversation(
        user=user,
        target=target,
        turn=jnp.int32(1),
        accepted=jnp.full((TURNS,), -1, jnp.int32).at[0].set(first),
        asked=nothing.at[first].set(True),
        rejected=nothing,
        candidate=world.has[:, first],
        history=jnp.zeros((TURNS,), jnp.int32).at[0].set(1),
    )


def beliefs(world: World, now: Conversation) -> Beliefs:
    """Scores, weighted entropies and preferences (Deng et al. 2021, section 4.2)."""
    has = world.has.astype(jnp.float32)
    attributes = world.attribute_vectors
    liked = (now.asked & ~now.rejected).astype(jnp.float32)
    wanted = world.user_vectors[now.user] + liked @ attributes
    against = world.against @ now.rejected.astype(jnp.float32)
    scores = world.item_vectors @ wanted - against
    weights = jax.nn.sigmoid(jnp.clip(scores, -30, 30))
    weights = jnp.where(now.candidate, weights, 0.0)
    share = (weights @ has) / jnp.maximum(jnp.sum(weights), 1e-9)
    bits = -sum(p * jnp.log2(jnp.clip(p, 1e-9, 1.0)) for p in (share, 1 - share))
    askable = (share > 0) & ~now.asked
    return Beliefs(
        scores=scores,
        entropy=jnp.where(askable & (share < 1 - 1e-6), bits, 0.0),
        preference=attributes @ wanted,
        askable=askable,
    )


def best_list(now: Conversation, scores: Array) -> Array:
    """`int32[LIST]` the candidates with the greatest scores; -1 for none."""
    best, items = jax.lax.top_k(jnp.where(now.candidate, scores, -jnp.inf), LIST)
    return jnp.where(best > -jnp.inf, items, -1).astype(jnp.int32)


def answer(world: World, now: Conversation, attribute: Array, items: Array) -> Answer:
    """The user's answer to a question (`attribute` >= 0), or to a list."""
    asks, place = attribute >= 0, jnp.maximum(attribute, 0)
    yes = asks & world.has[now.target, place]
    no = asks & ~yes
    matches = (items == now.target) & (items >= 0)
    hit = ~asks & jnp.any(matches)
    missed = ~asks & ~hit
    size = now.candidate.shape[0]
    listed = jnp.where(items >= 0, items, size)
    without = now.candidate.at[listed].set(False, mode="drop")
    left = jnp.where(yes, now.candidate & world.has[:, place], now.candidate)
    number = jnp.sum(now.accepted >= 0)
    order = now.accepted.at[number].set(place.astype(jnp.int32), mode="drop")
    turn = now.turn + 1
    late = ~hit & (turn >= TURNS)
    code = jnp.where(yes, 1, jnp.where(no, -1, -2))
    earned = jnp.where(asks, jnp.where(yes, ACCEPTED, REJECTED), REJECTED)
    after = now.replace(
        turn=turn,
        accepted=jnp.where(yes, order, now.accepted),
        asked=now.asked.at[place].set(now.asked[place] | asks),
        rejected=now.rejected.at[place].set(now.rejected[place] | no),
        candidate=jnp.where(missed, without, left),
        history=now.history.at[now.turn].set(code, mode="drop"),
    )
    return Answer(
        conversation=after,
        reward=jnp.where(hit, HIT, earned) + jnp.where(late, LATE, 0.0),
        hit=hit,
        over=hit | late,
        rank=jnp.argmax(matches) + 1,
    )
