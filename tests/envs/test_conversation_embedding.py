"""Embeddings: normal equations, translations, and no look at held-out interactions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import conversation
from envs.conversation import embedding, files

CONFIG = embedding.TransEConfig(size=16, batch_size=256, learning_rate=0.01, epochs=60)


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> files.EdgeLists:
    """A latent world as a file: 24 users, 60 items, 12 attributes."""
    generator = np.random.default_rng(0)
    users, items, attributes = (generator.normal(size=(n, 4)) for n in (24, 60, 12))
    belongs = np.argsort(-items @ attributes.T, axis=1)[:, :3]
    taken = np.argsort(-users @ items.T, axis=1)[:, :14]
    taken = generator.permuted(taken, axis=1)
    path = tmp_path_factory.mktemp("lists") / "lists.npz"
    parts = np.split(taken, [10, 12], axis=1)
    named = zip(files.SPLITS, parts, strict=True)
    np.savez(
        path,
        item_attribute=rows(belongs),
        user_friend=rows((np.arange(24)[:, None] + [1, 2]) % 24),
        user_attribute=rows(np.argsort(-users @ attributes.T, axis=1)[:, :2]),
        **{f"interaction_{split}": rows(part) for split, part in named},
    )
    return files.load(path)


def rows(table: np.ndarray) -> np.ndarray:
    first = np.repeat(np.arange(len(table)), table.shape[1])
    return np.stack([first, table.ravel()], axis=1)


@pytest.fixture(scope="module")
def made(lists) -> embedding.TransE:
    return embedding.transe(embedding.facts(lists), jax.random.key(0), CONFIG)


def catalogue(lists, vectors):
    return conversation.catalogue(
        lists.item_attribute,
        **vectors._asdict(),
        interactions=lists.interactions["test"],
    )


def test_no_held_out_interaction_reaches_embeddings_or_graph(lists, made) -> None:
    """Other validation and test splits change nothing; another training split does."""
    generator = np.random.default_rng(1)
    anything = np.stack([generator.integers(0, n, 40) for n in (24, 60)], axis=1)
    other = {**lists.interactions, "valid": anything, "test": anything[::-1]}
    changed = dataclasses.replace(lists, interactions=other)
    before, after = embedding.facts(lists), embedding.facts(changed)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x, y)
    first = embedding.cold_aware(before, embedding.als(before))
    second = embedding.cold_aware(after, embedding.als(after))
    again = embedding.transe(after, jax.random.key(0), CONFIG)
    for x, y in zip((*first, *made.vectors), (*second, *again.vectors), strict=True):
        np.testing.assert_array_equal(x, y)
    one, two = catalogue(lists, first), catalogue(changed, second)
    np.testing.assert_array_equal(one.links.has, two.links.has)
    np.testing.assert_array_equal(one.links.affinity, two.links.affinity)
    assert not np.array_equal(one.interactions, two.interactions)
    trained = {**lists.interactions, "train": anything}
    third = embedding.facts(dataclasses.replace(lists, interactions=trained))
    assert not np.array_equal(embedding.als(third).items, embedding.als(before).items)


def test_likes_can_be_left_out(lists) -> None:
    assert len(lists.user_attribute)
    assert not len(embedding.facts(lists, likes=False).like)


def test_least_squares_minimises_the_weighted_error() -> None:
    """Against all cells of the matrix, weighed one by one."""
    generator = np.random.default_rng(2)
    other, taken = generator.normal(size=(7, 3)), np.array([1, 4])
    found = embedding.least_squares(other, [taken, np.array([], int)], 20.0, 0.5)
    cells = np.isin(np.arange(7), taken).astype(float)
    root = np.sqrt(1 + 20 * cells)[:, None]
    matrix = np.concatenate([root * other, np.sqrt(0.5) * np.eye(3)])
    target = np.concatenate([root[:, 0] * cells, np.zeros(3)])
    expected = np.linalg.lstsq(matrix, target, rcond=None)[0]
    np.testing.assert_allclose(found[0], expected, rtol=1e-9)
    np.testing.assert_array_equal(found[1], 0)


def test_factors_rank_what_was_held_out(lists) -> None:
    known = embedding.facts(lists)
    vectors = embedding.als(known, size=4, penalty=1.0)
    scores = vectors.users @ vectors.items.T
    scores[tuple(known.interact.T)] = -np.inf
    rank = np.argsort(np.argsort(-scores, axis=1), axis=1)
    test = lists.interactions["test"]
    # 50 items are left: a guess has a mean rank of 24.5.
    assert rank[tuple(test.T)].mean() < 12


def test_attributes_are_shrunk_means_and_items_lean_on_them(lists) -> None:
    known = embedding.facts(lists)
    plain = embedding.als(known)
    leaning = embedding.cold_aware(known, plain, share=0.5)
    belongs = np.zeros((60, 12))
    belongs[tuple(known.belong_to.T)] = 1
    count = belongs.sum(axis=0)[:, None]
    expected = belongs.T @ plain.items / (count + 20)
    np.testing.assert_allclose(plain.attributes, expected, atol=1e-6)
    mean = belongs @ plain.attributes / belongs.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(leaning.items - plain.items, 0.5 * mean, atol=1e-6)
    np.testing.assert_array_equal(leaning.attributes, plain.attributes)
    cold = np.setdiff1d(np.arange(60), known.interact[:, 1])
    assert len(cold)
    np.testing.assert_array_equal(plain.items[cold], 0)
    assert np.abs(leaning.items[cold]).max(axis=1).min() > 0


def test_replacements_keep_kind_and_change_one_side(lists) -> None:
    triples, ranges = embedding._triples(embedding.facts(lists))
    other = np.asarray(
        embedding.corrupt(jnp.array(triples), jnp.array(ranges), jax.random.key(1))
    )
    np.testing.assert_array_equal(other[:, 1], triples[:, 1])
    changed = other != triples
    assert not np.any(changed[:, 0] & changed[:, 2])
    assert 0.4 < changed[:, 0].mean() < 0.6 and 0.4 < changed[:, 2].mean() < 0.6
    ends = [0, 24, 84, 96]
    for side in (0, 2):
        np.testing.assert_array_equal(
            np.searchsorted(ends, other[:, side], "right"),
            np.searchsorted(ends, triples[:, side], "right"),
        )


def test_entities_stay_on_the_sphere_and_the_loss_falls(made) -> None:
    for part in made.vectors:
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, rtol=1e-5)
    assert made.losses[-1] < 0.4 * made.losses[0]


def test_translations_find_held_out_edges() -> None:
    """In a latent world with enough edges; in a tiny one there is nothing to find."""
    generator = np.random.default_rng(0)
    users, items, attributes = (generator.normal(size=(n, 4)) for n in (60, 200, 24))
    belongs = rows(np.argsort(-items @ attributes.T, axis=1)[:, :5])
    held_out, kept = np.split(generator.permutation(belongs), [100])
    none = np.zeros((0, 2), int)
    taken = rows(np.argsort(-users @ items.T, axis=1)[:, :20])
    known = embedding.Facts(60, 200, 24, taken, none, none, kept)
    found = embedding.transe(known, jax.random.key(0), CONFIG)
    # Among some twenty attributes a guess has 0.18: the mean of 1/1 ... 1/20.
    assert embedding.reciprocal_rank(found, kept, held_out) > 0.4
    shuffled = found.vectors._replace(items=found.vectors.items[::-1])
    wrong = found._replace(vectors=shuffled)
    assert embedding.reciprocal_rank(wrong, kept, held_out) < 0.27


def test_impossible_settings_are_named(lists) -> None:
    with pytest.raises(ValueError, match="margin must be positive"):
        embedding.TransEConfig(margin=0)
    nothing = embedding.facts(lists)._replace(interact=np.zeros((0, 2), int))
    with pytest.raises(ValueError, match="no training interaction"):
        embedding.als(nothing)
    with pytest.raises(ValueError, match="no training interaction"):
        embedding.transe(nothing, jax.random.key(0))
