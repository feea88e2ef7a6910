"""A decoder-only transformer: language policies, reward models.

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, as today's decoders are built:
normalisation before each block, rotary positions (Su et al. 2021,
https://arxiv.org/abs/2104.09864), grouped queries (Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245), gated linear units (Shazeer 2020,
https://arxiv.org/abs/2002.05202), low-rank adapters (Hu et al. 2021,
https://arxiv.org/abs/2106.09685). With learned positions, layer norms, biases and GELU
it is GPT-2.

All layers' parameters are stacked, leaves `[num_layers, ...]`, and one `scan` runs
them: compiling takes as long for two layers as for forty. What a layer computes before
and after its attention is public (`queries_keys_values`, `after_attention`), so that an
engine with another attention or another cache runs the same weights.

Shapes: B sequences, S tokens, L cache slots, V words, D width, H heads, K key-value
heads, d head width.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from rlx.networks.transformer_layers import (
    Config,
    after_attention,
    attention,
    embed,
    init,
    is_adapter,
    logits,
    normalize,
    queries_keys_values,
)
from rlx.ops import blockwise
from rlx.types import Array, Network, Params

LONG = 128
"""Longer prompts are read block by block."""

__all__ = [
    "Cache",
    "Config",
    "after_attention",
    "attention",
    "decoder",
    "embed",
    "hidden",
    "init",
    "init_cache",
    "is_adapter",
    "logits",
    "normalize",
    "queries_keys_values",
    "repeated",
    "unstacked",
]


@struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far.

    Sequences and their heads share one axis: a product over two would be reshaped to
    one over one, and XLA would copy the whole cache for it in every step of a loop.
    """

    keys: Array
    """`[layers, B K, L, d]`."""
    values: Array
    """`[layers, B K, L, d]`."""
    valid: Array
    """`bool[B, L]` which slots hold a real token."""
    length: Array
    """`int32[]` slots filled, by padding too."""
    position: Array
    """`int32[B]` of the next real token."""


# --------------------------------------------------------------------- the network


def decoder(config: Config) -> Network:
    """A decoder as a `Network`.

    `apply(params, tokens int[B, S], mask=None) -> logits float32[B, S, V]`: causal;
    where `mask` is False there is padding, which nobody sees and which takes no
    position, so that padding on the left changes nothing.

    `apply(params, tokens, mask=mask, cache=cache) -> (logits, cache)`: the tokens come
    after those in the cache. There must be room: S slots, which nobody checks.
    """

    def apply(
        params: Params, tokens: Array, mask: Array | None = None, cache: Any = None
    ) -> Any:
        features, cache = hidden(config, params, tokens, mask, cache)
        found = logits(config, params, features)
        return found if cache is None else (found, cache)

    return Network(lambda key: init(config, key), apply)


def hidden(
    config: Config,
    params: Params,
    tokens: Array,
    mask: Array | None = None,
    cache: Cache | None = None,
) -> tuple[Array, Cache | None]:
    """What the head reads, `float32[B, S, D]`, and the cache with these tokens in it.

    Raises:
      AssertionError: tokens are no matrix of integers, or the mask has another shape.
      ValueError: more tokens than `config.max_length`.
    """
    chex.assert_rank(tokens, 2)
    chex.assert_type(tokens, int)
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    chex.assert_equal_shape([tokens, mask])
    if tokens.shape[1] > config.max_length:
        raise ValueError(
            f"{tokens.shape[1]} tokens, but the network has positions for "
            f"{config.max_length}: shorten them or raise Config.max_length"
        )
    size = tokens.shape[1]
    if cache is None:
        begin, filled, valid = (
            jnp.zeros(tokens.shape[:1], jnp.int32),
            jnp.int32(0),
            mask,
        )
    else:
        begin, filled = cache.position, cache.length
        valid = jax.lax.dynamic_update_slice(cache.valid, mask, (0, filled))
    positions = begin[:, None] + jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
    positions = jnp.maximum(positions, 0)
    mix = _attention(cache is not None, size, filled, valid)

    def layer(x: Array, now: Any) -> tuple[Array, Any]:
        weights, old = now
        queries, keys, values = queries_keys_values(config, weights, x, positions)
        if old is not None:
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(
                    o, n.reshape(-1, *n.shape[2:]).astype(o.dtype), filled, axis=1
                )
                for o, n in zip(old, (keys, values), strict=True)
            )
        mixed = mix(queries, keys, values)
        return after_attention(config, weights, x, mixed), (keys, values)

    old = None if cache is None else (cache.keys, cache.values)
    x, new = _through(
        layer, embed(config, params, tokens, positions), params["layers"], old
    )
    x = normalize(config, params["final"], x)
    if cache is None:
        return x, None
    moved = begin + jnp.sum(mask, axis=1, dtype=jnp.int32)
    keys, values = new
    return x, Cache(keys, values, valid, filled + size, moved)


