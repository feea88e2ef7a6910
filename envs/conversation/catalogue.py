"""Catalogues, checked: from edge lists, or invented."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rlx.ops.catalogue import Catalogue, Dense, Edges

DENSE_LIMIT = 512
"""Attributes up to which a matrix is faster than lists."""


def catalogue(
    item_attribute: np.ndarray,
    *,
    users: np.ndarray,
    items: np.ndarray,
    attributes: np.ndarray,
    interactions: np.ndarray,
    parents: np.ndarray | None = None,
    dense: bool | None = None,
) -> Catalogue:
    """A catalogue from edges and embeddings, on the device.

    Args:
      item_attribute: `int[E, 2]` pairs (item, attribute); every item needs one.
      users: `[NU, D]` embeddings, as are items and attributes.
      items: `[NI, D]`.
      attributes: `[NA, D]`.
      interactions: `int[M, 2]` pairs (user, item) that conversations are drawn from.
      parents: `int[NA]` makes questions enumerated: question q asks which of the
        attributes with parent q the user wants. Without it each asks for one.
      dense: hold item_attribute as a matrix, or as lists; by `DENSE_LIMIT` unless said.

    Raises:
      ValueError: an id is out of range, an item has no attribute, an embedding is not
        finite, sizes do not agree, or a parent has no attribute.
    """
    users, items, attributes = (
        check_embedding(name, vectors)
        for name, vectors in (
            ("users", users),
            ("items", items),
            ("attributes", attributes),
        )
    )
    widths = {users.shape[1], items.shape[1], attributes.shape[1]}
    if len(widths) > 1:
        raise ValueError(
            f"embeddings have different widths: users {users.shape[1]}, items "
            f"{items.shape[1]}, attributes {attributes.shape[1]}"
        )
    edges = check_edges("item_attribute", item_attribute, (len(items), len(attributes)))
    edges = np.unique(edges, axis=0)
    require_attributes(edges, len(items))
    interactions = check_edges("interactions", interactions, (len(users), len(items)))
    if dense is None:
        dense = len(attributes) <= DENSE_LIMIT
    affinity = np.sum(items[edges[:, 0]] * attributes[edges[:, 1]], axis=1)
    make_links = _dense if dense else _edges
    return Catalogue(
        user_embedding=jnp.asarray(users),
        item_embedding=jnp.asarray(items),
        attribute_embedding=jnp.asarray(attributes),
        links=make_links(edges, affinity, (len(items), len(attributes))),
        children=jnp.asarray(_children(parents, len(attributes))),
        interactions=jnp.asarray(interactions),
    )


def check_embedding(name: str, vectors: np.ndarray) -> np.ndarray:
    """`vectors` as `float32[count, D]`.

    Raises:
      ValueError: not a matrix of finite numbers with a row.
    """
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or not vectors.size:
        raise ValueError(
            f"{name}: embeddings must be a matrix [count, width], got shape "
            f"{vectors.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(f"{name}: the embedding of {bad[0]} is not finite")
    return vectors


def check_edges(name: str, edges: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    """`edges` as `int32[E, 2]` with ids below `sizes`.

    Raises:
      ValueError: not whole numbers in two columns, or an id is out of range.
    """
    edges = np.asarray(edges)
    if edges.ndim != 2 or edges.shape[1] != 2:
        raise ValueError(f"{name} must be pairs [count, 2], got shape {edges.shape}")
    if not np.issubdtype(edges.dtype, np.integer):
        raise ValueError(f"{name} must hold whole numbers, got {edges.dtype}")
    for column, size in enumerate(sizes):
        wrong = np.flatnonzero((edges[:, column] < 0) | (edges[:, column] >= size))
        if len(wrong):
            raise ValueError(
                f"{name}[{wrong[0]}, {column}] is {edges[wrong[0], column]}, but ids "
                f"there go from 0 to {size - 1}"
            )
    return edges.astype(np.int32)


def require_attributes(edges: np.ndarray, num_items: int) -> None:
    """Checks that every item has an attribute.

    Raises:
      ValueError: an item has none: no conversation could begin with it.
    """
    without = np.flatnonzero(np.bincount(edges[:, 0], minlength=num_items) == 0)
    if len(without):
        raise ValueError(
            f"{len(without)} items have no attribute, item {without[0]} first: a "
            "conversation opens with an attribute of the item; leave them out"
        )


def _dense(edges: np.ndarray, affinity: np.ndarray, shape: tuple[int, int]) -> Dense:
    has, cost = np.zeros(shape, bool), np.zeros(shape, np.float32)
    has[edges[:, 0], edges[:, 1]] = True
    cost[edges[:, 0], edges[:, 1]] = affinity
    return Dense(has=jnp.asarray(has), affinity=jnp.asarray(cost))


def _edges(edges: np.ndarray, affinity: np.ndarray, shape: tuple[int, int]) -> Edges:
    # `np.unique` sorted the edges by item, then attribute.
    per_item = np.bincount(edges[:, 0], minlength=shape[0])
    per_attribute = np.bincount(edges[:, 1], minlength=shape[1])
    wide, deep = int(per_item.max()), int(per_attribute.max())
    order = np.argsort(edges[:, 1], kind="stable")
    return Edges(
        attributes=_padded(edges[:, 1], wide, -1),
        item_start=_starts(per_item),
        items=_padded(edges[order, 0], deep, shape[0]),
        attribute_start=_starts(per_attribute),
        attribute=jnp.asarray(edges[order, 1]),
        affinity=_padded(affinity[order], deep, 0),
        wide=wide,
        deep=deep,
    )


def _padded(values: np.ndarray, count: int, fill: int):
    return jnp.asarray(np.concatenate([values, np.full(count, fill, values.dtype)]))


def _starts(counts: np.ndarray):
    return jnp.asarray(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))


def _children(parents: np.ndarray | None, num_attributes: int) -> np.ndarray:
    if parents is None:
        return np.arange(num_attributes, dtype=np.int32)[:, None]
    parents = np.asarray(parents)
    if parents.shape != (num_attributes,) or not np.issubdtype(
        parents.dtype, np.integer
    ):
        raise ValueError(
            f"parents must be one whole number for each of {num_attributes} "
            f"attributes, got {parents.dtype}{list(parents.shape)}"
        )
    counts = np.bincount(parents) if parents.min() >= 0 else np.zeros(1, int)
    if not counts.all():
        raise ValueError("parents must be numbered 0, 1, 2 ... without a gap")
    children = np.full((len(counts), counts.max()), -1, np.int32)
    for parent in range(len(counts)):
        members = np.flatnonzero(parents == parent)
        children[parent, : len(members)] = members
    return children
