"""Entropy of states by their distances to near neighbours.

Singh et al. 2003, https://doi.org/10.1080/01966324.2003.10737616; as a reward: Lee et
al. 2021 (PEBBLE), https://arxiv.org/abs/2106.05091, equation 3.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array


def neighbour_distance(points: Array, others: Array, k: int) -> Array:
    """Euclidean distance from each point to the k-th nearest of the others.

    The entropy of the others' distribution is the mean of its logarithm up to a
    constant, if a point is not one of its own neighbours: where the points are among
    the others, ask for k + 1.

    Args:
      points: `[N, D]`.
      others: `[M, D]`.
      k: 1 is the nearest.

    Returns:
      `[N]` distances, never negative.

    Raises:
      ValueError: there are fewer than k others.
      AssertionError: the points are no vectors of one length.
    """
    chex.assert_rank([points, others], 2)
    chex.assert_equal_shape_suffix([points, others], 1)
    if not 1 <= k <= others.shape[0]:
        raise ValueError(
            f"the {k}-th of {others.shape[0]} neighbours does not exist: choose fewer "
            "neighbours or larger batches"
        )
    squared = (
        jnp.sum(points**2, 1)[:, None]
        + jnp.sum(others**2, 1)[None, :]
        - 2.0 * points @ others.T
    )
    nearest = -jax.lax.top_k(-squared, k)[0]
    # The expansion of |x − y|² rounds below zero where x = y.
    return jnp.sqrt(jnp.maximum(nearest[:, -1], 0.0))
