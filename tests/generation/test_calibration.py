"""Gates: what they change, what they cost, and that they find the head that matters."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.generation import calibration, heads
from rlx.generation.calibration import Examples, Options
from rlx.networks import transformer
from rlx.ops import sparse_attention

CONFIG = transformer.Config(
    vocabulary_size=7, width=16, num_layers=2, num_heads=4, num_kv_heads=2
)
LIMITS = (2, 3)
TOKENS = jax.random.randint(jax.random.key(1), (2, 12), 0, 7)
ANSWERS = jnp.zeros((2, 12), bool).at[:, 9:].set(True)
BATCH = Examples(TOKENS, ANSWERS)
ONES = jnp.ones((2, 2))


@functools.cache
def params() -> dict:
    made = transformer.init(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda x: 8 * x, made)


def hidden(gates: jax.Array, batch: Examples = BATCH) -> jax.Array:
    return calibration.gated_hidden(CONFIG, LIMITS, gates, params(), batch)


def test_open_gates_change_nothing() -> None:
    exact, _ = transformer.hidden(CONFIG, params(), TOKENS)
    np.testing.assert_allclose(hidden(ONES), exact, rtol=1e-5, atol=1e-5)
    apart = calibration._distances(CONFIG, LIMITS, ONES, params(), BATCH)[0]
    assert float(apart) < 1e-10


def test_closed_gates_are_streaming_heads() -> None:
    """The first layer's alone: what it leaves is what the oracle's attention gives."""
    shallow = transformer.Config(**{**vars(CONFIG), "num_layers": 1})
    weights = {**params(), "layers": jax.tree.map(lambda x: x[:1], params()["layers"])}
    gates = jnp.array([[1.0, 0.0]])
    found = calibration.gated_hidden(shallow, LIMITS, gates, weights, BATCH)
    layer = jax.tree.map(lambda x: x[0], weights["layers"])
    place = jnp.broadcast_to(jnp.arange(12), (2, 12))
    x = transformer.embed(shallow, weights, TOKENS, place)
    read = transformer.queries_keys_values(shallow, layer, x, place)
    queries, keys, values = (jnp.swapaxes(read[0], 1, 2), *read[1:])
    causal, near = (
        sparse_attention.streaming_mask(place[0], place[0], *limits)
        for limits in ((0, 12), LIMITS)
    )
    seen = jnp.stack([causal, causal, near, near])[None]  # two heads to a group
    keys, values = (jnp.repeat(x, 2, axis=1) for x in (keys, values))
    mixed = sparse_attention.masked(queries, keys, values, seen)
    mixed = jnp.swapaxes(mixed, 1, 2)
    x = transformer.after_attention(shallow, layer, x, mixed)
    wanted = transformer.normalize(shallow, weights["final"], x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    half = calibration.gated_hidden(shallow, LIMITS, gates / 2 + 0.5, weights, BATCH)
    assert np.abs(half - found).max() > 1e-3


def test_padding_on_the_left_moves_nothing() -> None:
    gates = jnp.array([[0.3, 0.8], [0.0, 0.5]])
    padded = jnp.pad(TOKENS, ((0, 0), (4, 0)))
    mask = jnp.pad(jnp.ones((2, 12), bool), ((0, 0), (4, 0)))
    found = hidden(gates, Examples(padded, jnp.zeros_like(mask), mask))
    np.testing.assert_allclose(found[:, 4:], hidden(gates), rtol=1e-4, atol=1e-5)


def test_the_penalty_pulls_every_gate_alike() -> None:
    gates = jnp.array([[0.5, 1.0], [0.1, 0.7]])
    slope = jax.grad(calibration.loss)(gates, jnp.float32(3.0), 0.05)
    np.testing.assert_allclose(slope, np.full((2, 2), 0.05 / 4), rtol=1e-6)


def test_gates_have_the_slope_of_finite_differences() -> None:
    gates = jnp.array([[0.5, 0.9], [0.2, 0.7]])

    def apart(gates: jax.Array) -> jax.Array:
        return calibration._distances(CONFIG, LIMITS, gates, params(), BATCH)[0]

    slope, small = jax.grad(apart)(gates), 1e-2
    for i, j in np.ndindex(2, 2):
        up, down = (apart(gates.at[i, j].add(s)) for s in (small, -small))
        np.testing.assert_allclose(
            slope[i, j], (up - down) / (2 * small), rtol=0.05, atol=1e-5
        )


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("per_layer", [False, True])
def test_as_many_heads_stream_as_are_asked_for(share: float, per_layer: bool) -> None:
    gates = jnp.clip(jax.random.normal(jax.random.key(2), (3, 4)), 0, 1)  # with ties
    kept = calibration.binarise(gates, share, jax.random.key(3), per_layer=per_layer)
    assert abs((~kept).sum() - share * 12) <= (1.5 if per_layer else 0.5)
    if per_layer:
        assert len(set(kept.sum(axis=1).tolist())) == 1
    if 0 < share < 1 and not per_layer:
        assert gates[kept].min() >= gates[~kept].max() - 1e-6


def test_heads_that_matter_keep_their_gates() -> None:
    """Only one group's values reach the output: it retrieves, the others stream."""
    weights = params()
    layers = weights["layers"]
    output = layers["output"]["kernel"]  # [L, H d, D]; group 1 of layer 1 alone
    lone = jnp.zeros_like(output).at[1, 8:].set(output[1, 8:])
    weights = {**weights, "layers": {**layers, "output": {"kernel": lone}}}
    batches = [
        Examples(jax.random.randint(jax.random.key(i), (2, 12), 0, 7), ANSWERS)
        for i in range(4)
    ]
    options = Options(steps=60, penalty=1e-3, share=0.75, sink=2, window=3)
    found, report = calibration.calibrate(
        CONFIG, weights, batches, jax.random.key(0), options
    )
    assert found.retrieval == ((False, False), (False, True))
    assert (found.sink, found.window) == (2, 3)
    heads.check(found, CONFIG)
    assert report.gates[1, 1] > 0.5 and np.delete(report.gates.ravel(), 3).max() < 0.05
    assert report.distillation.shape == (60,) and report.error < 1e-6
    every = heads.all_streaming(CONFIG, 2, 3)
    assert calibration.relative_error(CONFIG, weights, batches[0], every) > 1e-3


@pytest.mark.parametrize(
    ("batches", "options", "words"),
    [
        ([], Options(), "no batch to calibrate on"),
        ([BATCH], Options(), "texts of 12 tokens, but streaming heads see 384"),
        ([BATCH._replace(answers=ANSWERS & False)], Options(), "without answers"),
    ],
)
def test_what_cannot_calibrate_is_refused(batches, options, words) -> None:
    with pytest.raises(ValueError, match=words):
        calibration.calibrate(CONFIG, params(), batches, jax.random.key(0), options)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"share": 1.5}, {"window": 0}])
def test_options_have_ranges(wrong: dict) -> None:
    with pytest.raises(ValueError, match="is out of its range"):
        Options(**wrong)
