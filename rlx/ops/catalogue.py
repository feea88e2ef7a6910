"""A catalogue of users, items and attributes as arrays, and sums over its edges.

Which item has which attribute is held in one of two ways, with the same results:
`Dense`, a matrix, for up to hundreds of attributes, or `Edges`, lists, for thousands.
The functions here take either. They are made for one conversation; `vmap` for more.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from rlx.types import Array


@struct.dataclass
class Dense:
    """Attributes of items as a matrix."""

    has: Array
    """bool `[NI, NA]` p ∈ P_v."""
    affinity: Array
    """`[NI, NA]` what rejecting p costs item v: e_p·e_v where p ∈ P_v, else 0."""


@struct.dataclass
class Edges:
    """Attributes of items as lists: one entry per pair (v, p ∈ P_v), sorted twice.

    The lists end in padding, so that a slice of fixed width may begin at any edge.
    """

    attributes: Array
    """`int32[E + wide]` attributes, sorted by item; −1 pads."""
    item_start: Array
    """`int32[NI + 1]` where each item's attributes begin."""
    items: Array
    """`int32[E + deep]` items, sorted by attribute; NI pads."""
    attribute_start: Array
    """`int32[NA + 1]` where each attribute's items begin."""
    attribute: Array
    """`int32[E]` the attribute of each entry of `items`."""
    affinity: Array
    """`[E + deep]` e_p·e_v in the order of `items`; 0 pads."""
    wide: int = struct.field(pytree_node=False)
    """Most attributes of an item."""
    deep: int = struct.field(pytree_node=False)
    """Most items of an attribute."""


@struct.dataclass
class Catalogue:
    """What a conversation is about, and what is known of it beforehand.

    `envs.conversation.catalogue` makes and checks one.
    """

    user_embedding: Array
    """`float32[NU, D]` e_u."""
    item_embedding: Array
    """`float32[NI, D]` e_v."""
    attribute_embedding: Array
    """`float32[NA, D]` e_p."""
    links: Dense | Edges
    """Which item has which attribute."""
    children: Array
    """`int32[NQ, W]` the attributes that a question asks for, −1 pads. Binary
    questions: NQ = NA, W = 1, and question p asks for attribute p. Enumerated
    questions: a parent each ("which of these?")."""
    interactions: Array
    """`int32[M, 2]` (user, item) pairs that conversations are drawn from."""

    @property
    def num_users(self) -> int:
        """NU."""
        return self.user_embedding.shape[0]

    @property
    def num_items(self) -> int:
        """NI."""
        return self.item_embedding.shape[0]

    @property
    def num_attributes(self) -> int:
        """NA."""
        return self.attribute_embedding.shape[0]

    @property
    def num_questions(self) -> int:
        """NQ."""
        return self.children.shape[0]


def has(links: Dense | Edges, item: Array, attributes: Array) -> Array:
    """Which of some attributes an item has.

    Args:
      links: of the catalogue.
      item: `int32[]`.
      attributes: `int32[W]`; negative ones are had by no item.

    Returns:
      bool `[W]`.
    """
    if isinstance(links, Dense):
        return links.has[item, attributes] & (attributes >= 0)
    row = _attributes_of(links, item)
    return jnp.any(row[None, :] == attributes[:, None], axis=1) & (attributes >= 0)


def carriers(links: Dense | Edges, attribute: Array) -> Array:
    """Which items have an attribute.

    Args:
      links: of the catalogue.
      attribute: `int32[]`, not negative.

    Returns:
      bool `[NI]`.
    """
    if isinstance(links, Dense):
        return links.has[:, attribute]
    num_items = links.item_start.shape[0] - 1
    items, valid = _items_of(links, attribute)
    empty = jnp.zeros((num_items,), bool)
    return empty.at[jnp.where(valid, items, num_items)].set(True, mode="drop")


