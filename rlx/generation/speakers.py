"""Whatever can say what comes next, one token at a time: decoders, tables of n-grams.

A `Speaker` reads prompts and returns logits for the first token, what it remembers, and
how to go on; `sampler` lets it speak. Speakers are made of speakers: one that does not
hear the prompt (`unprompted`), one that says the first V words alone (`restricted`), a
product of several (`rlx.generation.experts`).

    speaks = sampler(restricted(of_decoder(config), 200), Sampling(max_tokens=20))
    found = speaks(params, prompt, mask, key)

B rows, L tokens of the prompt, V words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import chex
import jax.numpy as jnp

from rlx.generation.sampling import Generated, Sampler, Sampling, loop
from rlx.networks import transformer
from rlx.types import Array, Key, Params, PyTree


class Reading(NamedTuple):
    """A speaker that has read its prompts."""

    logits: Array
    """`float[B, V]` of the first token."""
    state: PyTree
    """What it remembers: leaves of fixed shape."""
    extend: Callable[[PyTree, Array, Array], tuple[Array, PyTree]]
    """`(state, token int[B], alive bool[B]) -> (logits [B, V], state)`."""


Speaker: TypeAlias = Callable[..., Reading]
"""`(params, prompt int[B, L], mask bool[B, L], max_tokens, samples=1) -> Reading`.

Prompts are padded on the left; rows b K ... b K + K − 1 of a reading with K samples
are for prompt b."""


def sampler(speaker: Speaker, options: Sampling) -> Sampler:
    """Lets a speaker speak, see `rlx.generation.sampling`."""

    def generate(
        params: Params, prompt: Array, mask: Array, key: Key | None, samples: int = 1
    ) -> Generated:
        chex.assert_rank(prompt, 2)
        chex.assert_equal_shape([prompt, mask])
        first, state, extend = speaker(
            params, prompt, mask, options.max_tokens, samples
        )
        return loop(extend, state, first, options, key)

    return generate


def check_room(config: transformer.Config, length: int, max_tokens: int) -> int:
    """Tokens of a prompt and its response; raises ValueError if they are too many."""
    room = length + max_tokens
    if room > config.max_length:
        raise ValueError(
            f"a prompt of {length} tokens and a response of {max_tokens} need {room} "
            f"positions, the network has {config.max_length}: shorten them or raise "
            "Config.max_length"
        )
    return room


def of_decoder(config: transformer.Config) -> Speaker:
    """A decoder with a cache of keys and values.

    Raises (when it reads):
      ValueError: prompt and response together have no positions in the network.
    """
    network = transformer.decoder(config)

    def read(
        params: Params, prompt: Array, mask: Array, max_tokens: int, samples: int = 1
    ) -> Reading:
        room = check_room(config, prompt.shape[1], max_tokens)
        empty = transformer.init_cache(config, len(prompt), room)
        features, cache = transformer.hidden(config, params, prompt, mask, empty)
        assert cache is not None  # it was given one
        first = transformer.logits(config, params, features[:, -1])
        if samples > 1:
            first = jnp.repeat(first, samples, axis=0)
            cache = transformer.repeated(cache, samples)
        weights, cache = transformer.unstacked(params, cache)

        def extend(state: PyTree, token: Array, alive: Array) -> tuple[Array, PyTree]:
            logits, after = network.apply(
                weights, token[:, None], mask=alive[:, None], cache=state
            )
            return logits[:, 0], after

        return Reading(first, cache, extend)

    return read


def of_table(
    params: Params, prompt: Array, mask: Array, max_tokens: int, samples: int = 1
) -> Reading:
    """A bigram model: a `Speaker` that hears the last token of the prompt.

    Args:
      params: `(logits [S, V, V], which int[B])`: what follows each token, in S models;
        row i of the prompts is for model `which[i]`.
      prompt: `int[B, L]`.
      mask: not read: the last token of a prompt is no padding.
      max_tokens: not read: a table has no end.
      samples: rows of each prompt.
    """
    del mask, max_tokens
    table, which = params
    chex.assert_rank([table, which], [3, 1])
    chex.assert_equal_shape_prefix([prompt, which], 1)

    last, which = (jnp.repeat(x, samples) for x in (prompt[:, -1], which))

    def extend(state: PyTree, token: Array, alive: Array) -> tuple[Array, PyTree]:
        del alive
        return table[which, token], state

    return Reading(table[which, last], (), extend)


def unprompted(speaker: Speaker, begin: int) -> Speaker:
    """The same speaker, which hears the token `begin` in place of every prompt."""

    def read(
        params: Params, prompt: Array, mask: Array, max_tokens: int, samples: int = 1
    ) -> Reading:
        lone = jnp.full((len(prompt), 1), begin, jnp.int32)
        here = jnp.ones(lone.shape, bool)
        return speaker(params, lone, here, max_tokens, samples)

    return read


def restricted(speaker: Speaker, num_words: int) -> Speaker:
    """The same speaker, which never says a word from `num_words` on."""

    def read(
        params: Params, prompt: Array, mask: Array, max_tokens: int, samples: int = 1
    ) -> Reading:
        first, state, extend = speaker(params, prompt, mask, max_tokens, samples)

        def shorter(state: PyTree, token: Array, alive: Array) -> tuple[Array, PyTree]:
            logits, after = extend(state, token, alive)
            return logits[:, :num_words], after

        return Reading(first[:, :num_words], state, shorter)

    return read
