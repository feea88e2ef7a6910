"""Supervised fine-tuning of language models."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import learner, train
from rlx.generation.language_model import decoder
from rlx.methods import _language, sft
from rlx.types import DataSource, Method
from tests.methods import language_cases as cases


def conformance_cases() -> dict[str, tuple[Method, DataSource]]:
    fields = {"num_epochs": 2, "num_minibatches": 2, "warmup_steps": 3}
    config = sft.Config(learning_rate=1e-2, weight_decay=0.1, **fields)
    return {"tokens": (sft.make(cases.model(), config), cases.source(ROWS))}


ROWS = cases.sequences(8)


def by_hand(weighting: str) -> float:
    """The loss of the first rows, token by token."""
    spec = cases.model(reference=True)
    logits = np.asarray(
        spec.network.apply(spec.reference, ROWS.tokens, mask=ROWS.mask), np.float64
    )
    prices = []
    for row in range(8):
        price = [
            np.log(np.exp(logits[row, s - 1]).sum()) - logits[row, s - 1, token]
            for s, token in enumerate(np.asarray(ROWS.tokens[row]))
            if ROWS.response[row, s]
        ]
        prices.append(price)
    if weighting == "token":
        return float(np.mean(np.concatenate(prices)))
    return float(np.mean([np.mean(price) for price in prices]))


@pytest.mark.parametrize("weighting", ["token", "sequence"])
def test_the_loss_is_the_mean_over_the_responses(weighting: str) -> None:
    method = sft.make(cases.model(reference=True), sft.Config(weighting=weighting))
    params = method.init(jax.random.key(0))
    total, _ = method.loss_fn(params, params, (), ROWS, jax.random.key(0))
    np.testing.assert_allclose(total, by_hand(weighting), rtol=1e-5)


def test_what_is_no_response_has_no_gradient() -> None:
    method = sft.make(cases.model(reference=True))
    params = method.init(jax.random.key(0))

    def total(response: jax.Array) -> jax.Array:
        batch = ROWS.replace(response=response)
        return method.loss_fn(params, params, (), batch, jax.random.key(0))[0]

    assert float(total(jnp.zeros_like(ROWS.response))) == 0.0
    changed = jnp.where(ROWS.mask, ROWS.tokens, 3)  # padding may be anything
    batch = ROWS.replace(tokens=changed)
    moved = method.loss_fn(params, params, (), batch, jax.random.key(0))[0]
    np.testing.assert_allclose(moved, total(ROWS.response), rtol=1e-6)


def test_it_learns_to_answer_and_to_stop() -> None:
    config = sft.Config(learning_rate=3e-2)
    method = sft.make(cases.model(), config)
    rows = jax.tree.map(lambda x: x[:2], ROWS)
    source = cases.source(rows, 8)
    state = train.init(method, source, jax.random.key(0))
    run = jax.jit(lambda state: train.run(method, source, state, 150))
    state, metrics = run(state)
    assert metrics["token_loss"][-1] < 0.05 < metrics["token_loss"][0]
    policy = learner.policy(method, state.learner)
    prompt = {"tokens": rows.tokens[:, :3], "mask": rows.mask[:, :3]}
    action, _, extras = policy.act(prompt, (), None)
    for row in range(2):
        length = int(rows.response[row].sum())
        np.testing.assert_array_equal(action["mask"][row], np.arange(4) < length)
        np.testing.assert_array_equal(
            action["tokens"][row, :length], rows.tokens[row, 3 : 3 + length]
        )
    assert extras["log_prob"].shape == (2, 4)


def test_a_response_may_have_any_leading_axes() -> None:
    spec = cases.model(reference=True)
    act = _language.make_act(spec.sampler)
    prompt = {"tokens": ROWS.tokens[:, :3], "mask": ROWS.mask[:, :3]}
    flat, _, _ = act(spec.reference, (), prompt, (), None)
    square = jax.tree.map(lambda x: x.reshape(2, 4, 3), prompt)
    found, _, _ = act(spec.reference, (), square, (), None)
    np.testing.assert_array_equal(found["tokens"].reshape(8, 4), flat["tokens"])
    single = jax.tree.map(lambda x: x[5], prompt)
    found, _, _ = act(spec.reference, (), single, (), None)
    np.testing.assert_array_equal(found["tokens"], flat["tokens"][5])
    with pytest.raises(ValueError, match="no sampler"):
        _language.make_act(None)(spec.reference, (), prompt, (), None)


def test_only_adapters_move_where_so_asked() -> None:
    shape = dataclasses.replace(cases.CONFIG, lora_rank=2)
    method = sft.make(decoder(shape), sft.Config(adapters_only=True))
    state = learner.init(method, jax.random.key(0))
    after, _ = jax.jit(lambda state: learner.update(method, state, ROWS, KEY))(state)
    after, _ = learner.update(method, after, ROWS, KEY)
    adapters = _language.is_adapter(state.params)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.params, after.params)
    assert moved == adapters
    plain = sft.make(cases.model(), sft.Config(adapters_only=True))
    with pytest.raises(ValueError, match="lora_rank"):
        learner.init(plain, jax.random.key(0))


KEY = jax.random.key(3)


def test_norms_do_not_decay() -> None:
    still = _language.make_optimizer(sft.Config(weight_decay=0.5))
    params = cases.model(reference=True).reference
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = still.update(zero, still.init(params), params)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, x: bool(jnp.any(x != 0)) == ("scale" not in str(path[-1])), updates
    )
    assert all(jax.tree.leaves(moved))


def test_the_start_is_a_copy() -> None:
    spec = cases.model(reference=True)
    state = learner.init(sft.make(spec), jax.random.key(0))
    for mine, theirs in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(spec.reference), strict=True
    ):
        assert mine is not theirs
        assert mine.unsafe_buffer_pointer() != theirs.unsafe_buffer_pointer()
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    "fields", [{"weighting": "row"}, {"learning_rate": 0.0}, {"warmup_steps": -1}]
)
def test_impossible_configs_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        sft.make(cases.model(), sft.Config(**fields))