def draw_attribute(links: Dense | Edges, item: Array, unit: Array) -> Array:
    """An attribute of an item, uniformly: the ⌊unit·|P_v|⌋th.

    Args:
      links: of the catalogue; the item must have an attribute.
      item: `int32[]`.
      unit: `float32[]` uniform in [0, 1).

    Returns:
      `int32[]`.
    """
    if isinstance(links, Dense):
        row = links.has[item]
        place = _place(unit, jnp.sum(row))
        return jnp.argmax(jnp.cumsum(row) > place).astype(jnp.int32)
    start = links.item_start[item]
    return links.attributes[start + _place(unit, links.item_start[item + 1] - start)]


def _place(unit: Array, count: Array) -> Array:
    # unit·count may round up to count itself.
    return jnp.minimum((unit * count).astype(jnp.int32), count - 1)


def attribute_totals(links: Dense | Edges, weight: Array) -> Array:
    """Σ_{v: p∈P_v} weight_v of every attribute p.

    Args:
      links: of the catalogue.
      weight: `float32[..., NI]`.

    Returns:
      `float32[..., NA]`; whole numbers are summed exactly.
    """
    if isinstance(links, Dense):
        return weight @ links.has.astype(weight.dtype)
    num_edges, num_attributes = (
        links.attribute.shape[0],
        links.attribute_start.shape[0] - 1,
    )
    values = jnp.moveaxis(weight[..., links.items[:num_edges]], -1, 0)
    sums = jax.ops.segment_sum(
        values, links.attribute, num_attributes, indices_are_sorted=True
    )
    return jnp.moveaxis(sums, 0, -1)


def item_penalty(links: Dense | Edges, rejected: Array) -> Array:
    """Σ_{p∈R∩P_v} affinity_{vp} of every item v.

    Args:
      links: of the catalogue.
      rejected: `int32[X]` the attributes R, −1 pads.

    Returns:
      `float32[NI]`.
    """
    if isinstance(links, Dense):
        num_items, num_attributes = links.has.shape
        return links.affinity @ members(rejected, num_attributes).astype(jnp.float32)
    num_items = links.item_start.shape[0] - 1

    def add(total: Array, attribute: Array) -> tuple[Array, None]:
        items, valid = _items_of(links, jnp.maximum(attribute, 0))
        start = links.attribute_start[jnp.maximum(attribute, 0)]
        cost = jax.lax.dynamic_slice(links.affinity, (start,), (links.deep,))
        target = jnp.where(valid & (attribute >= 0), items, num_items)
        return total.at[target].add(cost, mode="drop"), None

    return jax.lax.scan(add, jnp.zeros((num_items,), jnp.float32), rejected)[0]


def members(ids: Array, count: int) -> Array:
    """The set of some ids as bool `[count]`; negative ids are padding."""
    empty = jnp.zeros((count,), bool)
    return empty.at[jnp.where(ids < 0, count, ids)].set(True, mode="drop")


def question_embedding(catalogue: Catalogue) -> Array:
    """`float32[NQ, D]`: the mean over the attributes that each question asks for."""
    valid = (catalogue.children >= 0)[..., None]
    vectors = catalogue.attribute_embedding[jnp.maximum(catalogue.children, 0)]
    return jnp.sum(jnp.where(valid, vectors, 0.0), axis=1) / jnp.sum(valid, axis=1)


def _attributes_of(links: Edges, item: Array) -> Array:
    start, end = links.item_start[item], links.item_start[item + 1]
    row = jax.lax.dynamic_slice(links.attributes, (start,), (links.wide,))
    return jnp.where(jnp.arange(links.wide) < end - start, row, -1)


def _items_of(links: Edges, attribute: Array) -> tuple[Array, Array]:
    start, end = links.attribute_start[attribute], links.attribute_start[attribute + 1]
    column = jax.lax.dynamic_slice(links.items, (start,), (links.deep,))
    return column, jnp.arange(links.deep) < end - start
