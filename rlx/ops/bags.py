"""Texts as bags of words, and as pairs of neighbours: what needs no network.

    vectors = text_vectors(tokens, mask, num_words=V, width=64)     # from a corpus
    likeness(vectors, source, source_mask, rewrite, rewrite_mask)   # [N] in [0, 1]
    bigrams(tokens, mask, num_words=V, begin=BEGIN)                 # [V, V] log P

N rows of T tokens, V words, d the width of a vector.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array


def inverse_document_frequency(tokens: Array, mask: Array, num_words: int) -> Array:
    """log((1 + N) / (1 + rows that hold the word)), `float32[V]`.

    Args:
      tokens: `int[N, T]`.
      mask: `bool[N, T]`.
      num_words: V.

    Raises:
      AssertionError: shapes differ.
    """
    chex.assert_rank(tokens, 2)
    chex.assert_equal_shape([tokens, mask])
    ordered = jnp.sort(jnp.where(mask, tokens, num_words), axis=1)
    first = jnp.pad(ordered[:, 1:] != ordered[:, :-1], ((0, 0), (1, 0)))
    first = first.at[:, 0].set(True)
    rows = jnp.zeros(num_words).at[ordered].add(first, mode="drop")
    return jnp.log((1.0 + tokens.shape[0]) / (1.0 + rows))


def pair_counts(tokens: Array, mask: Array, num_words: int, distance: int) -> Array:
    """How often the second word stands `distance` places after the first, `[V, V]`."""
    chex.assert_rank(tokens, 2)
    chex.assert_equal_shape([tokens, mask])
    one, two = tokens[:, :-distance], tokens[:, distance:]
    both = mask[:, :-distance] & mask[:, distance:]
    return jnp.zeros((num_words, num_words)).at[one, two].add(both)


def word_vectors(
    tokens: Array, mask: Array, *, num_words: int, width: int, window: int = 4
) -> Array:
    """Vectors of unit length from who stands near whom, `float32[V, d]`.

    The d greatest eigenpairs of the positive pointwise mutual information within a
    window, as U √|λ| (Levy & Goldberg 2014, "Neural word embedding as implicit matrix
    factorization"). Words that never occur have the vector 0.

    Args:
      tokens: `int[N, T]` a corpus.
      mask: `bool[N, T]`.
      num_words: V.
      width: d <= V.
      window: how far apart two words may stand, on either side.

    Raises:
      ValueError: the width exceeds V.
    """
    if not 1 <= width <= num_words:
        raise ValueError(f"width={width} must lie in 1 ... num_words={num_words}")
    count = sum(
        pair_counts(tokens, mask, num_words, distance)
        for distance in range(1, min(window, tokens.shape[1] - 1) + 1)
    )
    count = count + jnp.transpose(count)
    total = jnp.sum(count, axis=1)
    expected = jnp.outer(total, total) / jnp.maximum(jnp.sum(total), 1.0)
    seen = count > 0
    ratio = jnp.where(seen, count, 1.0) / jnp.where(seen, expected, 1.0)
    information = jnp.maximum(jnp.log(ratio), 0.0)
    value, vector = jnp.linalg.eigh(information)
    chosen = jnp.argsort(-jnp.abs(value))[:width]
    found = vector[:, chosen] * jnp.sqrt(jnp.abs(value[chosen]))[None]
    return jnp.where(total[:, None] > 0, _unit(found), 0.0)


def text_vectors(
    tokens: Array, mask: Array, *, num_words: int, width: int, window: int = 4
) -> Array:
    """Vectors of words whose sums are vectors of texts, `float32[V, d]`.

    `word_vectors` times inverse document frequencies, without the direction that the
    texts of the corpus have in common (Arora et al. 2017, "A simple but tough-to-beat
    baseline for sentence embeddings").

    Args and raises: see `word_vectors`.
    """
    vectors = word_vectors(
        tokens, mask, num_words=num_words, width=width, window=window
    )
    weight = inverse_document_frequency(tokens, mask, num_words)
    weighed = weight[:, None] * vectors
    texts = _unit(bag(weighed, tokens, mask))
    common = jnp.linalg.eigh(texts.T @ texts)[1][:, -1]
    return weighed - jnp.outer(weighed @ common, common)


def bag(vectors: Array, tokens: Array, mask: Array) -> Array:
    """The sum of the vectors `[V, d]` of a text's words, `float[..., d]`."""
    chex.assert_equal_shape([tokens, mask])
    return jnp.sum(vectors[tokens] * mask[..., None], axis=-2)


def likeness(
    vectors: Array, one: Array, one_mask: Array, two: Array, two_mask: Array
) -> Array:
    """max(0, cosine) of two texts' bags, `float[...]` in [0, 1]; 0 for an empty text.

    Args:
      vectors: `[V, d]`, see `text_vectors`.
      one: `int[..., T]`.
      one_mask: `bool[..., T]`.
      two: `int[..., U]`.
      two_mask: `bool[..., U]`.
    """
    first, second = bag(vectors, one, one_mask), bag(vectors, two, two_mask)
    found = jnp.sum(_unit(first) * _unit(second), axis=-1)
    return jnp.clip(found, 0.0, 1.0)


def bigrams(
    tokens: Array, mask: Array, *, num_words: int, begin: int, strength: float = 5.0
) -> Array:
    """Log P(next word | word) of a corpus, `float32[V, V]`.

    P = (count + m P₁) / (total + m), where P₁ are the frequencies of single words, one
    added to each count (MacKay & Peto 1995, "A hierarchical Dirichlet language model").

    Args:
      tokens: `int[N, T]`, padded on the right, with the token that ends a text.
      mask: `bool[N, T]`.
      num_words: V.
      begin: the word whose followers are the first words of texts.
      strength: m > 0, in words.

    Raises:
      AssertionError: shapes differ.
    """
    ahead = ((0, 0), (1, 0))
    rows = jnp.pad(tokens, ahead, constant_values=begin)
    there = jnp.pad(mask, ahead, constant_values=True)
    count = pair_counts(rows, there, num_words, 1)
    single = 1.0 + jnp.sum(count, axis=0)
    single = single / jnp.sum(single)
    total = jnp.sum(count, axis=1, keepdims=True)
    return jnp.log((count + strength * single[None]) / (total + strength))


def _unit(x: Array) -> Array:
    """Rows of length one; 0 stays 0."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return jnp.where(square > 0, x * jax.lax.rsqrt(jnp.maximum(square, 1e-30)), 0.0)
