"""Numbers about a conversation, and how sharply they weigh its candidates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs import conversation
from envs.conversation import unicorn as unicorn_env
from rlx.methods import unicorn
from rlx.ops import conversation as ops

WORLD = conversation.World(num_users=3, num_items=70, num_attributes=24, most=6)
SHARPNESS = 3.0


def test_weights_by_hand():
    scores, candidate = jnp.array([1.0, 0.0, -1.0, 5.0]), jnp.array([1, 1, 1, 0], bool)
    plain = ops.weights(scores, candidate)
    np.testing.assert_allclose(plain, [0.7310586, 0.5, 0.2689414, 0], rtol=1e-6)
    sharp = ops.weights(scores, candidate, 2.0)
    np.testing.assert_allclose(sharp, [1, np.exp(-2), np.exp(-4), 0], rtol=1e-6)
    nobody = ops.weights(scores, jnp.zeros(4, bool), 2.0)
    np.testing.assert_array_equal(nobody, np.zeros(4))


@pytest.mark.parametrize("dense", [True, False])
def test_sharp_features_and_the_same_edges(dense: bool) -> None:
    catalogue = conversation.synthetic(WORLD, dense=dense)
    plain = unicorn_env.make(catalogue)
    sharp = unicorn_env.make(catalogue, sharpness=SHARPNESS)
    _, seen = conversation.make(catalogue).reset(jax.random.key(1))
    _, before = plain.reset(jax.random.key(1))
    _, graph = sharp.reset(jax.random.key(1))
    for name in ("items", "weights", "rest", "item_actions", "attribute_actions"):
        np.testing.assert_array_equal(getattr(graph, name), getattr(before, name))
    np.testing.assert_array_equal(graph.features[:-1], before.features[:-1])

    scores = np.asarray(ops.scores(catalogue, seen), float)
    inside = np.asarray(seen.candidate)
    weights = np.where(inside, np.exp(SHARPNESS * (scores - scores[inside].max())), 0)
    shares = weights / weights.sum()
    best = np.sort(shares)[::-1][:10]
    np.testing.assert_allclose(graph.features[-1], best.sum(), rtol=1e-5)
    np.testing.assert_allclose(graph.action_features[:10, 1], best, rtol=1e-4)

    known = unicorn.knowledge_of(sharp.spec)
    has = np.asarray(known.has(jnp.arange(70), jnp.arange(24)))
    for row, attribute in zip(
        np.asarray(graph.action_features[10:]), graph.attribute_actions, strict=True
    ):
        if attribute < 0:
            np.testing.assert_array_equal(row, np.zeros(3))
            continue
        q = shares @ has[:, int(attribute)]
        bits = -q * np.log2(q) - (1 - q) * np.log2(1 - q) if 0 < q < 1 else 0.0
        np.testing.assert_allclose(row, [0, q, bits], rtol=1e-4, atol=1e-5)


def test_sharpness_is_an_option_of_graphs_by_name() -> None:
    few = {"num_users": 3, "num_items": 70, "num_attributes": 24, "seed": 0}
    name = "conversation/synthetic_graph"
    made = (envs.make(name, **few), envs.make(name, **few, graph_sharpness=SHARPNESS))
    plain, sharp = (env.reset(jax.random.key(1))[1] for env in made)
    np.testing.assert_array_equal(plain.items, sharp.items)
    assert not np.array_equal(plain.action_features, sharp.action_features)
    with pytest.raises(TypeError, match="graph_sharpness"):
        envs.make("conversation/synthetic", **few, graph_sharpness=SHARPNESS)
