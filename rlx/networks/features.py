"""Families that are linear in their parameters: values, and Gaussian policies."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from rlx.types import Array, Key, Network, Params


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


def linear_gaussian(
    size: int, num_actions: int, initial_variance: float = 1.0
) -> Network:
    """N(Wᵀo + b, e^φ): `apply(params, observation [..., size]) -> (mean, log_scale)`.

    Both `[..., num_actions]`. The mean starts at 0; φ, the logarithm of the variance,
    is one number per action.
    """

    def init(key: Key) -> Params:
        del key
        return {
            "weights": jnp.zeros((size, num_actions)),
            "offset": jnp.zeros((num_actions,)),
            "log_variance": jnp.zeros((num_actions,)) + jnp.log(initial_variance),
        }

    def apply(params: Params, observation: Array) -> tuple[Array, Array]:
        mean = observation @ params["weights"]
        offset = jnp.broadcast_to(params["offset"], mean.shape)
        log_scale = jnp.broadcast_to(params["log_variance"] / 2, mean.shape)
        return mean + offset, log_scale

    return Network(init, apply)
