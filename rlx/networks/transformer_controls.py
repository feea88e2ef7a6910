"""Control words for a decoder: more embeddings, for tokens that steer and are not said.

Lu et al. 2022 (Quark), https://arxiv.org/abs/2205.13636; the initialisation is that of
Hallinan et al. 2023 (STEER), https://arxiv.org/abs/2311.07167: normal, with the mean
and deviation of the embeddings that are there.

    longer = extended(config, controls.size)
    params = with_controls(config, params, controls.size, key)
    logits = transformer.decoder(longer).apply(params, rows)        # [B, S, V + E]

The first V columns of the logits are the words of the language, in the order in which
they were. With a tied head the others are products with the control words' embeddings:
whoever compares with a model of V words, or samples, must leave them out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlx.networks import transformer
from rlx.types import Array, Key, Params


def extended(config: transformer.Config, num_controls: int) -> transformer.Config:
    """The config of the same decoder with `num_controls` more words.

    Raises:
      ValueError: their number is not positive.
    """
    if num_controls < 1:
        raise ValueError(f"num_controls must be positive, got {num_controls}")
    size = config.vocabulary_size + num_controls
    return dataclasses.replace(config, vocabulary_size=size)


def with_controls(
    config: transformer.Config, params: Params, num_controls: int, key: Key
) -> Params:
    """Parameters of `extended(config, num_controls)`; what there was is copied.

    New rows of the embedding, and without a tied head new columns of the head, are
    drawn from N(mean, deviation) of the old ones, dimension by dimension.

    Args:
      config: of the decoder that there is.
      params: its parameters.
      num_controls: E.
      key: draws the new ones.

    Raises:
      ValueError: the parameters are not those of the config.
    """
    if params["embedding"].shape != (config.vocabulary_size, config.width):
        raise ValueError(
            f"the embedding has shape {params['embedding'].shape}, the config says "
            f"{(config.vocabulary_size, config.width)}: give the parameters of the "
            "decoder with this config"
        )
    row_key, column_key = jax.random.split(key)

    def more(key: Key, rows: Array) -> Array:
        mean, deviation = jnp.mean(rows, axis=0), jnp.std(rows, axis=0)
        noise = jax.random.normal(key, (num_controls, rows.shape[1]), rows.dtype)
        new = mean[None] + deviation[None] * noise
        return jnp.concatenate([rows, new.astype(rows.dtype)])

    copied: dict[str, Any] = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    copied["embedding"] = more(row_key, copied["embedding"])
    if not config.tied:
        copied["head"] = more(column_key, copied["head"].T).T
    return copied


def scale_controls(
    num_words: int, factor: float | Array
) -> optax.GradientTransformation:
    """Multiplies the updates of control embeddings: their own step size, after Adam.

    They begin as noise while the rest has been learned before: with one small step
    size they stay noise for long.

    Args:
      num_words: V; rows of the leaf `embedding` from there on are control words.
      factor: their step size in units of that of the rest.
    """

    def scaled(updates: Params) -> Params:
        def leaf(path: tuple, x: Any) -> Any:
            if str(getattr(path[-1], "key", path[-1])) != "embedding":
                return x
            row = jnp.arange(x.shape[0])[:, None]
            return x * jnp.where(row < num_words, 1.0, factor).astype(x.dtype)

        return jax.tree_util.tree_map_with_path(leaf, updates)

    return optax.stateless(lambda updates, params: scaled(updates))
