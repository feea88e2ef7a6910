"""A transformer that gives a whole text one number: reward models."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.networks import transformer
from rlx.types import Array, Key, Network, Params


def scorer(config: transformer.Config, reference: Params | None = None) -> Network:
    """Reads a row and scores it by a linear head on its last real token.

    `apply(params, tokens int[B, S], mask=bool[B, S]) -> float32[B]`; `params` is
    `{"decoder": ..., "score": {"kernel": [D]}}`. There is no bias: preferences say
    nothing of it. The kernel starts with variance 1 / (D + 1) (Stiennon et al. 2020,
    https://arxiv.org/abs/2009.01325, appendix B).

    Args:
      config: of the decoder; its head is not used.
      reference: the decoder's first parameters, as `transformer.decoder` has them;
        None: fresh ones.
    """

    def init(key: Key) -> Params:
        decoder_key, score_key = jax.random.split(key)
        if reference is None:
            params = transformer.init(config, decoder_key)
        else:
            params = jax.tree.map(lambda x: jnp.array(x, copy=True), reference)
        kernel = jax.random.normal(score_key, (config.width,))
        return {
            "decoder": params,
            "score": {"kernel": kernel / jnp.sqrt(config.width + 1.0)},
        }

    def apply(params: Params, tokens: Array, mask: Array | None = None) -> Array:
        features, _ = transformer.hidden(config, params["decoder"], tokens, mask)
        last = last_real(jnp.ones(tokens.shape, bool) if mask is None else mask)
        read = jnp.take_along_axis(features, last[:, None, None], axis=1)[:, 0]
        return read.astype(jnp.float32) @ params["score"]["kernel"]

    return Network(init, apply)


def last_real(mask: Array) -> Array:
    """`int32[B]` place of the last True in each row `bool[B, S]`; 0 where none is."""
    chex.assert_rank(mask, 2)
    places = jnp.arange(mask.shape[1], dtype=jnp.int32)
    return jnp.max(jnp.where(mask, places[None], 0), axis=1)
