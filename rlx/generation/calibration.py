"""Finding the heads that retrieve: a gate for each, trained to change nothing.

Xiao et al. 2024 (DuoAttention), https://arxiv.org/abs/2410.10819, section 3.2. The
output of a key-value head's group is α full + (1 − α) streaming, equation 2, with
α ∈ [0, 1]. The model is frozen; gates alone learn, from 1 on, by

    mean over answers of (h_full − h_gated)² + λ mean |α|,

equations 3 and 4, h being what the last layer leaves: heads without which answers
change keep their gates, the others close. Then the heads of the smallest gates stream.
With all gates at 1 the first term is 0; λ = 0 changes nothing at all.

The examples decide: they must need what is far away, at the lengths that matter, such
as keys hidden in long texts and asked for at their end.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlx.generation import heads
from rlx.networks import transformer
from rlx.types import Array, Key, Params


class Examples(NamedTuple):
    """A batch of texts, all batches of one shape."""

    tokens: Array
    """`int32[B, S]`."""
    answers: Array
    """`bool[B, S]` at whose states the gated model must be like the full one."""
    mask: Array | None = None
    """`bool[B, S]` False where there is padding; None: nowhere."""


class Report(NamedTuple):
    """How a map came about."""

    gates: np.ndarray
    """`[L, K]` α when training ended."""
    distillation: np.ndarray
    """`[steps]` mean square error of the answers' states, as it was trained."""
    error: float
    """The same on the last batch with the map that came out, over the mean square of
    the states: 0 where streaming costs nothing."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How gates are trained and read.

    Raises:
      ValueError: a number out of its range.
    """

    steps: int = 200
    """Gradient steps; the paper makes 2,000 on models with a thousand heads."""
    rate: float = 0.02
    """Of Adam; DuoAttention section 3.1."""
    penalty: float = 0.05
    """λ; DuoAttention section 3.1."""
    share: float = 0.5
    """Of all key-value heads, those that will stream; LServe section 4.1."""
    per_layer: bool = False
    """The same share in every layer, rather than over all of them."""
    sink: int = heads.SINK
    """First tokens that a streaming head sees."""
    window: int = heads.WINDOW
    """Last tokens that it sees."""

    def __post_init__(self) -> None:
        ranges = {
            "steps": self.steps >= 1,
            "rate": self.rate > 0,
            "penalty": self.penalty >= 0,
            "share": 0 <= self.share <= 1,
            "sink": self.sink >= 0,
            "window": self.window >= 1,
        }
        for name, good in ranges.items():
            if not good:
                raise ValueError(f"{name}={getattr(self, name)} is out of its range")


def calibrate(
    config: transformer.Config,
    params: Params,
    batches: Iterable[Examples],
    key: Key,
    options: Options | None = None,
) -> tuple[heads.HeadMap, Report]:
    """Trains the gates of a model on texts, and says which of its heads stream.

    Args:
      config: of the model.
      params: its parameters, which stay as they are.
      batches: one for each step; where there are fewer, they come again.
      key: breaks ties between gates.
      options: how.

    Returns:
      The map, and how it came about.

    Raises:
      ValueError: no batch, no answer in one, or texts so short that a streaming head
        sees all of them.
    """
    options = options or Options()
    kept = [_checked(batch, options) for batch in _first(batches, options.steps)]
    if not kept:
        raise ValueError("no batch to calibrate on: give at least one")
    gates = jnp.ones((config.num_layers, config.kv_heads), jnp.float32)
    begin, step = _training(config, options)
    moments, found = begin(gates), []
    for index in range(options.steps):
        batch = kept[index % len(kept)]
        gates, moments, distillation = step(gates, moments, params, batch)
        found.append(distillation)
    retrieval = binarise(gates, options.share, key, per_layer=options.per_layer)
    rows = tuple(tuple(bool(head) for head in row) for row in np.asarray(retrieval))
    map_ = heads.HeadMap(rows, options.sink, options.window, heads.fingerprint(config))
    error = relative_error(config, params, kept[-1], map_)
    return map_, Report(np.asarray(gates), np.asarray(jnp.stack(found)), float(error))


def relative_error(
    config: transformer.Config, params: Params, batch: Examples, map_: heads.HeadMap
) -> Array:
    """Mean square error of the answers' states under a map, over their mean square."""
    gates = jnp.array(map_.retrieval, jnp.float32)
    apart, size = _distances(config, (map_.sink, map_.window), gates, params, batch)
    return apart / size


def loss(gates: Array, distillation: Array, penalty: float) -> Array:
    """Equation 4: what gates change, and what they cost."""
    return distillation + penalty * jnp.mean(jnp.abs(gates))


