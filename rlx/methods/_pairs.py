"""What methods that learn from pairs of responses share: log-ratios to the reference.

The reference is the target network: where learning starts, frozen, a copy.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct

from rlx.methods import _language
from rlx.ops import language
from rlx.ops.preference_optimization import LINKS
from rlx.ops.sequences import Calibrated, Sequences
from rlx.types import Array, LearnerState, Metrics, Network, Params, PyTree


@dataclasses.dataclass(frozen=True)
class PairConfig(_language.LanguageConfig):
    """Fields of every method that learns from pairs of responses."""

    beta: float = 0.1
    """β > 0: temperature of the KL penalty that the reward implies."""
    normalize_length: bool = False
    """Log-ratios per token instead of per response: another objective, against a
    preference for length."""


@struct.dataclass
class Rows:
    """Responses, and what the reference thinks of them."""

    sequences: Sequences
    reference: Array
    """`float32[...]` log π_ref of each response."""


@struct.dataclass
class Prepared:
    """A batch with everything that stays constant while it is learned from."""

    chosen: Rows
    rejected: Rows
    calibration: Rows | None
    weight: Array


def check(config: PairConfig) -> None:
    """Raises ValueError for fields that no run could use."""
    _language.check(config)
    _language.require(config, "beta", lambda x: x > 0, "be positive")


def check_link(link: str) -> None:
    """Raises ValueError for an unknown link."""
    if link not in LINKS:
        raise ValueError(f"link must be one of {LINKS}, got {link!r}")


def response_log_prob(
    network: Network, params: Params, rows: Sequences, normalize: bool
) -> Array:
    """Log π(y|x) of whole responses, `float32[B]`; per token if `normalize`."""
    found = _language.log_prob(network, params, rows)
    return language.sequence_log_prob(found, rows.response, normalize=normalize)


def prepare(network: Network, normalize: bool) -> Any:
    """`Method.prepare` for batches of `Preferences`, or of `Calibrated` ones."""

    def rows(params: Params, sequences: Sequences) -> Rows:
        reference = response_log_prob(network, params, sequences, normalize)
        return Rows(sequences, reference)

    def go(learner: LearnerState, batch: PyTree) -> tuple[PyTree, Prepared]:
        pairs = batch.pairs if isinstance(batch, Calibrated) else batch
        calibration = batch.calibration if isinstance(batch, Calibrated) else None
        reference = learner.target_params
        return learner.stats, Prepared(
            chosen=rows(reference, pairs.chosen),
            rejected=rows(reference, pairs.rejected),
            calibration=None if calibration is None else rows(reference, calibration),
            weight=pairs.weight,
        )

    return go


def log_ratio(network: Network, params: Params, rows: Rows, normalize: bool) -> Array:
    """h(x, y) = log π(y|x) − log π_ref(y|x), `float32[B]`."""
    found = response_log_prob(network, params, rows.sequences, normalize)
    return found - rows.reference


def weighted(value: Array, weight: Array) -> Array:
    """The mean over pairs, by their weights; 0 if all are zero."""
    return jnp.sum(value * weight) / jnp.maximum(jnp.sum(weight), 1e-8)


def metrics(
    chosen: Array,
    rejected: Array,
    weight: Array,
    beta: float | Array,
    calibration: Array | None = None,
) -> Metrics:
    """Implicit rewards β h, their margin, and how often it has the right sign.

    With the log-ratios of calibration responses, their mean too.
    """
    found = {
        "chosen_reward": beta * weighted(chosen, weight),
        "rejected_reward": beta * weighted(rejected, weight),
        "margin": beta * weighted(chosen - rejected, weight),
        "accuracy": weighted((chosen > rejected).astype(jnp.float32), weight),
    }
    if calibration is not None:
        found["calibration_log_ratio"] = weighted(calibration, weight)
    return found
