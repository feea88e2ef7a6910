"""A tiny language model and data for the tests of language methods."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rlx.data.language import Preferences, Sequences, draw
from rlx.generation.language_model import LanguageModel, decoder
from rlx.generation.sampling import Sampling
from rlx.networks import transformer
from rlx.types import DataSource

WORDS, PROMPT, RESPONSE, END = 7, 3, 4, 1
CONFIG = transformer.Config(
    vocabulary_size=WORDS, width=8, num_layers=1, num_heads=2, max_length=8
)


def model(reference: bool = False) -> LanguageModel:
    """A transformer of one layer; with random parameters of its own to start from."""
    options = Sampling(max_tokens=RESPONSE, stop_tokens=(END,))
    start = transformer.init(CONFIG, jax.random.key(9)) if reference else None
    return decoder(CONFIG, options, start)


def sequences(rows: int, seed: int = 0) -> Sequences:
    """Random prompts of 2 or 3 tokens, padded left, and responses of 1 to 4."""
    generator = np.random.default_rng(seed)
    size = PROMPT + RESPONSE
    tokens = generator.integers(2, WORDS, (rows, size)).astype(np.int32)
    place = np.arange(size)[None]
    first = generator.integers(0, 2, (rows, 1))
    last = PROMPT + generator.integers(0, RESPONSE, (rows, 1))
    tokens = np.where(place == last, END, tokens).astype(np.int32)
    mask = (place >= first) & (place <= last)
    return Sequences(
        jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(mask & (place >= PROMPT))
    )


def preferences(rows: int) -> Preferences:
    """Random pairs; the weights are not all the same."""
    weight = 0.5 + jnp.arange(rows, dtype=jnp.float32) % 2
    return Preferences(sequences(rows, 1), sequences(rows, 2), weight)


def source(rows: object, batch_size: int = 4) -> DataSource:
    """Minibatches of them."""
    return draw(rows, batch_size=batch_size)
