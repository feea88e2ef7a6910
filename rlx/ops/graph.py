"""Weighted graphs as dense arrays: symmetric normalisation, and its bipartite form."""

from __future__ import annotations

import chex
import jax.numpy as jnp

from rlx.types import Array


def normalised_adjacency(adjacency: Array, where: Array | None = None) -> Array:
    """Λ = D^{−½} A D^{−½}, in which nodes without an edge have a row of zeros.

    Kipf & Welling 2017, https://arxiv.org/abs/1609.02907, equation 2, without the loops
    that are added there.

    Args:
      adjacency: `[..., G, G]` A >= 0, symmetric.
      where: `bool[..., G]` nodes that are there; all unless given. Edges of others are
        cut before degrees are counted.

    Returns:
      `[..., G, G]`.

    Raises:
      AssertionError: A is not square, or `where` does not fit it.
    """
    chex.assert_axis_dimension(adjacency, -2, adjacency.shape[-1])
    if where is not None:
        chex.assert_shape(where, adjacency.shape[:-1])
        there = where[..., :, None] & where[..., None, :]
        adjacency = jnp.where(there, adjacency, 0.0)
    scale = _inverse_root(jnp.sum(adjacency, axis=-1))
    return scale[..., :, None] * adjacency * scale[..., None, :]


def normalised_bipartite(weights: Array) -> Array:
    """The only block of Λ that is not zero, for a graph of two sides.

    For A = [[0, W], [Wᵀ, 0]], Λ is [[0, B], [Bᵀ, 0]] with the B that this returns. An
    absent node is a row or column of zeros in W, and so it is in B.

    Args:
      weights: `[..., M, N]` W >= 0, of the edges between the M nodes of the one side
        and the N of the other.

    Returns:
      `[..., M, N]`.

    Raises:
      AssertionError: W has fewer than two axes.
    """
    chex.assert_rank(weights, set(range(2, 9)))
    rows = _inverse_root(jnp.sum(weights, axis=-1))
    columns = _inverse_root(jnp.sum(weights, axis=-2))
    return rows[..., :, None] * weights * columns[..., None, :]


def _inverse_root(degree: Array) -> Array:
    # The inner `where` keeps the gradient of what is not chosen finite.
    some = degree > 0
    return jnp.where(some, 1 / jnp.sqrt(jnp.where(some, degree, 1.0)), 0.0)
