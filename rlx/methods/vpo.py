"""Value-incentivised preference optimisation (VPO), online and offline.

Cen et al. 2024, https://arxiv.org/abs/2405.19320. The reward's likelihood is joined by
the optimal value that the reward promises, with a sign: more of it while data can still
be collected (optimism), less of it on fixed data (pessimism). With the reward's shift
fixed by a calibration distribution, E_cal r = 0, that value is −β E_cal[h], where
h = log π − log π_ref, and all is one loss of the policy:

    L = mean over pairs of −log σ(β (h⁺ − h⁻)) + s α β E_cal[h]

with s = +1 online and s = −1 offline.

Two conventions of α exist: the paper's theory *sums* the likelihood over pairs, this
library takes the *mean*, so that `alpha_mean = alpha_sum / number of pairs`; the name
says which, and `from_sum` converts.

Online, `rlx.data.online_preferences.pairs(..., calibrated=True)` makes the batches.

Special cases that hold exactly: α = 0 is DPO; offline, calibrated by the preferred
responses, it is DPO plus α β times the likelihood of those (RPO); online, calibrated by
the reference, its gradient is that of XPO with weight α β.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from rlx.generation.language_model import LanguageModel
from rlx.methods import _language, _pairs
from rlx.ops import preference_optimization
from rlx.types import Array, Key, Method, Metrics, Params, PyTree

SOURCE = _language.SOURCE
SIGNS = {"online": 1.0, "offline": -1.0}
CALIBRATIONS = ("chosen", "batch")


@dataclasses.dataclass(frozen=True)
class Config(_pairs.PairConfig):
    """VPO's own fields."""

    setting: str = "offline"
    """"offline": pessimism, s = −1; "online": optimism, s = +1."""
    alpha_mean: float = 0.1
    """α >= 0 where the likelihood is a mean over pairs; see `from_sum`."""
    calibration: str = "chosen"
    """Where E_cal is taken: over the preferred responses, or over those that the
    batch brings ("batch": batches are `Calibrated`)."""
    lowest_log_ratio: float = -50.0
    """Online, h of a calibration response is pushed no lower: the objective has no
    lower bound of its own. Own choice."""


def from_sum(alpha_sum: float | Array, num_pairs: int | Array) -> float | Array:
    """`alpha_mean` for an α stated for a likelihood summed over `num_pairs` pairs."""
    return alpha_sum / num_pairs


def loss(
    chosen: Array,
    rejected: Array,
    calibration: Array,
    *,
    beta: float | Array,
    optimism: float | Array,
    lowest: float | Array = -jnp.inf,
) -> Array:
    """L = −log σ(β (h⁺ − h⁻)) + s α β h_cal; its mean over pairs is the objective.

    Elementwise: one calibration response for each pair.

    Args:
      chosen: `[...]` h = log π − log π_ref of the preferred responses.
      rejected: `[...]` h of the others.
      calibration: `[...]` h of responses from the calibration distribution.
      beta: β > 0, scalar.
      optimism: s α of the mean over pairs, scalar: above 0 to explore, below to be
        safe, 0 for DPO.
      lowest: with optimism, a calibration response whose h is below has no gradient.

    Raises:
      AssertionError: shapes differ, or an array does not hold floats.
    """
    chex.assert_equal_shape([chosen, rejected, calibration])
    chex.assert_type([chosen, rejected, calibration], float)
    pair = preference_optimization.pair_loss(chosen - rejected, beta=beta)
    bounded = jnp.where(
        jnp.asarray(optimism) > 0, jnp.maximum(calibration, lowest), calibration
    )
    return pair + optimism * beta * bounded


