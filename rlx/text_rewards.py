"""Rewards of a rewrite that are learned from a corpus: style, meaning, fluency.

As Hallinan et al. 2023 (STEER), https://arxiv.org/abs/2311.07167, rate rewrites, with
judges that are trained here in a minute instead of large ones from elsewhere:

    strength   = what a classifier says of the wanted style (a sigmoid for each style)
    similarity = max(0, cosine) of source and rewrite as weighted bags of word vectors
    fluency    = what a discriminator of sentences from corrupted ones says

All lie in [0, 1]; a rewrite without a word has 0 in all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rlx import loop
from rlx.data.language import draw
from rlx.data.style_corpus import Corpus
from rlx.methods import classifier
from rlx.networks import text_cnn
from rlx.ops import bags
from rlx.ops.corruption import Noise, corrupt
from rlx.ops.sequences import Labelled, Sequences
from rlx.types import Array, Key, Network, Params

METRICS = ("strength", "similarity", "fluency")
LIGHT = Noise(drop=0.1, shuffle=2.0, replace=0.1, repeat=0.02)
"""The style of a text with few mistakes is to be recognised as well."""
MISTAKES = (
    Noise(drop=0.2, shuffle=0.0),
    Noise(drop=0.0, shuffle=3.0),
    Noise(drop=0.0, shuffle=0.0, replace=0.2),
    Noise(drop=0.05, shuffle=2.0, replace=0.1, repeat=0.1),
)
"""What the discriminator is to notice, each as often."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the judges are made."""

    num_styles: int
    num_words: int
    begin: int
    """The token before a text; it is never said."""
    vector_width: int = 96
    """Of the bags."""
    width: int = 48
    """Of the judges' embeddings, and of their filters."""
    steps: int = 1000
    """Gradient steps of each of the two judges."""
    batch_size: int = 128


@struct.dataclass
class Judges:
    """Trained judges."""

    strength: Params
    fluency: Params
    vectors: Array
    """`float32[V, d]`, see `rlx.ops.bags`."""


def networks(settings: Settings) -> tuple[Network, Network]:
    """Of style strength and of fluency."""

    def one(outputs: int, windows: tuple[int, ...]) -> Network:
        size = settings.width
        return text_cnn.classifier(
            text_cnn.Config(settings.num_words, outputs, size, size, windows)
        )

    return one(settings.num_styles, (1, 2)), one(1, (2, 3, 4))


def fit(key: Key, corpus: Corpus, settings: Settings) -> tuple[Judges, dict[str, Any]]:
    """Trains the judges on a corpus; with their accuracies on what they saw last."""
    keys = jax.random.split(key, 4)
    corpus = _without_end(corpus, settings)
    vectors = bags.text_vectors(
        corpus.tokens,
        corpus.mask,
        num_words=settings.num_words,
        width=settings.vector_width,
    )
    strength, fluency = networks(settings)
    found, accuracy = {}, {}
    for name, network, rows, run_key in (
        ("strength", strength, style_rows(keys[0], corpus, settings), keys[1]),
        ("fluency", fluency, fluency_rows(keys[2], corpus, settings), keys[3]),
    ):
        method = classifier.make(network, classifier.Config(label_smoothing=0.02))
        source = draw(rows, batch_size=settings.batch_size)
        state = jax.jit(lambda k, m=method, s=source: loop.init(m, s, k))(run_key)
        state, metrics = jax.jit(
            lambda x, m=method, s=source: loop.run(m, s, x, settings.steps)
        )(state)
        found[name] = state.learner.params
        accuracy[name] = float(jnp.mean(metrics["accuracy"][-100:]))
    return Judges(vectors=vectors, **found), accuracy


def style_rows(key: Key, corpus: Corpus, settings: Settings) -> Labelled:
    """Each sentence as it is, and with a little noise; the label is its style."""
    anything = _any_word(settings)
    noisy, there = corrupt(key, corpus.tokens, corpus.mask, LIGHT, anything)
    label = jax.nn.one_hot(corpus.style, settings.num_styles)
    return Labelled(
        jnp.concatenate([corpus.tokens, noisy]),
        jnp.concatenate([corpus.mask, there]),
        jnp.concatenate([label, label]),
    )


def fluency_rows(key: Key, corpus: Corpus, settings: Settings) -> Labelled:
    """Sentences (1), and one with mistakes for each of them (0)."""
    anything = _any_word(settings)
    keys = jax.random.split(key, len(MISTAKES) + 1)
    changed = [
        corrupt(key, corpus.tokens, corpus.mask, noise, anything)
        for key, noise in zip(keys, MISTAKES, strict=False)
    ]
    which = jax.random.randint(keys[-1], corpus.style.shape, 0, len(MISTAKES))
    row = jnp.arange(len(which))
    tokens, mask = (jnp.stack(x)[which, row] for x in zip(*changed, strict=True))
    before = jnp.where(corpus.mask, corpus.tokens, -1)
    same = jnp.all(jnp.where(mask, tokens, -1) == before, axis=1)
    label = jnp.concatenate([jnp.ones(len(which)), same.astype(jnp.float32)])
    return Labelled(
        jnp.concatenate([corpus.tokens, tokens]),
        jnp.concatenate([corpus.mask, mask]),
        label[:, None],
    )


def _without_end(corpus: Corpus, settings: Settings) -> Corpus:
    """Judges read words alone: where a text ends they see."""
    return corpus.replace(mask=corpus.mask & (corpus.tokens > settings.begin))


def _any_word(settings: Settings) -> Array:
    """`[1, V − begin − 1]`: all words of the language, as choices."""
    return jnp.arange(settings.begin + 1, settings.num_words)[None]


def scorer(
    settings: Settings, length: int
) -> Callable[[Judges, Sequences, Array], Array]:
    """`(judges, rows [N, L + T], style int[N]) -> float32[N, 3]` in order of `METRICS`.

    Args:
      settings: of the judges.
      length: L, places of the prompt, which ends in BEGIN.
    """
    strength, fluency = networks(settings)

    def go(judges: Judges, rows: Sequences, style: Array) -> Array:
        source = rows.tokens[:, :length]
        source_mask = rows.mask[:, :length] & (source > settings.begin)
        answer = rows.tokens[:, length:]
        said = rows.response[:, length:] & (answer > settings.begin)
        logits = strength.apply(judges.strength, answer, mask=said)
        wanted = jnp.take_along_axis(logits, style[:, None], axis=1)[:, 0]
        fluent = fluency.apply(judges.fluency, answer, mask=said)[:, 0]
        like = bags.likeness(judges.vectors, source, source_mask, answer, said)
        found = jnp.stack(
            [jax.nn.sigmoid(wanted), like, jax.nn.sigmoid(fluent)], axis=-1
        )
        return jnp.where(jnp.any(said, axis=1)[:, None], found, 0.0)

    return go
