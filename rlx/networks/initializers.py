"""Initial weights."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.types import Array, Key


def orthogonal(scale: float) -> Callable[..., Array]:
    """Orthogonal weights with the given gain; safe to `vmap` on any device.

    On several CPU devices at once, jaxlib's *batched* QR factorisation (0.10) waits for
    threads that wait for it: a `vmap` of the usual initialiser can hang. Here a `vmap`
    draws one matrix after another; the numbers are those of
    `flax.linen.initializers.orthogonal`.
    """
    exact = nn.initializers.orthogonal(scale)

    def init(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        draw = jax.custom_batching.sequential_vmap(lambda key: exact(key, shape, dtype))
        return draw(key)

    return init