def enumerated_loss(
    log_prob: Array,
    reference: Array,
    counts: Array,
    calibration: Array,
    *,
    beta: float | Array,
    optimism: float | Array,
) -> Array:
    """VPO where all responses can be listed: expectations are exact.

    Args:
      log_prob: `[X, K]` log π of K responses to each of X equally likely prompts.
      reference: `[X, K]` log π_ref.
      counts: `[X, K, K]` how often the first was preferred to the second.
      calibration: `[X, K]` probabilities.
      beta: β > 0.
      optimism: s α of the mean over pairs.

    Returns:
      A scalar.

    Raises:
      AssertionError: shapes do not fit.
    """
    chex.assert_equal_shape([log_prob, reference, calibration])
    chex.assert_shape(counts, (*log_prob.shape, log_prob.shape[-1]))
    ratio = log_prob - reference
    margin = ratio[..., :, None] - ratio[..., None, :]
    pairs = preference_optimization.pair_loss(margin, beta=beta)
    likelihood = jnp.sum(counts * pairs) / jnp.maximum(jnp.sum(counts), 1.0)
    value = jnp.mean(jnp.sum(calibration * ratio, axis=-1))
    return likelihood + optimism * beta * value


def reward_loss(
    reward: Array,
    reference: Array,
    counts: Array,
    calibration: Array,
    *,
    beta: float | Array,
    optimism: float | Array,
) -> Array:
    """The same objective as a function of the reward, blind to shifts per prompt.

    L = mean of −log σ(r⁺ − r⁻) − s α (β log Σ π_ref e^{r/β} − E_cal r), averaged over
    prompts; its optimum is that of `enumerated_loss`, where π ∝ π_ref e^{r/β}.

    Args:
      reward: `[X, K]`.
      reference: `[X, K]` log π_ref.
      counts: `[X, K, K]` how often the first was preferred to the second.
      calibration: `[X, K]` probabilities.
      beta: β > 0.
      optimism: s α of the mean over pairs.
    """
    chex.assert_equal_shape([reward, reference, calibration])
    chex.assert_shape(counts, (*reward.shape, reward.shape[-1]))
    margin = reward[..., :, None] - reward[..., None, :]
    pairs = preference_optimization.pair_loss(margin, beta=1.0)
    likelihood = jnp.sum(counts * pairs) / jnp.maximum(jnp.sum(counts), 1.0)
    value = beta * jax.nn.logsumexp(reference + reward / beta, axis=-1)
    promised = jnp.mean(value - jnp.sum(calibration * reward, axis=-1))
    return likelihood - optimism * promised


def make(spec: LanguageModel, config: Config = Config()) -> Method:  # noqa: B008
    """VPO as a method. Batches are `Preferences`, or `Calibrated` ones.

    Args:
      spec: the language model; its reference is where learning starts and π_ref.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value; while tracing, a batch
        without calibration responses where the config wants them.
    """
    _pairs.check(config)
    _language.require(config, "alpha_mean", lambda x: x >= 0, "not be negative")
    for name, known in (("setting", tuple(SIGNS)), ("calibration", CALIBRATIONS)):
        if getattr(config, name) not in known:
            given = getattr(config, name)
            raise ValueError(f"{name} must be one of {known}, got {given!r}")
    optimism = SIGNS[config.setting] * config.alpha_mean

    def ratio(params: Params, rows: _pairs.Rows) -> Array:
        return _pairs.log_ratio(spec.network, params, rows, config.normalize_length)

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: _pairs.Prepared,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del target_params, stats, key
        chosen, rejected = ratio(params, batch.chosen), ratio(params, batch.rejected)
        if config.calibration == "chosen":
            calibration = chosen
        elif batch.calibration is not None:
            calibration = ratio(params, batch.calibration)
        else:
            raise ValueError(
                'calibration="batch" needs batches of rlx.ops.sequences.Calibrated'
            )
        each = loss(
            chosen,
            rejected,
            calibration,
            beta=config.beta,
            optimism=optimism,
            lowest=config.lowest_log_ratio,
        )
        found = _pairs.metrics(chosen, rejected, batch.weight, config.beta, calibration)
        return _pairs.weighted(each, batch.weight), found

    return Method(
        loss_fn=loss_fn,
        prepare=_pairs.prepare(spec.network, config.normalize_length),
        **_language.fields(spec, config),
    )
