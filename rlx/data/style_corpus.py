"""Sentences of several styles as arrays, and the parts that an experiment cuts them in.

    tokenizer = style_corpus.tokenizer(texts, vocabulary_size=2048)
    corpus = style_corpus.encoded(texts, tokenizer, length=17)
    train, judge, test = style_corpus.parted(corpus, (4000, 4000, 500), seed=0)

A sentence is a row `[length]`: its tokens, END, padding. A rewriter is asked by the
sentence without END, then BEGIN, padded on the left (`asked`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlx.data import styles
from rlx.data import tokenizer as tokenizers
from rlx.data.jsonl import LanguageDataError
from rlx.data.prompts import Prompts
from rlx.data.styles import Texts
from rlx.data.tokenizer import Tokenizer
from rlx.types import Array

BEGIN = "<bos>"


@struct.dataclass
class Corpus:
    """N sentences."""

    tokens: Array
    """`int32[N, T]`, the token END included, padded on the right."""
    mask: Array
    """`bool[N, T]`."""
    style: Array
    """`int32[N]` in the order of `Texts.names`."""


def tokenizer(texts: Texts, vocabulary_size: int) -> Tokenizer:
    """Byte-pair encoding learned from all styles; it knows BEGIN."""
    every = (" " + x for rows in texts.sentences.values() for x in rows)
    return tokenizers.train(every, vocabulary_size, special_tokens=(BEGIN,))


def tokens_of(tokenizer: Tokenizer, sentences: Iterable[str]) -> list[list[int]]:
    """Tokens without END; a blank goes before, so that all words look alike."""
    return tokenizer.encode_all([" " + x for x in sentences])


def text_of(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """The sentence of tokens; special ones are passed over."""
    return tokenizer.decode(tokens).strip()


def encoded(texts: Texts, tokenizer: Tokenizer, length: int) -> Corpus:
    """All sentences of at most `length` tokens, END included, as arrays on the host.

    Raises:
      LanguageDataError: a style has none so short.
    """
    parts = []
    for style, (name, sentences) in enumerate(texts.sentences.items()):
        rows = [x for x in tokens_of(tokenizer, sentences) if 0 < len(x) < length]
        if not rows:
            raise LanguageDataError(
                f"the style {name!r} has no sentence of at most {length - 1} tokens: "
                "raise the length"
            )
        parts.append(_packed(rows, length, tokenizer, style))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _packed(
    rows: Sequence[Sequence[int]], length: int, tokenizer: Tokenizer, style: int
) -> Corpus:
    tokens = np.full((len(rows), length), tokenizer.pad, np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row) + 1] = [*row, tokenizer.end]
    count = np.array([len(row) + 1 for row in rows])
    mask = np.arange(length)[None] < count[:, None]
    whole = np.full(len(rows), style, np.int32)
    return Corpus(tokens, mask, whole)  # type: ignore[arg-type]


def parted(corpus: Corpus, sizes: Sequence[int], seed: int) -> list[Corpus]:
    """Disjoint random parts with so many sentences of each style.

    Raises:
      LanguageDataError: a style has fewer than all parts together need.
    """
    style = np.asarray(corpus.style)
    generator = np.random.default_rng(seed)
    cuts = np.cumsum(sizes)
    orders = []
    for s in np.unique(style):
        rows = generator.permutation(np.flatnonzero(style == s))
        if len(rows) < cuts[-1]:
            raise LanguageDataError(
                f"style {s} has {len(rows)} sentences, the parts {tuple(sizes)} need "
                f"{cuts[-1]}: give more text or smaller parts"
            )
        orders.append(np.split(rows[: cuts[-1]], cuts[:-1]))
    chosen = [np.concatenate(part) for part in zip(*orders, strict=True)]
    return [
        jax.tree.map(lambda x, i=i: jnp.asarray(np.asarray(x)[i]), corpus)
        for i in chosen
    ]


def asked(corpus: Corpus, begin: int) -> Prompts:
    """Prompts `[N, T]`: each sentence, BEGIN in the place of its END, to the right."""
    count = jnp.sum(corpus.mask, axis=1, keepdims=True)
    size = corpus.tokens.shape[1]
    place = jnp.arange(size)[None]
    last = place == count - 1
    tokens = jnp.where(last, begin, corpus.tokens)
    source = place - (size - count)
    moved = jnp.take_along_axis(tokens, jnp.clip(source, 0, size - 1), axis=1)
    mask = source >= 0
    return Prompts(jnp.where(mask, moved, 0), mask)


def vocabulary(texts: Texts) -> set[str]:
    """All words of all styles."""
    return {
        w for rows in texts.sentences.values() for x in rows for w in styles.words(x)
    }
