"""STEER: its loss by a slow loop, its reductions to SFT and Quark, its constants."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import learner, train
from rlx.generation.controlled import ControlledModel
from rlx.methods import quark, sft, steer
from rlx.ops.control_tokens import Controlled, Controls, prepended
from rlx.ops.sequences import Sequences
from rlx.types import DataSource, Method
from tests.methods import control_cases as cases
from tests.methods import language_cases

THREE = cases.controls(3)
WORDS = THREE.num_words


def conformance_cases() -> dict[str, tuple[Method, DataSource]]:
    whole = steer.Config(
        learning_rate=1e-2, kl_coefficient=0.1, entropy_coefficient=0.05, control_rate=3
    )
    return {
        "vector": (steer.make(cases.model(THREE), whole), cases.source(THREE)),
        "ring": (
            steer.make(cases.model(THREE), steer.Config(learning_rate=1e-2)),
            cases.source(THREE, keep="ring", balanced=True, ties="together", every=2),
        ),
    }


def evaluated(
    method: Method, batch: Controlled, params: object, reference: object
) -> tuple[jax.Array, dict]:
    """The loss of a batch, prepared with a reference."""
    state = learner.init(method, jax.random.key(0)).replace(target_params=reference)
    _, ready = method.prepare(state, batch)
    return method.loss_fn(params, reference, (), ready, jax.random.key(0))


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


def test_the_loss_by_hand() -> None:
    """−log p = 2, KL 3, H 5 with coefficients 0.1 and 0.2: 2 + 0.3 − 1."""
    one = [jnp.array([x]) for x in (-2.0, 3.0, 5.0)]
    found = steer.loss(*one, kl_coefficient=0.1, entropy_coefficient=0.2)
    np.testing.assert_allclose(found, [1.3], rtol=1e-6)
    found = steer.loss(*one, kl_coefficient=0.0, entropy_coefficient=0.0)
    np.testing.assert_allclose(found, [2.0])


def test_the_loss_is_that_of_a_slow_loop() -> None:
    """Token by token from whole rows; the reference reads no control words."""
    spec, batch = cases.model(THREE), cases.batch(THREE)
    start = spec.model.reference
    params = jax.tree.map(
        lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), start
    )
    rows = batch.sequences
    apply = jax.jit(spec.model.network.apply)
    tokens, mask = prepended(batch.controls, rows.tokens, rows.mask)
    own = np.asarray(apply(params, tokens, mask=mask), np.float64)
    other = np.asarray(apply(start, rows.tokens, mask=rows.mask), np.float64)
    terms = []
    for i, row in enumerate(np.asarray(rows.tokens)):
        for s in np.flatnonzero(rows.response[i]):
            p = log_softmax(own[i, 3 + s - 1])
            words = log_softmax(own[i, 3 + s - 1, :WORDS])
            q = log_softmax(other[i, s - 1, :WORDS])
            kl = np.sum(np.exp(words) * (words - q))
            entropy = -np.sum(np.exp(p) * p)
            terms.append((-p[row[s]], kl, entropy))
    nll, kl, entropy = np.mean(terms, axis=0)
    assert kl > 0.01
    config = steer.Config(kl_coefficient=0.7, entropy_coefficient=0.2)
    total, metrics = evaluated(steer.make(spec, config), batch, params, start)
    np.testing.assert_allclose(total, nll + 0.7 * kl - 0.2 * entropy, rtol=1e-5)
    found = [metrics[name] for name in ("nll", "kl", "entropy")]
    np.testing.assert_allclose(found, [nll, kl, entropy], rtol=1e-5)
    plain, metrics = evaluated(steer.make(spec), batch, params, start)
    np.testing.assert_allclose(plain, nll, rtol=1e-5)
    assert metrics["kl"] == 0


def test_the_gradient_is_that_of_finite_differences(double_precision: None) -> None:
    spec, batch = cases.model(THREE), cases.batch(THREE, 3)
    start = jax.tree.map(lambda x: x.astype(jnp.float64), spec.model.reference)
    config = steer.Config(kl_coefficient=0.7, entropy_coefficient=0.2)
    method = steer.make(spec, config)
    state = learner.init(method, jax.random.key(0)).replace(target_params=start)
    _, ready = method.prepare(state, batch)
    params = jax.tree.map(lambda x: 3 * x, start)

    @jax.jit
    def total(params: dict) -> jax.Array:
        return method.loss_fn(params, start, (), ready, jax.random.key(0))[0]

    gradient = jax.jit(jax.grad(total))(params)
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), 50)
        leaves, tree = jax.tree.flatten(params)
        way = tree.unflatten(
            [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=False)]
        )
        size = 5e-4
        ends = [
            total(jax.tree.map(lambda x, d, h=h: x + h * d, params, way))
            for h in (size, -size)
        ]
        slope = sum(
            jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, way))
        )
        # Sums and logits are float32 inside, whatever the parameters are.
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * size), slope, rtol=1e-2)


def test_one_bin_and_one_style_are_sft_behind_constant_words() -> None:
    words = cases.controls(3, bins=1, styles=1)
    spec, batch = cases.model(words), cases.batch(words)
    rows = batch.sequences
    tokens, mask = prepended(batch.controls, rows.tokens, rows.mask)
    assert len(np.unique(np.asarray(batch.controls), axis=0)) == 1
    nothing = jnp.zeros(batch.controls.shape, bool)
    response = jnp.concatenate([nothing, rows.response], axis=1)
    plain = sft.make(spec.model)
    params = spec.model.reference

    def steered(params: dict) -> jax.Array:
        return evaluated(steer.make(spec), batch, params, params)[0]

    def imitated(params: dict) -> jax.Array:
        rows = Sequences(tokens, mask, response)
        return plain.loss_fn(params, params, (), rows, jax.random.key(0))[0]

    for x, y in zip(
        *(
            jax.tree.leaves(jax.jit(jax.value_and_grad(f))(params))
            for f in (steered, imitated)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_one_metric_is_quark() -> None:
    words = cases.controls(1)
    spec, batch = cases.model(words), cases.batch(words)
    params = jax.tree.map(lambda x: 2 * x, spec.model.reference)
    terms = {"kl_coefficient": 0.05, "entropy_coefficient": 0.06}
    ours, theirs = steer.make(spec, steer.Config(**terms)), quark.make(spec)
    one, other = (
        evaluated(method, batch, params, spec.model.reference)[0]
        for method in (ours, theirs)
    )
    np.testing.assert_array_equal(one, other)


def silent(spec: ControlledModel) -> dict:
    """Parameters for which control words add nothing to what is read.

    With values of zero, attention adds nothing, whatever stands before.
    """
    params = jax.tree.map(jnp.copy, spec.model.reference)
    layer = params["layers"]["value"]
    layer["kernel"] = jnp.zeros_like(layer["kernel"])
    return params


def test_where_control_words_have_no_effect_the_divergence_and_its_slope_vanish() -> (
    None
):
    spec, batch = cases.model(THREE), cases.batch(THREE)
    params = silent(spec)
    method = steer.make(spec, steer.Config(kl_coefficient=1.0))
    state = learner.init(method, jax.random.key(0)).replace(target_params=params)
    _, ready = method.prepare(state, batch)

    def divergence(params: dict) -> jax.Array:
        found = method.loss_fn(params, params, (), ready, jax.random.key(0))[1]
        return found["kl"]

    value, slope = jax.jit(jax.value_and_grad(divergence))(params)
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    for x in jax.tree.leaves(slope):
        np.testing.assert_allclose(x, 0.0, atol=1e-6)
    # Columns of control words do not count: move them as far as you like.
    far = {**params, "embedding": params["embedding"].at[WORDS:].add(5.0)}
    np.testing.assert_allclose(divergence(far), 0.0, atol=1e-6)


def test_what_is_no_response_and_the_reference_have_no_gradient() -> None:
    spec, batch = cases.model(THREE), cases.batch(THREE)
    method = steer.make(spec, steer.Config(kl_coefficient=0.5))

    def total(reference: dict) -> jax.Array:
        return evaluated(method, batch, spec.model.reference, reference)[0]

    for x in jax.tree.leaves(jax.jit(jax.grad(total))(spec.model.reference)):
        np.testing.assert_array_equal(x, 0.0)
    nothing = jnp.zeros(batch.sequences.response.shape, bool)
    empty = batch.replace(sequences=batch.sequences.replace(response=nothing))
    value, _ = evaluated(method, empty, spec.model.reference, spec.model.reference)
    assert value == 0


def test_the_policy_never_says_a_control_word() -> None:
    spec = cases.model(THREE)
    loud = jax.tree.map(lambda x: 30 * x, spec.model.reference)
    rows = language_cases.sequences(64, 6)
    asked = rows.tokens[:, : language_cases.PROMPT]
    best = THREE.best(jnp.zeros(64, int))
    tokens, mask = prepended(best, asked, rows.mask[:, : language_cases.PROMPT])
    found = jax.jit(spec.model.sampler)(loud, tokens, mask, jax.random.key(0))
    assert int(found.tokens.max()) < WORDS


@pytest.mark.slow
def test_asking_for_more_gives_more() -> None:
    """Behind the best words a tiny model says what is rewarded."""
    words = cases.controls(1)
    spec = cases.model(words)
    method = steer.make(spec, steer.Config(learning_rate=3e-3))
    source = cases.source(words, every=50, rollouts=64, capacity=2000, batch_size=64)
    state = jax.jit(lambda key: train.init(method, source, key))(jax.random.key(0))
    state, _ = jax.jit(lambda state: train.run(method, source, state, 600))(state)
    rows = language_cases.sequences(256, 7)
    asked, there = (x[:, : language_cases.PROMPT] for x in (rows.tokens, rows.mask))
    style = jnp.arange(256) % 2
    judge, means = cases.score(1), []
    for level in range(cases.BINS):
        told = words.tokens(style, jnp.full((256, 1), level))
        prompt = prepended(told, asked, there)
        found = spec.model.sampler(state.learner.params, *prompt, jax.random.key(1))
        said = Sequences(found.tokens, found.mask, found.mask)
        means.append(float(jnp.mean(judge(said, style))))
    assert means[0] + 0.3 < means[1] < means[2] - 0.3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kl_coefficient": -0.1}, "kl_coefficient must not be negative"),
        ({"entropy_coefficient": -0.1}, "entropy_coefficient must not"),
        ({"control_rate": 0.0}, "control_rate must be positive"),
        ({"adapters_only": True}, "adapters_only would leave"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_impossible_configs_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        steer.make(cases.model(THREE), steer.Config(**fields))


def test_control_words_must_follow_the_vocabulary() -> None:
    wrong = Controls(num_words=WORDS + 1)
    with pytest.raises(ValueError, match="control words begin at 8"):
        cases.model(wrong)
