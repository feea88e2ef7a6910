"""A tiny language model with control words, and rated texts, for Quark and STEER."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.data.prompts import Prompts
from rlx.data.reward_pool import Settings, pool
from rlx.generation import controlled
from rlx.generation.sampling import Sampling
from rlx.networks import transformer
from rlx.ops.control_tokens import Controlled, Controls, Rated
from rlx.ops.sequences import Sequences
from rlx.types import DataSource
from tests.methods import language_cases as cases

STYLES, BINS = 2, 3
CONFIG = transformer.Config(
    vocabulary_size=cases.WORDS, width=8, num_layers=1, num_heads=2, max_length=12
)


def controls(metrics: int, bins: int = BINS, styles: int = STYLES) -> Controls:
    return Controls(cases.WORDS, metrics, styles, bins)


def model(words: Controls, seed: int = 9) -> controlled.ControlledModel:
    params = transformer.init(CONFIG, jax.random.key(seed))
    options = Sampling(max_tokens=cases.RESPONSE, stop_tokens=(cases.END,))
    return controlled.decoder(CONFIG, params, words, jax.random.key(1), options)


def batch(words: Controls, rows: int = 6) -> Controlled:
    """Random texts behind random control words."""
    generator = np.random.default_rng(3)
    shape = (rows, words.num_metrics)
    style = jnp.asarray(generator.integers(0, words.num_styles, rows))
    bins = jnp.asarray(generator.integers(0, words.num_bins, shape))
    metrics = jnp.asarray(generator.random(shape), jnp.float32)
    return Controlled(cases.sequences(rows, 4), words.tokens(style, bins), metrics)


def score(metrics: int) -> Any:
    """How often a response says each of the first words, plus a little for length."""

    def go(rows: Sequences, style: jax.Array) -> jax.Array:
        wanted = 2 + (style[:, None, None] + jnp.arange(metrics)[None, None]) % 3
        said = (rows.tokens[..., None] == wanted) & rows.response[..., None]
        length = jnp.sum(rows.response, axis=-1, keepdims=True)
        return jnp.sum(said, axis=1) + 0.1 * length

    return go


def source(words: Controls, **options: Any) -> DataSource:
    """A pool that grows at every second batch."""
    rows = cases.sequences(10, 5)
    style = jnp.arange(10) % words.num_styles
    judge = score(words.num_metrics)
    start = Rated(rows, style, judge(rows, style))
    asked = Prompts(rows.tokens[:, : cases.PROMPT], rows.mask[:, : cases.PROMPT])
    settings = {"batch_size": 4, "capacity": 24, "every": 1, "rollouts": 4, **options}
    return pool(
        start, asked, controls=words, score=judge, settings=Settings(**settings)
    )
