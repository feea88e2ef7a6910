"""Embeddings of a catalogue, learned from its training interactions alone.

`facts` takes of a file what may be learned from; nothing here sees the other splits.
`als` knows who took what, `transe` the whole graph; `cold_aware` lends items that
nobody took the vectors of their attributes.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from envs.conversation.files import EdgeLists
from rlx.types import Array, Key

RELATIONS = ("interact", "friend", "like", "belong_to")


class Facts(NamedTuple):
    """What embeddings may be learned from; edges are `int[E, 2]`."""

    num_users: int
    num_items: int
    num_attributes: int
    interact: np.ndarray
    """(user, item), of the training split."""
    friend: np.ndarray
    """(user, user)"""
    like: np.ndarray
    """(user, attribute)"""
    belong_to: np.ndarray
    """(item, attribute)"""


class Vectors(NamedTuple):
    """Embeddings, as `envs.conversation.catalogue` takes them."""

    users: np.ndarray
    """`float32[NU, D]`"""
    items: np.ndarray
    """`float32[NI, D]`"""
    attributes: np.ndarray
    """`float32[NA, D]`"""


@dataclasses.dataclass(frozen=True)
class TransEConfig:
    """Settings of `transe`."""

    size: int = 64
    """D."""
    margin: float = 1.0
    learning_rate: float = 1e-3
    """Adam's."""
    batch_size: int = 4096
    """Triples; no more than there are."""
    epochs: int = 100

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
          ValueError: one is not positive.
        """
        for field in dataclasses.fields(self):
            if not (number := getattr(self, field.name)) > 0:
                raise ValueError(f"{field.name} must be positive, got {number}")


class TransE(NamedTuple):
    """What `transe` learned."""

    vectors: Vectors
    relations: np.ndarray
    """`float32[4, D]` in the order of `RELATIONS`."""
    losses: np.ndarray
    """`float32[epochs]` mean loss of each pass."""


def facts(lists: EdgeLists, likes: bool = True) -> Facts:
    """What may be learned of a file: no validation and no test interaction.

    Args:
      lists: a file.
      likes: take `user_attribute`. Files do not say what that list was made from; a
        cautious study leaves it out.
    """
    none = np.zeros((0, 2), np.int32)
    return Facts(
        num_users=lists.num_users,
        num_items=lists.num_items,
        num_attributes=lists.num_attributes,
        interact=lists.interactions["train"],
        friend=lists.user_friend,
        like=lists.user_attribute if likes else none,
        belong_to=lists.item_attribute,
    )


def als(  # noqa: PLR0913 (settings, by name)
    known: Facts,
    *,
    size: int = 32,
    sweeps: int = 6,
    confidence: float = 20.0,
    penalty: float = 10.0,
    shrinkage: float = 20.0,
    seed: int = 0,
) -> Vectors:
    """Implicit alternating least squares, on the host.

    Hu, Koren and Volinsky 2008, https://doi.org/10.1109/ICDM.2008.22, equations 4 and
    5, with confidence 1 + α of what was taken and 1 of all else. Users and items
    without interactions have zeros. An attribute is the mean of its n items, times
    n / (n + shrinkage).

    Args:
      known: only who took what, and whose attributes are whose, are read.
      size: D.
      sweeps: times that users and items are solved for.
      confidence: α.
      penalty: λ of the squared norms.
      shrinkage: how much rare attributes are pulled to zero.
      seed: of the start.

    Raises:
      ValueError: there are no interactions.
    """
    _require(known)
    generator = np.random.default_rng(seed)
    items = 0.1 * generator.normal(size=(known.num_items, size))
    taken = _lists(known.interact, known.num_users)
    takers = _lists(known.interact[:, ::-1], known.num_items)
    for _ in range(sweeps):
        users = least_squares(items, taken, confidence, penalty)
        items = least_squares(users, takers, confidence, penalty)
    owner, attribute = known.belong_to[:, 0], known.belong_to[:, 1]
    total = np.zeros((known.num_attributes, size))
    np.add.at(total, attribute, items[owner])
    count = np.bincount(attribute, minlength=known.num_attributes)[:, None]
    return _vectors(users, items, total / (count + shrinkage))


def least_squares(
    other: np.ndarray, rows: list[np.ndarray], confidence: float, penalty: float
) -> np.ndarray:
    """One side, given the other: x = (YᵀY + α Y_SᵀY_S + λI)⁻¹ (1 + α) Σ_{S} y.

    Args:
      other: `[M, D]` Y.
      rows: for each of N, the ids S of what goes with it.
      confidence: α.
      penalty: λ.

    Returns:
      `[N, D]`.
    """
    size = other.shape[1]
    ridge = other.T @ other + penalty * np.eye(size)
    found = np.zeros((len(rows), size))
    for row, ids in enumerate(rows):
        if len(ids):
            mine = other[ids]
            weighed = ridge + confidence * mine.T @ mine
            found[row] = np.linalg.solve(weighed, (1 + confidence) * mine.sum(axis=0))
    return found


def cold_aware(known: Facts, vectors: Vectors, share: float = 0.7) -> Vectors:
    """Items lean on their attributes: e_v + share · mean of e_p over P_v.

    Where many targets were never taken in training, this is all that is known of them.
    """
    owner, attribute = known.belong_to[:, 0], known.belong_to[:, 1]
    total = np.zeros_like(vectors.items)
    np.add.at(total, owner, vectors.attributes[attribute])
    count = np.bincount(owner, minlength=known.num_items)[:, None]
    items = vectors.items + share * total / np.maximum(count, 1)
    return _vectors(vectors.users, items, vectors.attributes)


def transe(known: Facts, key: Key, config: TransEConfig | None = None) -> TransE:
    """Translations h + r ≈ t of users, items and attributes on the unit sphere.

    Bordes et al. 2013, "Translating Embeddings for Modeling Multi-relational Data",
    equation 1 with the L1 distance and Adam. Head or tail is replaced, with equal
    probability, by an entity of its own kind; after every step entities are put back
    on the sphere.

    Args:
      known: all four kinds of edges.
      key: of start, order and replacements.
      config: see its fields.

    Raises:
      ValueError: there are no interactions.
    """
    _require(known)
    config = config or TransEConfig()
    triples, ranges = _triples(known)
    entities, relations, losses = _fit(
        jnp.asarray(triples), jnp.asarray(ranges), known, config, key
    )
    ends = np.cumsum([known.num_users, known.num_items])
    return TransE(
        _vectors(*np.split(np.asarray(entities), ends)),
        np.asarray(relations),
        np.asarray(losses),
    )


def _fit(
    triples: Array, ranges: Array, known: Facts, config: TransEConfig, key: Key
) -> tuple[Array, Array, Array]:
    adam = optax.adam(config.learning_rate)
    batch = min(config.batch_size, len(triples))
    batches = len(triples) // batch
    count = known.num_users + known.num_items + known.num_attributes

    def step(carry, inputs):
        params, moments = carry
        rows, key = inputs
        other = corrupt(rows, ranges, key)
        value, gradient = jax.value_and_grad(_margin)(
            params, rows, other, config.margin
        )
        change, moments = adam.update(gradient, moments, params)
        entities, relations = optax.apply_updates(params, change)
        return ((_unit(entities), relations), moments), value

    def epoch(carry, key):
        order_key, step_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(triples))[: batches * batch]
        rows = triples[order].reshape(batches, batch, 3)
        carry, values = jax.lax.scan(
            step, carry, (rows, jax.random.split(step_key, batches))
        )
        return carry, jnp.mean(values)

    @jax.jit
    def run(key):
        entity_key, relation_key, key = jax.random.split(key, 3)
        start = (
            _unit(jax.random.normal(entity_key, (count, config.size))),
            _unit(jax.random.normal(relation_key, (len(RELATIONS), config.size))),
        )
        keys = jax.random.split(key, config.epochs)
        (params, _), losses = jax.lax.scan(epoch, (start, adam.init(start)), keys)
        return *params, losses

    return run(key)


def corrupt(triples: Array, ranges: Array, key: Key) -> Array:
    """`int[B, 3]` with head or tail replaced by any entity of the same kind.

    Args:
      triples: `int[B, 3]` head, relation, tail.
      ranges: `int[4, 2, 2]` for each relation and side, first id and number of ids.
      key: of side and entity.
    """
    side_key, entity_key = jax.random.split(key)
    side = jax.random.bernoulli(side_key, shape=triples.shape[:1]).astype(int)
    first, number = jnp.moveaxis(ranges[triples[:, 1], side], 1, 0)
    drawn = jax.random.randint(entity_key, side.shape, first, first + number)
    return triples.at[jnp.arange(len(side)), 2 * side].set(drawn)


def _margin(
    params: tuple[Array, Array], triples: Array, other: Array, margin: float
) -> Array:
    return jnp.mean(
        jax.nn.relu(margin + _distance(params, triples) - _distance(params, other))
    )


def _distance(params: tuple[Array, Array], triples: Array) -> Array:
    entities, relations = params
    head, relation, tail = triples.T
    return jnp.sum(
        jnp.abs(entities[head] + relations[relation] - entities[tail]), axis=-1
    )


def _unit(vectors: Array) -> Array:
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(norm, 1e-12)


def _triples(known: Facts) -> tuple[np.ndarray, np.ndarray]:
    """All edges as (head, relation, tail) with ids of entities, and their ranges."""
    users = (0, known.num_users)
    items = (known.num_users, known.num_items)
    attributes = (known.num_users + known.num_items, known.num_attributes)
    sides = {
        "interact": (users, items),
        "friend": (users, users),
        "like": (users, attributes),
        "belong_to": (items, attributes),
    }
    parts = []
    for number, name in enumerate(RELATIONS):
        edges, (head, tail) = getattr(known, name), sides[name]
        between = np.full(len(edges), number)
        parts.append(
            np.stack([edges[:, 0] + head[0], between, edges[:, 1] + tail[0]], axis=1)
        )
    ranges = np.array([sides[name] for name in RELATIONS], np.int32)
    return np.concatenate(parts).astype(np.int32), ranges


def reciprocal_rank(made: TransE, belongs: np.ndarray, held_out: np.ndarray) -> float:
    """Mean reciprocal rank of held-out (item, attribute) edges, among all attributes.

    Ranks leave the attributes out that the item is known to have.

    Args:
      made: by `transe`, from `belongs` and not from `held_out`.
      belongs: `int[E, 2]` known edges.
      held_out: `int[H, 2]` others.
    """
    translation = made.relations[RELATIONS.index("belong_to")]
    known = _lists(belongs, len(made.vectors.items))
    scores = []
    for item, attribute in held_out:
        gap = made.vectors.items[item] + translation - made.vectors.attributes
        distance = np.abs(gap).sum(axis=1)
        better = distance < distance[attribute]
        better[known[item]] = False
        scores.append(1 / (1 + better.sum()))
    return float(np.mean(scores))


def _lists(edges: np.ndarray, count: int) -> list[np.ndarray]:
    """For each of `count` in the first column, the second column's ids."""
    edges = edges[np.argsort(edges[:, 0], kind="stable")]
    ends = np.cumsum(np.bincount(edges[:, 0], minlength=count))[:-1]
    return np.split(edges[:, 1], ends)


def _vectors(*parts: np.ndarray) -> Vectors:
    return Vectors(*(np.asarray(part, np.float32) for part in parts))


def _require(known: Facts) -> None:
    if not len(known.interact):
        raise ValueError("there is no training interaction to learn embeddings from")
