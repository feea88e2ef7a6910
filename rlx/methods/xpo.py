"""Exploratory preference optimisation (XPO).

Xie et al. 2024, https://arxiv.org/abs/2405.21046, algorithm 1: online DPO, where one
response of each pair is the policy's and one the reference's, with a bonus that drives
the policy away from what the reference says:

    L = mean over pairs of −log σ(β (h⁺ − h⁻)) + α log π(y_ref | x)

with h = log π − log π_ref. `rlx.data.online_preferences.pairs` makes such pairs, with
`opponent="reference"` and `calibrated=True`.

Special cases that hold exactly: α = 0 is DPO; its gradient is that of online VPO
(`rlx.methods.vpo`) calibrated by the reference, whose α is this one's divided by β.
"""

from __future__ import annotations

import dataclasses

import chex
import jax.numpy as jnp

from rlx.generation.language_model import LanguageModel
from rlx.methods import _language, _pairs
from rlx.ops import preference_optimization
from rlx.ops.sequences import Calibrated
from rlx.types import Array, Key, LearnerState, Method, Metrics, Params, PyTree

SOURCE = _language.SOURCE


@dataclasses.dataclass(frozen=True)
class Config(_pairs.PairConfig):
    """XPO's own fields."""

    alpha_mean: float = 1e-5
    """α >= 0, where the likelihood and the bonus both are means over pairs (the paper
    sums both: no difference). The paper gives no number; this one is TRL's."""
    lowest_log_ratio: float = -50.0
    """Log π / π_ref of a reference's response is pushed no lower: the objective has no
    lower bound of its own. Own choice."""


def loss(
    chosen: Array,
    rejected: Array,
    calibration: Array,
    *,
    beta: float | Array,
    alpha_mean: float | Array,
) -> Array:
    """L = −log σ(β (h⁺ − h⁻)) + α log π(y_ref); its mean is the objective.

    Elementwise: one response of the reference for each pair.

    Args:
      chosen: `[...]` h = log π − log π_ref of the preferred responses.
      rejected: `[...]` h of the others.
      calibration: `[...]` log π, not h, of responses of the reference.
      beta: β > 0, scalar.
      alpha_mean: α >= 0, scalar.

    Raises:
      AssertionError: shapes differ, or an array does not hold floats.
    """
    chex.assert_equal_shape([chosen, rejected, calibration])
    chex.assert_type([chosen, rejected, calibration], float)
    pair = preference_optimization.pair_loss(chosen - rejected, beta=beta)
    return pair + alpha_mean * calibration


def make(spec: LanguageModel, config: Config = Config()) -> Method:  # noqa: B008
    """XPO as a method. Batches are `Calibrated`, by responses of the reference.

    Args:
      spec: the language model; its reference is where learning starts and π_ref.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value; while tracing, batches
        without responses of the reference.
    """
    _pairs.check(config)
    _language.require(config, "alpha_mean", lambda x: x >= 0, "not be negative")
    ready = _pairs.prepare(spec.network, config.normalize_length)

    def prepare(learner: LearnerState, batch: PyTree) -> tuple[PyTree, PyTree]:
        if not isinstance(batch, Calibrated):
            raise ValueError("XPO needs batches of rlx.ops.sequences.Calibrated")
        return ready(learner, batch)

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: _pairs.Prepared,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del target_params, stats, key
        assert batch.calibration is not None  # `prepare` saw to it
        chosen, rejected, calibration = (
            _pairs.log_ratio(spec.network, params, rows, config.normalize_length)
            for rows in (batch.chosen, batch.rejected, batch.calibration)
        )
        bounded = jnp.maximum(calibration, config.lowest_log_ratio)
        each = loss(
            chosen,
            rejected,
            bounded + batch.calibration.reference,
            beta=config.beta,
            alpha_mean=config.alpha_mean,
        )
        found = _pairs.metrics(chosen, rejected, batch.weight, config.beta, calibration)
        return _pairs.weighted(each, batch.weight), found

    return Method(
        loss_fn=loss_fn,
        prepare=prepare,
        **_language.fields(spec, config),
    )
