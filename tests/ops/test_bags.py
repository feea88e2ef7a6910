"""Bags and bigrams against counting by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import bags

WORDS, ROWS, LENGTH = 7, 60, 6
GENERATOR = np.random.default_rng(0)
COUNT = GENERATOR.integers(1, LENGTH + 1, ROWS)
MASK = np.arange(LENGTH)[None] < COUNT[:, None]
TOKENS = np.where(MASK, GENERATOR.integers(2, WORDS, (ROWS, LENGTH)), 0)


def texts() -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(TOKENS, COUNT, strict=True)]


def test_document_frequencies_are_counted_once_a_row() -> None:
    found = bags.inverse_document_frequency(
        jnp.asarray(TOKENS), jnp.asarray(MASK), WORDS
    )
    expected = [
        np.log((1 + ROWS) / (1 + sum(word in row for row in texts())))
        for word in range(WORDS)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_pairs_are_counted_at_their_distance() -> None:
    found = bags.pair_counts(jnp.asarray(TOKENS), jnp.asarray(MASK), WORDS, 2)
    expected = np.zeros((WORDS, WORDS))
    for row in texts():
        for one, two in zip(row, row[2:], strict=False):
            expected[one, two] += 1
    np.testing.assert_array_equal(found, expected)


def test_bigrams_are_smoothed_frequencies() -> None:
    found = bags.bigrams(
        jnp.asarray(TOKENS), jnp.asarray(MASK), num_words=WORDS, begin=1, strength=2.0
    )
    count = np.zeros((WORDS, WORDS))
    for row in texts():
        for one, two in zip([1, *row], row, strict=False):
            count[one, two] += 1
    single = 1 + count.sum(axis=0)
    single = single / single.sum()
    expected = (count + 2 * single) / (count.sum(axis=1, keepdims=True) + 2)
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-4)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-5)


def test_vectors_keep_the_mutual_information() -> None:
    """With all of its eigenpairs the matrix comes back, up to signs of eigenvalues."""
    tokens, mask = jnp.asarray(TOKENS), jnp.asarray(MASK)
    found = bags.word_vectors(tokens, mask, num_words=WORDS, width=WORDS, window=2)
    count = np.zeros((WORDS, WORDS))
    for row in texts():
        for distance in (1, 2):
            for one, two in zip(row, row[distance:], strict=False):
                count[one, two] += 1
                count[two, one] += 1
    total = count.sum(axis=1)
    expected = np.outer(total, total) / total.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.maximum(np.log(count / expected), 0)
    information = np.where(count > 0, information, 0)
    value, vector = np.linalg.eigh(information)
    whole = (vector * np.abs(value)) @ vector.T
    length = np.sqrt(np.diag(whole))
    there = total > 0
    cosine = whole[there][:, there] / np.outer(length[there], length[there])
    found = np.asarray(found)
    np.testing.assert_allclose(found[there] @ found[there].T, cosine, atol=1e-4)
    np.testing.assert_array_equal(found[~there], 0.0)
    with pytest.raises(ValueError, match="width=9 must lie in"):
        bags.word_vectors(tokens, mask, num_words=WORDS, width=9)


def test_likeness_of_texts() -> None:
    tokens, mask = jnp.asarray(TOKENS), jnp.asarray(MASK)
    vectors = bags.text_vectors(tokens, mask, num_words=WORDS, width=WORDS, window=2)
    itself = bags.likeness(vectors, tokens, mask, tokens, mask)
    np.testing.assert_allclose(itself, 1.0, atol=1e-5)
    back = jnp.flip(tokens, axis=0), jnp.flip(mask, axis=0)
    one = bags.likeness(vectors, tokens, mask, *back)
    two = bags.likeness(vectors, *back, tokens, mask)
    np.testing.assert_allclose(one, two, atol=1e-6)
    assert (one >= 0).all() and (one <= 1).all() and float(jnp.min(one)) < 0.5
    nothing = bags.likeness(vectors, tokens, mask, tokens, jnp.zeros_like(mask))
    np.testing.assert_array_equal(nothing, 0.0)


def test_order_and_padding_do_not_count() -> None:
    vectors = jax.random.normal(jax.random.key(0), (WORDS, 4))
    one = jnp.array([[3, 4, 5, 0]]), jnp.array([[True, True, True, False]])
    two = jnp.array([[6, 5, 3, 4]]), jnp.array([[False, True, True, True]])
    found = bags.likeness(vectors, *one, *two)
    np.testing.assert_allclose(found, 1.0, rtol=1e-5)


def test_texts_have_no_common_direction() -> None:
    tokens, mask = jnp.asarray(TOKENS), jnp.asarray(MASK)
    vectors = bags.text_vectors(tokens, mask, num_words=WORDS, width=WORDS)
    values = np.linalg.svd(np.asarray(vectors), compute_uv=False)
    assert values[-1] < 1e-5 * values[0]  # one direction is gone
