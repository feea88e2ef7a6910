"""Value families that are linear in their parameters."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from rlx.types import Array, Network


def linear_family(
    features: Callable[[Array], Array],
    size: int,
    offset: Callable[[Array], Array] | None = None,
) -> Network:
    """J(o) = f(o) + φ(o)·θ as a `Network`; θ starts at 0.

    Args:
      features: φ `[..., O] -> [..., P]`.
      size: P.
      offset: f `[..., O] -> [...]`; 0 when not given.
    """

    def apply(params: Array, observation: Array) -> Array:
        value = features(observation) @ params
        return value if offset is None else value + offset(observation)

    return Network(lambda key: jnp.zeros((size,)), apply)


def quadratic_family(size: int) -> Network:
    """All monomials of degree up to 2 of an observation `[..., size]`."""
    rows, columns = jnp.triu_indices(size)

    def features(observation: Array) -> Array:
        ones = jnp.ones_like(observation[..., :1])
        squares = observation[..., rows] * observation[..., columns]
        return jnp.concatenate([ones, observation, squares], -1)

    return linear_family(features, 1 + size + len(rows))
