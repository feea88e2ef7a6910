"""A catalogue as arrays of fixed shape: who has what, in bits, and the embeddings."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.conversation.catalogue import Catalogue
from rlx.methods.unicorn import Knowledge
from rlx.types import Array

DENSE = 512
"""With at most so many attributes, sums over items are one product of matrices."""


class Vectors(NamedTuple):
    """Embeddings of one size."""

    users: Array | np.ndarray
    """`[U, D]`"""
    items: Array | np.ndarray
    """`[I, D]`"""
    attributes: Array | np.ndarray
    """`[P, D]`"""


@struct.dataclass
class World:
    """What conversations happen in; the same for all of them."""

    users: Array
    """`[U, D]`"""
    items: Array
    """`[I, D]`"""
    attributes: Array
    """`[P, D]`"""
    bits: Array
    """`uint8[P, ⌈I/8⌉]` which items have an attribute, eight to a byte."""
    edges: Array
    """`int32[2, E]` items and attributes, in the order of attributes."""
    dense: Array | None
    """`[I, P]` zeros and ones, where there are few attributes."""

    @property
    def num_items(self) -> int:
        """I."""
        return self.items.shape[0]

    @property
    def num_attributes(self) -> int:
        """P."""
        return self.attributes.shape[0]


def make(catalogue: Catalogue, vectors: Vectors, dense: bool | None = None) -> World:
    """The world of a catalogue.

    Args:
      catalogue: only its items' attributes are used, no interaction.
      vectors: embeddings.
      dense: sum over items by a product of matrices, not over edges; by default where
        there are at most `DENSE` attributes. Results agree but for rounding.

    Raises:
      ValueError: a vector is missing, not finite, or sizes differ.
    """
    numbers = (catalogue.num_users, catalogue.num_items, catalogue.num_attributes)
    arrays = [np.asarray(x, np.float32) for x in vectors]
    expected = [(number, arrays[0].shape[-1]) for number in numbers]
    if [x.shape for x in arrays] != expected:
        raise ValueError(
            f"vectors have shapes {[x.shape for x in arrays]}, the catalogue needs "
            f"{expected}"
        )
    if not all(np.isfinite(x).all() for x in arrays):
        raise ValueError("vectors are not finite: embed again")
    edges = catalogue.item_attribute
    edges = edges[np.lexsort((edges[:, 0], edges[:, 1]))]
    belongs = np.zeros((catalogue.num_attributes, catalogue.num_items), bool)
    belongs[edges[:, 1], edges[:, 0]] = True
    if dense is None:
        dense = catalogue.num_attributes <= DENSE
    return World(
        *map(jnp.asarray, arrays),
        bits=jnp.asarray(np.packbits(belongs, axis=1, bitorder="little")),
        edges=jnp.asarray(edges.T),
        dense=jnp.asarray(belongs.T, jnp.float32) if dense else None,
    )


def items_with(world: World, attribute: Array) -> Array:
    """`int32[] -> bool[I]` the items that have an attribute."""
    shifts = jnp.arange(8, dtype=jnp.uint8)
    bits = (world.bits[attribute][:, None] >> shifts[None, :]) & 1
    return bits.reshape(-1)[: world.num_items].astype(bool)


def has(world: World, items: Array, attributes: Array) -> Array:
    """`(int32[..., M], int32[..., N]) -> bool[..., M, N]` who has what."""
    items, attributes = items[..., :, None], attributes[..., None, :]
    found = world.bits[attributes, items >> 3] >> (items & 7).astype(jnp.uint8)
    return (found & 1).astype(bool)


def totals(world: World, weights: Array) -> Array:
    """`[I] -> [P]` sum of the weights of the items that have an attribute."""
    if world.dense is not None:
        return weights @ world.dense
    items, attributes = world.edges
    return jax.ops.segment_sum(
        weights[items], attributes, world.num_attributes, indices_are_sorted=True
    )


def knowledge(world: World) -> Knowledge:
    """What the method UNICORN needs of a world."""
    return Knowledge(
        world.users, world.items, world.attributes, lambda i, a: has(world, i, a)
    )