def binarise(gates: Array, share: float, key: Key, *, per_layer: bool = False) -> Array:
    """Which heads keep all tokens: those of the greatest gates.

    As many stream as the share says, to the nearest head. Gates that are equal, which
    many are at 0 and 1, are told apart by noise.

    Args:
      gates: `[L, K]`.
      share: of heads that stream.
      key: of the noise.
      per_layer: in each layer alike.

    Returns:
      `bool[L, K]`, True: retrieval.
    """
    chex.assert_rank(gates, 2)
    noisy = gates + jax.random.uniform(key, gates.shape, maxval=1e-6)
    noisy = noisy if per_layer else noisy.reshape(1, -1)
    rank = jnp.argsort(jnp.argsort(noisy, axis=-1), axis=-1)
    return (rank >= round(share * noisy.shape[-1])).reshape(gates.shape)


@functools.partial(jax.jit, static_argnames=("config", "limits"))
def gated_hidden(
    config: transformer.Config,
    limits: tuple[int, int],
    gates: Array,
    params: Params,
    batch: Examples,
) -> Array:
    """What the head reads if every group mixes its full and its streaming output.

    Args:
      config: of the model.
      limits: sink and window.
      gates: α, `[L, K]`.
      params: of the model.
      batch: texts.

    Returns:
      `float32[B, S, D]`; `transformer.hidden` where all gates are 1.
    """
    chex.assert_shape(gates, (config.num_layers, config.kv_heads))
    tokens, sink, window = batch.tokens, *limits
    mask = jnp.ones(tokens.shape, bool) if batch.mask is None else batch.mask
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    full = jnp.tri(tokens.shape[1], dtype=bool)[None] & mask[:, None]
    there = positions[:, None]
    near = (positions[:, :, None] - there < window) | (there < sink)
    group = config.num_heads // config.kv_heads

    def layer(x: Array, now: tuple) -> tuple[Array, None]:
        weights, gate = now
        read = transformer.queries_keys_values(config, weights, x, positions)
        wide = transformer.attention(*read, full)
        narrow = transformer.attention(*read, full & near)
        share = jnp.repeat(gate, group).reshape(1, 1, -1, 1)
        mixed = (share * wide + (1 - share) * narrow).astype(wide.dtype)
        return transformer.after_attention(config, weights, x, mixed), None

    x = transformer.embed(config, params, tokens, positions)
    x, _ = jax.lax.scan(layer, x, (params["layers"], gates))
    return transformer.normalize(config, params["final"], x)


def _distances(
    config: transformer.Config,
    limits: tuple[int, int],
    gates: Array,
    params: Params,
    batch: Examples,
) -> tuple[Array, Array]:
    """Mean squares at the answers: of what gates change, and of the full states."""
    exact, _ = transformer.hidden(config, params, batch.tokens, batch.mask)
    exact = jax.lax.stop_gradient(exact)
    found = gated_hidden(config, limits, gates, params, batch)
    count = jnp.sum(batch.answers) * exact.shape[-1]
    answers = batch.answers[..., None]
    apart = jnp.sum(jnp.square(found - exact) * answers) / count
    return apart, jnp.sum(jnp.square(exact) * answers) / count


def _training(config: transformer.Config, options: Options) -> Any:
    """`begin(gates) -> moments` and `step(gates, moments, params, batch)`, compiled."""
    optimizer = optax.adam(options.rate)
    limits = (options.sink, options.window)

    def objective(gates: Array, params: Params, batch: Examples) -> tuple[Array, Array]:
        apart, _ = _distances(config, limits, gates, params, batch)
        return loss(gates, apart, options.penalty), apart

    @jax.jit
    def step(gates: Array, moments: Any, params: Params, batch: Examples) -> tuple:
        grads, apart = jax.grad(objective, has_aux=True)(gates, params, batch)
        updates, moments = optimizer.update(grads, moments)
        return jnp.clip(optax.apply_updates(gates, updates), 0, 1), moments, apart

    return optimizer.init, step


def _first(batches: Iterable[Examples], count: int) -> list[Examples]:
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def _checked(batch: Examples, options: Options) -> Examples:
    chex.assert_rank(batch.tokens, 2)
    chex.assert_equal_shape([batch.tokens, batch.answers])
    if not np.asarray(batch.answers).any():
        raise ValueError("a batch without answers says nothing: mark some in each")
    seen, size = options.sink + options.window, batch.tokens.shape[1]
    if size <= seen:
        raise ValueError(
            f"texts of {size} tokens, but streaming heads see {seen} (sink + window): "
            "give longer texts, or less to see"
        )
    return batch
