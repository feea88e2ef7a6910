"""Normalised adjacency against the formula, the bipartite block against the whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import graph


def whole(weights: np.ndarray) -> np.ndarray:
    """The adjacency of a graph of two sides."""
    m, n = weights.shape
    return np.block([[np.zeros((m, m)), weights], [weights.T, np.zeros((n, n))]])


def by_formula(adjacency: np.ndarray) -> np.ndarray:
    degree = adjacency.sum(axis=1)
    root = np.diag([d**-0.5 if d > 0 else 0.0 for d in degree])
    return root @ adjacency @ root


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    generator = np.random.default_rng(0)
    weights = generator.random((5, 4)) * (generator.random((5, 4)) < 0.6)
    weights[2] = 0.0  # a node without edges
    return weights


def test_it_is_the_formula(weights):
    adjacency = whole(weights)
    found = graph.normalised_adjacency(jnp.float32(adjacency))
    np.testing.assert_allclose(found, by_formula(adjacency), atol=1e-6)
    assert np.linalg.norm(np.asarray(found), 2) <= 1 + 1e-6  # eigenvalues in [-1, 1]


def test_absent_nodes_are_as_if_they_were_not_there(weights):
    adjacency = whole(weights)
    where = np.array([1, 1, 1, 0, 1, 1, 0, 1, 1], bool)
    found = graph.normalised_adjacency(jnp.float32(adjacency), jnp.asarray(where))
    expected = by_formula(adjacency[np.ix_(where, where)])
    np.testing.assert_allclose(found[where][:, where], expected, atol=1e-6)
    assert not np.any(np.asarray(found)[~where])


def test_the_bipartite_block_is_that_of_the_whole(weights):
    block = graph.normalised_bipartite(jnp.float32(weights))
    np.testing.assert_allclose(
        whole(np.asarray(block)), by_formula(whole(weights)), atol=1e-6
    )


def test_gradients_are_finite_where_a_node_has_no_edge(weights):
    gradient = jax.grad(lambda w: jnp.sum(graph.normalised_bipartite(w) ** 2))
    assert np.all(np.isfinite(gradient(jnp.float32(weights))))


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(AssertionError):
        graph.normalised_adjacency(jnp.ones((3, 4)))