def _attention(cached: bool, size: int, filled: Array, valid: Array) -> Any:
    """`(queries, keys, values) -> mixed` for tokens that come after `filled` slots.

    A long prompt is read in blocks: the scores of all its pairs may not fit in memory,
    and they need not, because nobody differentiates what goes into a cache.
    """
    if cached and size > LONG:

        def blocks(queries: Array, keys: Array, values: Array) -> Array:
            queries = jnp.swapaxes(queries, 1, 2)
            keys, values = (
                x.reshape(len(queries), -1, *x.shape[1:]) for x in (keys, values)
            )
            mixed = blockwise.attention(queries, keys, values, valid, begin=filled)
            return jnp.swapaxes(mixed, 1, 2)

        return blocks
    slots = jnp.arange(valid.shape[1])
    causal = slots[None] <= filled + jnp.arange(size)[:, None]
    seen = causal[None] & valid[:, None]
    return lambda queries, keys, values: attention(queries, keys, values, seen)


def _through(layer: Any, x: Array, weights: Any, old: Any) -> tuple[Array, Any]:
    """All layers in turn: a scan over stacked ones, a loop over a tuple of them."""
    if not isinstance(weights, tuple):
        return jax.lax.scan(layer, x, (weights, old))
    found = []
    for i, now in enumerate(weights):
        x, new = layer(x, (now, None if old is None else (old[0][i], old[1][i])))
        found.append(new)
    keys, values = zip(*found, strict=True)
    return x, (keys, values)


def unstacked(params: Params, cache: Cache) -> tuple[Params, Cache]:
    """Layers, keys and values as tuples, which `decoder` and `hidden` take as well.

    A scan copies every layer's weights and cache as it comes to them. That is nothing
    beside many tokens, and half of the time of one: unstack before a loop over tokens,
    outside of it.
    """
    count = len(cache.keys)
    layers = tuple(
        jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(count)
    )
    parts = {"keys": tuple(cache.keys), "values": tuple(cache.values)}
    return {**params, "layers": layers}, cache.replace(**parts)


def repeated(cache: Cache, times: int) -> Cache:
    """Each sequence `times` times, one copy after the other."""

    def each(x: Array) -> Array:
        rows = x.reshape(len(x), len(cache.valid), -1, *x.shape[2:])
        return jnp.repeat(rows, times, axis=1).reshape(len(x), -1, *x.shape[2:])

    return Cache(
        keys=each(cache.keys),
        values=each(cache.values),
        valid=jnp.repeat(cache.valid, times, axis=0),
        length=cache.length,
        position=jnp.repeat(cache.position, times, axis=0),
    )


def init_cache(config: Config, batch: int, length: int) -> Cache:
    """An empty cache with `length` slots for each of `batch` sequences."""
    heads = batch * config.kv_heads
    shape = (config.num_layers, heads, length, config.head_size)
    return Cache(
        keys=jnp.zeros(shape, config.dtype),
        values=jnp.zeros(shape, config.dtype),
        valid=jnp.zeros((batch, length), bool),
        length=jnp.int32(0),
        position=jnp.zeros((batch,), jnp.int32),
    )
