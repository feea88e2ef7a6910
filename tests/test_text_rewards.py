"""Judges of rewrites, learned from a language whose styles are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import text_rewards
from rlx.data import style_corpus
from rlx.data.style_corpus import Corpus
from rlx.ops.sequences import Sequences, joined

PAD, END, BEGIN = 0, 1, 2
STYLES, LENGTH = 2, 9
SETTINGS = text_rewards.Settings(
    STYLES, 24, BEGIN, vector_width=8, width=12, steps=300, batch_size=64
)


def corpus(key: jax.Array, count: int) -> Corpus:
    """Words 3 … 13 and 14 … 23 by style; each is followed by one of the next two."""
    style_key, first_key, step_key, length_key = jax.random.split(key, 4)
    style = jax.random.randint(style_key, (count,), 0, STYLES)
    first = jax.random.randint(first_key, (count, 1), 0, 10)
    steps = jax.random.randint(step_key, (count, LENGTH), 1, 3)
    word = 3 + (first + jnp.cumsum(steps, axis=1)) % 10 + 10 * style[:, None]
    length = jax.random.randint(length_key, (count, 1), 5, LENGTH)
    place = jnp.arange(LENGTH)[None]
    tokens = jnp.where(place < length, word, jnp.where(place == length, END, PAD))
    return Corpus(tokens.astype(jnp.int32), place <= length, style)


@pytest.fixture(scope="module")
def judges() -> text_rewards.Judges:
    found, accuracy = text_rewards.fit(
        jax.random.key(0), corpus(jax.random.key(1), 1500), SETTINGS
    )
    assert accuracy["strength"] > 0.95 and accuracy["fluency"] > 0.75
    return found


def rows(source: Corpus, answer: Corpus) -> Sequences:
    asked = style_corpus.asked(source, BEGIN)
    return joined(asked.tokens, asked.mask, answer.tokens, answer.mask)


def score(judges: text_rewards.Judges, rows: Sequences, style: jax.Array) -> np.ndarray:
    return np.asarray(text_rewards.scorer(SETTINGS, LENGTH)(judges, rows, style))


def test_copies_are_like_fluent_and_of_their_own_style(
    judges: text_rewards.Judges,
) -> None:
    texts = corpus(jax.random.key(2), 200)
    own = score(judges, rows(texts, texts), texts.style)
    np.testing.assert_allclose(own[:, 1], 1.0, atol=1e-5)
    assert own[:, 0].mean() > 0.9 and own[:, 2].mean() > 0.6
    other = score(judges, rows(texts, texts), 1 - texts.style)
    assert other[:, 0].mean() < 0.1


def test_mistakes_cost_fluency_and_other_words_likeness(
    judges: text_rewards.Judges,
) -> None:
    texts = corpus(jax.random.key(2), 200)
    own = score(judges, rows(texts, texts), texts.style)
    words = texts.mask & (texts.tokens > BEGIN)
    mixed = jax.random.permutation(
        jax.random.key(0), jnp.where(words, texts.tokens, 0), axis=1, independent=True
    )
    wrong = texts.replace(tokens=jnp.where(words & (mixed > 0), mixed, texts.tokens))
    found = score(judges, rows(texts, wrong), texts.style)
    assert found[:, 2].mean() < own[:, 2].mean() - 0.2
    turned = texts.replace(
        tokens=jnp.flip(texts.tokens, 0), mask=jnp.flip(texts.mask, 0)
    )
    elsewhere = score(judges, rows(texts, turned), texts.style)
    assert elsewhere[:, 1].mean() < 0.6


def test_silence_is_worth_nothing(judges: text_rewards.Judges) -> None:
    texts = corpus(jax.random.key(2), 4)
    only_end = texts.replace(
        tokens=jnp.full_like(texts.tokens, END), mask=texts.mask.at[:, 1:].set(False)
    )
    for answer in (only_end, texts.replace(mask=jnp.zeros_like(texts.mask))):
        found = score(judges, rows(texts, answer), texts.style)
        np.testing.assert_array_equal(found, 0.0)


def test_what_is_called_fluent_has_no_mistake() -> None:
    texts = corpus(jax.random.key(3), 300)
    found = text_rewards.fluency_rows(jax.random.key(4), texts, SETTINGS)
    assert found.label.shape == (600, 1)
    np.testing.assert_array_equal(found.label[:300], 1.0)
    before = jnp.where(texts.mask, texts.tokens, -1)
    after = jnp.where(found.mask, found.tokens, -1)[300:]
    same = jnp.all(before == after, axis=1)
    np.testing.assert_array_equal(found.label[300:, 0], same)
    assert float(jnp.mean(same)) < 0.5
