"""XPO: its value by hand, and what it has in common with DPO and VPO."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import learner
from rlx.data import online_preferences
from rlx.data.prompts import Prompts
from rlx.methods import dpo, vpo, xpo
from rlx.ops.sequences import Calibrated
from rlx.types import DataSource, Method
from tests.methods import language_cases as cases

MODEL = cases.model(reference=True)


def conformance_cases() -> dict[str, tuple[Method, DataSource]]:
    rows = cases.sequences(6)
    source = online_preferences.pairs(
        Prompts(rows.tokens[:, : cases.PROMPT], rows.mask[:, : cases.PROMPT]),
        batch_size=4,
        score=lambda rows: jnp.sum(rows.response, axis=-1) * 1.0,
        reference=MODEL,
        opponent="reference",
        calibrated=True,
        capacity=8,
    )
    config = xpo.Config(alpha_mean=0.01, learning_rate=1e-2)
    return {"online": (xpo.make(MODEL, config), source)}


def ratios() -> np.ndarray:
    draw = np.random.default_rng(0).normal(size=(4, 6))
    return draw.astype(np.float32)


def test_the_loss_by_hand() -> None:
    """Margin 2, β = 1/2: −log σ(1) = 0.3132617; plus 0.1 · (−3)."""
    found = xpo.loss(
        jnp.array([1.5]),
        jnp.array([-0.5]),
        jnp.array([-3.0]),
        beta=0.5,
        alpha_mean=0.1,
    )
    np.testing.assert_allclose(found, [0.0132617], atol=1e-6)


def test_without_bonus_it_is_dpo() -> None:
    chosen, rejected, calibration, _ = ratios()
    found = xpo.loss(chosen, rejected, calibration, beta=0.3, alpha_mean=0.0)
    np.testing.assert_array_equal(found, dpo.loss(chosen, rejected, beta=0.3))


def test_its_gradient_is_that_of_optimistic_vpo() -> None:
    chosen, rejected, ratio, reference = ratios()

    def exploratory(*h: jax.Array) -> jax.Array:
        log_prob = h[2] + reference
        return xpo.loss(h[0], h[1], log_prob, beta=0.3, alpha_mean=0.06).sum()

    def optimistic(*h: jax.Array) -> jax.Array:
        return vpo.loss(*h, beta=0.3, optimism=0.2).sum()

    arguments = (chosen, rejected, ratio)
    for found, expected in zip(
        jax.grad(exploratory, (0, 1, 2))(*arguments),
        jax.grad(optimistic, (0, 1, 2))(*arguments),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"beta": -1.0}, "beta must be positive"),
        ({"alpha_mean": -1.0}, "alpha_mean must not be negative"),
    ],
)
def test_impossible_configs_are_refused(change: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        xpo.make(MODEL, xpo.Config(**change))


def test_responses_of_the_reference_are_needed() -> None:
    method = xpo.make(MODEL)
    state = learner.init(method, jax.random.key(0), 1)
    with pytest.raises(ValueError, match="Calibrated"):
        method.prepare(state, cases.preferences(4))
    batch = Calibrated(cases.preferences(4), cases.sequences(4, 3))
    _, prepared = method.prepare(state, batch)
    assert prepared.calibration.reference.shape == (4,)
