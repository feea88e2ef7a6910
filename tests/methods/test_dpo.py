"""Direct preference optimisation, by hand and against its definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import learner
from rlx.data import online_preferences
from rlx.data.prompts import Prompts
from rlx.methods import dpo
from rlx.types import DataSource, Method
from tests.methods import language_cases as cases

PAIRS = cases.preferences(8)
MODEL = cases.model(reference=True)


def conformance_cases() -> dict[str, tuple[Method, DataSource]]:
    """Online DPO; tests of VPO learn from a fixed set of pairs."""
    config = dpo.Config(label_smoothing=0.1, learning_rate=1e-2)
    rows = PAIRS.chosen
    source = online_preferences.pairs(
        Prompts(rows.tokens[:, : cases.PROMPT], rows.mask[:, : cases.PROMPT]),
        batch_size=4,
        score=lambda rows: jnp.sum(rows.tokens * rows.response, axis=-1) * 0.1,
    )
    return {"online": (dpo.make(MODEL, config), source)}


def test_losses_by_hand() -> None:
    """Margin 2, β = 1/2: σ(1) = 0.7310586; IPO (2 − 1)² = 1; hinge 0."""
    chosen, rejected = jnp.array([1.5, -0.5]), jnp.array([-0.5, 1.5])
    sigmoid = dpo.loss(chosen, rejected, beta=0.5)
    np.testing.assert_allclose(sigmoid, [0.3132617, 1.3132617], rtol=1e-6)
    ipo = dpo.loss(chosen, rejected, beta=0.5, link="ipo")
    np.testing.assert_allclose(ipo, [1.0, 9.0], rtol=1e-6)
    hinge = dpo.loss(chosen, rejected, beta=0.5, link="hinge")
    np.testing.assert_allclose(hinge, [0.0, 2.0], atol=1e-6)
    smooth = dpo.loss(chosen, rejected, beta=0.5, label_smoothing=0.2)
    expected = 0.9 * np.array([0.3132617, 1.3132617]) + 0.1 * np.array(
        [1.3132617, 0.3132617]
    )
    np.testing.assert_allclose(smooth, expected, rtol=1e-6)


def test_swapping_a_pair_turns_its_gradient() -> None:
    def total(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return dpo.loss(chosen, rejected, beta=0.3).sum()

    zero = jnp.zeros(3)
    first, second = jax.grad(total, argnums=(0, 1))(zero, zero)
    np.testing.assert_allclose(first, np.full(3, -0.15), rtol=1e-6)
    np.testing.assert_allclose(second, -first)


def test_it_begins_at_log_two_with_a_reference_that_is_a_copy() -> None:
    method = dpo.make(MODEL, dpo.Config())
    state = learner.init(method, jax.random.key(0), 1)
    _, batch = method.prepare(state, PAIRS)
    value, metrics = method.loss_fn(
        state.params, state.target_params, (), batch, jax.random.key(0)
    )
    np.testing.assert_allclose(value, np.log(2.0), rtol=1e-5)
    np.testing.assert_allclose(metrics["margin"], 0.0, atol=1e-5)
    for mine, target, given in zip(
        *map(jax.tree.leaves, (state.params, state.target_params, MODEL.reference)),
        strict=True,
    ):
        places = {x.unsafe_buffer_pointer() for x in (mine, target, given)}
        assert len(places) == 3
        np.testing.assert_array_equal(target, given)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"beta": 0.0}, "beta must be positive"),
        ({"link": "kto"}, "link must be one of"),
        ({"label_smoothing": 0.5}, "label_smoothing must lie"),
    ],
)
def test_impossible_configs_are_refused(change: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        dpo.make(MODEL, dpo.Config(**change))
