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
    expected = 0.8 * np.array([0.3132617, 1.3132617]) + 0.2 * np.array(
        [1.3132617, 0.3132617]
    )
    np.testing.assert_allclose(smooth, expected, rtol=1e-6)


def test_the_values_of_trl() -> None:
    """Its formulas on given log-probabilities, by hand with 50 digits.

    Log-probabilities of four pairs under policy and reference; the differences of
    log-ratios are d = 1, −1.25, −6.5, −1.5; β = 0.1. DPOTrainer.dpo_loss of TRL 0.8 has
    "sigmoid" as −(1 − ε) log σ(β d) − ε log σ(−β d), "hinge" as max(0, 1 − β d), "ipo"
    as (d − 1/(2β))²; for "ipo" it is given means over tokens, which here are
    `normalize_length`, with responses of `lengths` tokens.
    """
    policy = np.array([[-12.5, -3.25, -40.0, -7.0], [-14.0, -2.5, -31.0, -7.0]])
    reference = np.array([[-13.0, -3.0, -35.5, -6.5], [-13.5, -3.5, -33.0, -8.0]])
    lengths = np.array([[10, 5, 20, 4], [8, 5, 10, 7]])
    ratio = (policy - reference).astype(np.float32)

    def found(ratio: np.ndarray, **options: object) -> jax.Array:
        return dpo.loss(ratio[0], ratio[1], beta=0.1, **options)

    sigmoid = [0.6443966601, 0.7575990353, 1.0700553357, 0.7709570478]
    np.testing.assert_allclose(found(ratio), sigmoid, rtol=1e-6)
    smooth = [0.6643966601, 0.7325990353, 0.9400553357, 0.7409570478]
    np.testing.assert_allclose(found(ratio, label_smoothing=0.2), smooth, rtol=1e-6)
    hinge = [0.9, 1.125, 1.65, 1.15]
    np.testing.assert_allclose(found(ratio, link="hinge"), hinge, rtol=1e-6)
    ipo = [23.88765625, 27.5625, 29.430625, 27.7503188776]
    per_token = (ratio / lengths).astype(np.float32)
    np.testing.assert_allclose(found(per_token, link="ipo"), ipo, rtol=1e-6)
    whole = [16.0, 39.0625, 132.25, 42.25]
    np.testing.assert_allclose(found(ratio, link="ipo"), whole, rtol=1e-6)


def test_log_ratios_are_sums_over_the_response_with_its_end() -> None:
    """Against a loop over tokens; padding and prompt stay out, or the mean is taken."""
    from rlx.methods import _pairs

    rows = PAIRS.chosen
    params = MODEL.reference
    logits = np.asarray(
        jax.jit(MODEL.network.apply)(params, rows.tokens, mask=rows.mask), np.float64
    )
    expected, lengths = [], []
    for i, row in enumerate(np.asarray(rows.tokens)):
        places = [s for s in range(1, row.size) if rows.response[i, s]]
        assert row[places[-1]] == cases.END
        terms = [
            logits[i, s - 1, row[s]] - np.log(np.exp(logits[i, s - 1]).sum())
            for s in places
        ]
        expected.append(sum(terms))
        lengths.append(len(terms))
    whole, mean = jax.jit(
        lambda params: tuple(
            _pairs.response_log_prob(MODEL.network, params, rows, normalize)
            for normalize in (False, True)
        )
    )(params)
    np.testing.assert_allclose(whole, expected, rtol=1e-4)
    np.testing.assert_allclose(mean, np.array(expected) / lengths, rtol=1e-4)


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
