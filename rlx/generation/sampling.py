"""Sampling responses from a language policy: one compiled program.

The prompt is read in one pass (`rlx.generation.speakers`), then a loop extends all rows
token by token, until each has said a stop token or the longest response is reached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import struct

from rlx.ops import language
from rlx.ops import sampling as filters
from rlx.types import Array, Key


@struct.dataclass
class Generated:
    """Responses, padded on the right."""

    tokens: Array
    """`int32[B, T]`; `Sampling.pad_token` after the stop token."""
    mask: Array
    """`bool[B, T]` True up to the stop token, it included."""
    log_prob: Array
    """`float32[B, T]` under the distribution that was sampled from, tempered and
    filtered; 0 where the mask is False. Greedy: under the unfiltered one."""


Sampler: TypeAlias = Callable[..., Generated]
"""`(params, prompt int[B, L], mask bool[B, L], key, samples=1) -> Generated`.

Prompts are padded on the left. No key: greedy. With `samples` = K each prompt is read
once and answered K times: rows b K ... b K + K − 1 answer prompt b."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Raises:
      ValueError: a number out of its range.
    """

    max_tokens: int
    """T: the longest response."""
    temperature: float = 1.0
    """Divides the logits; > 0."""
    top_k: int = 0
    """Words among which to draw; 0: all."""
    top_p: float = 1.0
    """Mass of the nucleus in which to draw, in (0, 1]."""
    min_p: float = 0.0
    """Least probability, in units of the greatest, in [0, 1)."""
    stop_tokens: tuple[int, ...] = ()
    """Any of them ends a response and belongs to it."""
    pad_token: int = 0
    """Stands after the end."""

    def __post_init__(self) -> None:
        ranges = {
            "max_tokens": self.max_tokens >= 1,
            "temperature": self.temperature > 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p < 1,
        }
        for name, good in ranges.items():
            if not good:
                raise ValueError(f"{name}={getattr(self, name)} is out of its range")


def filtered(logits: Array, options: Sampling) -> Array:
    """The logits `[..., V]` that are sampled from: tempered, then filtered."""
    logits = filters.tempered(logits.astype(jnp.float32), options.temperature)
    logits = filters.top_k(logits, options.top_k)
    if options.top_p < 1:
        logits = filters.top_p(logits, options.top_p)
    if options.min_p > 0:
        logits = filters.min_p(logits, options.min_p)
    return logits


def draw(logits: Array, options: Sampling, key: Key | None) -> tuple[Array, Array]:
    """A token `int32[B]` and its log-probability `[B]`, from logits `[B, V]`."""
    logits = logits.astype(jnp.float32)
    if key is None:
        token = jnp.argmax(logits, axis=-1)
    else:
        logits = filtered(logits, options)
        token = jax.random.categorical(key, logits)
    token = token.astype(jnp.int32)
    return token, language.token_log_prob(logits, token)


def loop(
    extend: Callable[[object, Array, Array], tuple[Array, object]],
    state: object,
    first: Array,
    options: Sampling,
    key: Key | None,
) -> Generated:
    """Draws tokens until every row has stopped: the loop of any sampler.

    Args:
      extend: `(state, token [B], alive bool[B]) -> (logits [B, V], state)`: what comes
        after a token; rows that are not alive may be given anything.
      state: a pytree of arrays: cache, or whatever `extend` remembers.
      first: `[B, V]` logits after the prompt.
      options: how to draw.
      key: None: greedy.
    """
    batch, steps = first.shape[0], options.max_tokens
    stops = jnp.array(options.stop_tokens, jnp.int32)
    pad = jnp.full((batch, steps), options.pad_token, jnp.int32)
    empty = Generated(
        pad, jnp.zeros((batch, steps), bool), jnp.zeros((batch, steps), jnp.float32)
    )

    def running(carry: tuple) -> Array:
        step, alive, *_ = carry
        return (step < steps) & jnp.any(alive)

    def say(
        step: Array, alive: Array, logits: Array, found: Generated, key: Key | None
    ) -> tuple:
        here = None
        if key is not None:
            key, here = jax.random.split(key)
        token, log_prob = draw(logits, options, here)
        token = jnp.where(alive, token, options.pad_token)
        found = Generated(
            found.tokens.at[:, step].set(token),
            found.mask.at[:, step].set(alive),
            found.log_prob.at[:, step].set(jnp.where(alive, log_prob, 0.0)),
        )
        alive = alive & ~jnp.any(token[:, None] == stops[None], axis=-1)
        return step + 1, alive, token, found, key

    def body(carry: tuple) -> tuple:
        step, alive, token, found, key, state = carry
        logits, state = extend(state, token, alive)
        return *say(step, alive, logits, found, key), state

    begin = say(jnp.int32(0), jnp.ones((batch,), bool), first, empty, key)
    return jax.lax.while_loop(running, body, (*begin, state))[3]
