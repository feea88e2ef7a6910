"""The encoder of UNICORN: the dense formula, permutations, padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.networks import gnn
from tests.ops.test_graph import by_formula, whole

SIZE = 8
ARCHITECTURE = gnn.GraphArchitecture(
    hidden_size=SIZE, num_convolutions=2, num_heads=2, feedforward=16
)


@pytest.fixture(scope="module")
def case():
    """Nodes: 5 items; a user, 3 accepted attributes, 2 others."""
    generator = np.random.default_rng(1)
    weights = np.float32(generator.random((5, 6)) * (generator.random((5, 6)) < 0.7))
    items, others = (np.float32(generator.normal(size=(n, 4))) for n in (5, 6))
    accepted = np.ones(3, bool)
    encoder = gnn.GraphEncoder(ARCHITECTURE)
    inputs = (items, others, weights, accepted)
    params = encoder.init(jax.random.key(0), *inputs)
    # Biases that are not 0, so that a missing one shows.
    params = jax.tree.map(lambda x: x + 0.05, params)
    return encoder, params, inputs


def relu(x):
    return np.maximum(x, 0.0)


def test_convolutions_are_the_dense_formula(case):
    _, params, (items, others, weights, _) = case
    hidden = np.concatenate([items, others])
    around = by_formula(whole(weights))
    left, right = jnp.asarray(items), jnp.asarray(others)
    for i in range(2):
        layer = params["params"][f"convolution_{i}"]
        left, right = gnn.BipartiteConvolution(SIZE).apply(
            {"params": layer}, left, right, weights
        )
        layer = jax.tree.map(np.asarray, layer)
        own = hidden @ layer["own"]["kernel"] + layer["own"]["bias"]
        hidden = relu(around @ hidden @ layer["neighbours"]["kernel"] + own)
        np.testing.assert_allclose(np.concatenate([left, right]), hidden, atol=1e-5)


def test_a_plain_convolution_is_a_sum_over_neighbours(case):
    _, _, (items, others, weights, _) = case
    module = gnn.BipartiteConvolution(SIZE, plain=True)
    variables = module.init(jax.random.key(0), items, others, weights)
    left, right = module.apply(variables, items, others, weights)
    kernel = variables["params"]["neighbours"]["kernel"]
    expected = whole(weights) @ np.concatenate([items, others]) @ kernel
    np.testing.assert_allclose(np.concatenate([left, right]), expected, atol=1e-5)


def test_the_order_of_candidates_does_not_matter(case):
    encoder, params, (items, others, weights, accepted) = case
    order = np.array([3, 0, 4, 1, 2])
    plain = encoder.apply(params, items, others, weights, accepted)
    turned = encoder.apply(params, items[order], others, weights[order], accepted)
    np.testing.assert_allclose(plain, turned, atol=1e-5)
    swapped = others.copy()
    swapped[[4, 5]] = others[[5, 4]]  # attributes that are not accepted
    edges = weights[:, [0, 1, 2, 3, 5, 4]]
    turned = encoder.apply(params, items, swapped, edges, accepted)
    np.testing.assert_allclose(plain, turned, atol=1e-5)
    assert np.abs(plain).max() > 0.01


def test_padding_changes_nothing(case):
    encoder, params, (items, others, weights, accepted) = case
    plain = encoder.apply(params, items, others, weights, accepted)
    # Two items, two turns and an attribute that are not there, full of numbers.
    items = np.concatenate([items, np.full((2, 4), 9.0)])
    others = np.insert(others, [4, 4, 6], 7.0, axis=0)
    weights = np.insert(np.pad(weights, ((0, 2), (0, 0))), [4, 4, 6], 0.0, axis=1)
    accepted = np.array([True] * 3 + [False] * 2)
    padded = encoder.apply(params, items, others, weights, accepted)
    np.testing.assert_allclose(plain, padded, atol=1e-5)


def test_attention_across_the_batch_depends_on_the_batch():
    inputs = jax.random.normal(jax.random.key(0), (3, 2, 4))
    where = jnp.array([[True, False]] * 3)
    results = []
    for kind in (gnn.SequenceEncoder, gnn.AcrossBatchEncoder):
        module = kind(num_heads=2, feedforward=8)
        variables = module.init(jax.random.key(1), inputs, where)
        together = module.apply(variables, inputs, where)
        alone = module.apply(variables, inputs[:1], where[:1])
        results.append(float(jnp.abs(together[:1] - alone).max()))
    assert results[0] < 1e-5 < 1e-3 < results[1]


def test_nothing_accepted_is_no_nan(case):
    encoder, params, (items, others, weights, _) = case
    state = encoder.apply(params, items, others, weights, np.zeros(3, bool))
    assert np.all(np.isfinite(state))


def test_actions_that_are_not_allowed_change_no_value():
    heads = gnn.ActionHeads(ARCHITECTURE)
    state = jax.random.normal(jax.random.key(0), (SIZE,))
    actions = jax.random.normal(jax.random.key(1), (3, 4))
    allowed = jnp.array([True, True, False])
    params = heads.init(jax.random.key(2), state, actions, allowed)
    one = heads.apply(params, state, actions, allowed)
    two = heads.apply(params, state, actions.at[2].set(5.0), allowed)
    np.testing.assert_allclose(one[:2], two[:2], atol=1e-6)
