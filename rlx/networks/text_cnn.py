"""A convolution over words that judges texts: classifiers that are cheap to run.

Kim 2014, https://arxiv.org/abs/1408.5882: embeddings, filters over windows of several
widths, the maximum over time of each, a linear layer. B rows of T tokens, C judgements.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array, Key, Network, Params


@dataclasses.dataclass(frozen=True)
class Config:
    """Its shape.

    Raises:
      ValueError: a size is not positive.
    """

    vocabulary_size: int
    """V."""
    outputs: int
    """C."""
    width: int = 64
    """Of the embedding."""
    filters: int = 64
    """Of each width of window."""
    windows: tuple[int, ...] = (1, 2, 3)
    """How many words filters see."""

    def __post_init__(self) -> None:
        sizes = (self.vocabulary_size, self.outputs, self.width, self.filters)
        if min(*sizes, *self.windows, len(self.windows)) < 1:
            raise ValueError(f"all sizes must be positive: {self}")


def classifier(config: Config) -> Network:
    """`apply(params, tokens int[B, T], mask=bool[B, T]) -> float32[B, C]` logits.

    Padding may stand anywhere; a window that reaches over it or over the end of a row
    sees zeros there, and counts if its first token is real.
    """

    def init(key: Key) -> Params:
        embedding_key, head_key, *keys = jax.random.split(key, 2 + len(config.windows))

        def matrix(key: Key, size: int, out: int) -> Array:
            return jax.random.normal(key, (size, out)) / jnp.sqrt(float(size))

        total = config.filters * len(config.windows)
        return {
            "embedding": 0.1
            * jax.random.normal(embedding_key, (config.vocabulary_size, config.width)),
            "filters": [
                {
                    "kernel": matrix(key, window * config.width, config.filters),
                    "bias": jnp.zeros(config.filters),
                }
                for key, window in zip(keys, config.windows, strict=True)
            ],
            "head": {
                "kernel": matrix(head_key, total, config.outputs),
                "bias": jnp.zeros(config.outputs),
            },
        }

    def apply(params: Params, tokens: Array, mask: Array | None = None) -> Array:
        chex.assert_rank(tokens, 2)
        there = jnp.ones(tokens.shape, bool) if mask is None else mask
        chex.assert_equal_shape([tokens, there])
        x = params["embedding"][tokens] * there[..., None]
        found = []
        for window, weights in zip(config.windows, params["filters"], strict=True):
            seen = jnp.concatenate([_ahead(x, k) for k in range(window)], axis=-1)
            value = seen @ weights["kernel"] + weights["bias"][None, None]
            # What is not there is 0, as low as a rectified filter goes.
            value = jax.nn.relu(value) * there[..., None]
            found.append(jnp.max(value, axis=1))
        features = jnp.concatenate(found, axis=-1)
        return features @ params["head"]["kernel"] + params["head"]["bias"][None]

    return Network(init, apply)


def _ahead(x: Array, steps: int) -> Array:
    """What stands `steps` places later in `[B, T, D]`; zeros beyond the end."""
    return jnp.pad(x[:, steps:], ((0, 0), (0, min(steps, x.shape[1])), (0, 0)))
