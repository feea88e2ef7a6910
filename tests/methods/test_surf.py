"""SURF: worked numbers, and PEBBLE where nothing of it is left."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import probe
from rlx import train
from rlx.methods import pebble, surf
from tests.methods.preference_learning import PEBBLE, replay_case


def conformance_cases():
    return {"pendulum": replay_case(surf, length=5, crop=1)}


def test_worked_numbers():
    # σ(5) = 0.9933, σ(3) = 0.9526: at τ = 0.99 only |Δ̄| = 5 is sure.
    own = jnp.array([5.0, -5.0, 3.0])
    difference = jnp.log(jnp.array([3.0, 3.0, 3.0]))
    losses = surf.loss(difference, own, confidence=0.99)
    np.testing.assert_allclose(losses, [np.log(4 / 3), np.log(4.0), 0.0], rtol=1e-6)
    own_gradient = jax.grad(lambda x: surf.loss(difference, x, confidence=0.99).sum())(
        own
    )
    np.testing.assert_array_equal(own_gradient, 0.0)


def test_without_its_additions_it_is_pebble():
    """Same labels and steps: only the draw of minibatches has other keys."""
    spec = probe.make("pendulum", time_limit=8).spec
    _, source = replay_case(pebble)
    off = {"unlabelled_weight": 0.0, "crop": 0}
    # Batches that hold every label with one member each: draws make no difference
    # where all labels are one.
    fields = {**PEBBLE, "num_labels": 1, "queries_per_session": 1}

    def run(module, **more):
        method = module.make(spec, module.Config(**{**fields, **more}))
        state = train.init(method, source, jax.random.key(0))
        state, metrics = jax.jit(lambda s: train.run(method, source, s, 3))(state)
        return state.learner, metrics

    mine, metrics = run(surf, **off)
    theirs, _ = run(pebble)
    assert metrics["asked"][-1] == 1
    assert metrics["reward_steps"][-1] > 0
    chex.assert_trees_all_close(mine.params, theirs.params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"confidence": 0.3}, "confidence"),
        ({"unlabelled_ratio": 0}, "unlabelled_ratio"),
        ({"crop": 3}, "crop must lie"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    spec = probe.make("pendulum").spec
    with pytest.raises(ValueError, match=message):
        surf.make(spec, surf.Config(**{**PEBBLE, **fields}))


def test_segments_without_margins_are_refused():
    method, source = replay_case(surf, length=3, crop=1)
    with pytest.raises(ValueError, match="same segment length"):
        jax.eval_shape(
            lambda: train.step(
                method, source, train.init(method, source, jax.random.key(0))
            )
        )
