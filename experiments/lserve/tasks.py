"""What is retrieved: texts of filler words in which keys are followed by their values.

A text draws a value for every key, once. Whenever a key is said, its value follows: at
its first mention it cannot be known, at every later one it must be found again,
however long ago that was (multi-query associative recall, Arora et al. 2023,
https://arxiv.org/abs/2312.04927, among filler that itself has something to learn: each
word has four successors). A passkey is one such pair in a text of filler, asked for at
its end.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rlx.types import Array, Key

KINDS = 16
"""Keys, values and filler words: as many of each."""
FILLER, KEYS, VALUES = 1, 1 + KINDS, 1 + 2 * KINDS
"""First word of each kind; word 0 begins a text."""
WORDS = 1 + 3 * KINDS
"""V."""
CHANCES = np.array([0.4, 0.3, 0.2, 0.1])
"""Of a filler word's successors."""


@dataclasses.dataclass(frozen=True)
class Text:
    """How texts are drawn."""

    length: int
    """Words."""
    keys: int = KINDS
    """Keys that a text uses."""
    rate: float = 0.2
    """Chance that a key is said where one can be."""


def successors() -> np.ndarray:
    """`int[KINDS, 4]`: which filler words follow each; the same in every text."""
    rng_free = np.random.default_rng(8)
    rows = [rng_free.permutation(KINDS)[: len(CHANCES)] for _ in range(KINDS)]
    return np.stack(rows)


def text(options: Text, key: Key) -> tuple[Array, Array]:
    """One text, and where a value stands that was said before.

    Returns:
      `int32[length]` words and `bool[length]`.
    """
    keys = jax.random.split(key, 3)
    value_of = jax.random.randint(keys[0], (KINDS,), 0, KINDS, jnp.int32)
    used = jax.random.permutation(keys[1], KINDS)[: options.keys]
    return _told(options, used, value_of, keys[2])


def needles(options: Text, depths: Array, key: Key) -> tuple[Array, Array, Array]:
    """A text with one more pair at each depth, said once; it is asked for later.

    Args:
      options: of the text; its keys are others than the pairs'.
      depths: `[n]` in [0, 1], where pairs begin, apart by two words at least.
      key: for words, keys and values.

    Returns:
      `int32[length]` the text, `int32[n]` the pairs' keys and `int32[n]` their values.
    """
    keys = jax.random.split(key, 3)
    count = depths.shape[0]
    value_of = jax.random.randint(keys[0], (KINDS,), 0, KINDS, jnp.int32)
    order = jax.random.permutation(keys[1], KINDS).astype(jnp.int32)
    asked, used = order[:count], order[count : count + options.keys]
    words, _ = _told(options, used, value_of, keys[2])
    place = jnp.round(depths * (options.length - 2)).astype(jnp.int32)
    answers = VALUES + value_of[asked]
    words = words.at[place].set(KEYS + asked).at[place + 1].set(answers)
    return words, KEYS + asked, answers


def _told(options: Text, used: Array, value_of: Array, key: Key) -> tuple[Array, Array]:
    """Words one after the other: a value after its key, else a key or filler."""
    keys = jax.random.split(key, 4)
    size = (options.length,)
    drawn = jax.random.choice(keys[0], used, size).astype(jnp.int32)
    says = jax.random.uniform(keys[1], size) < options.rate
    choices = jax.random.categorical(keys[2], jnp.log(jnp.asarray(CHANCES)), shape=size)
    follows = jnp.asarray(successors(), jnp.int32)

    def step(carry: tuple, now: tuple) -> tuple[tuple, tuple]:
        filler, asked, seen = carry
        name, say, choice = now
        answering = asked < KINDS
        held = jnp.minimum(asked, KINDS - 1)
        known = answering & seen[held]
        seen = seen.at[asked].set(True, mode="drop")
        following = follows[filler, choice]
        word = jnp.where(say, KEYS + name, FILLER + following)
        word = jnp.where(answering, VALUES + value_of[held], word)
        asked = jnp.where(~answering & say, name, KINDS)
        filler = jnp.where(answering | say, filler, following)
        return (filler, asked, seen), (word.astype(jnp.int32), known)

    start = jax.random.randint(keys[3], (), 0, KINDS, jnp.int32)
    begin = (start, jnp.int32(KINDS), jnp.zeros((KINDS,), bool))
    return jax.lax.scan(step, begin, (drawn, says, choices))[1]
