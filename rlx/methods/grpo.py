"""Group-relative policy optimisation (GRPO) of language models.

Shao et al. 2024 (DeepSeekMath), https://arxiv.org/abs/2402.03300, equations 3 and 4:
PPO without a critic. K responses to the same prompt are each other's baseline,

    A_i = (r_i − mean(r)) / std(r),
    J = mean over i of 1/|y_i| Σ_t min(ρ_t A_i, clip(ρ_t, 1 − ε, 1 + ε) A_i) − β k3_t

with ρ = π / π_old per token and k3 the estimate of KL(π ‖ π_ref). Without the deviation
(`standardize=False`) and without 1/|y| (`length_normalization=False`) it is Dr. GRPO
(Liu et al. 2025, https://arxiv.org/abs/2503.20783), whose gradient has no bias towards
easy prompts and long wrong answers.

`rlx.data.prompts.respond(samples=K, score=...)` makes its batches. Where the sampler
computes the policy a little differently, with sparse attention or in low precision,
responses are not quite π_old's; `importance_cap` weighs their tokens by
min(π_old / π_sampler, C) (`rlx.ops.importance.truncated`), and the metrics `mismatch_*`
say how large the difference is. The sampler's temperature must be 1 and its filters
off, or they count as mismatch.

Special cases that hold exactly: responses with equal scores have no advantage, so at
the reference their gradient is 0; the first step on a batch is, with β = 0 and Dr.
GRPO's two options, REINFORCE with the group's mean as baseline; a sampler that agrees
with the policy makes `importance_cap` (>= 1) do nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax.numpy as jnp
from flax import struct

from rlx.generation.language_model import LanguageModel
from rlx.methods import _language
from rlx.ops import importance
from rlx.ops.sequences import Sequences
from rlx.types import Array, Key, LearnerState, Method, Metrics, Params, PyTree

SOURCE = _language.SOURCE


@dataclasses.dataclass(frozen=True)
class Config(_language.LanguageConfig):
    """GRPO's own fields."""

    learning_rate: float = 1e-6
    """AdamW's step size (Shao et al., section 4.2)."""
    clip: float = 0.2
    """ε > 0 of the surrogate (PPO's)."""
    beta: float = 0.04
    """β >= 0 of the divergence from the reference (Shao et al., section 4.2)."""
    standardize: bool = True
    """Divide advantages by the deviation within the group; False: Dr. GRPO."""
    length_normalization: bool = True
    """Mean over the tokens of a response; False: their sum, Dr. GRPO up to a factor."""
    importance_cap: float | None = None
    """C >= 1 of weights against the sampler's log-probabilities; None: no weights. Yao
    et al. 2025 use 2."""


@struct.dataclass
class Prepared:
    """A batch with all that stays constant while it is learned from: `[B, K, S]`."""

    sequences: Sequences
    log_prob: Array
    """Log π_old of the response's tokens, as the learner computes it."""
    sampler: Array
    """The same as the sampler recorded it."""
    reference: Array
    """Log π_ref."""
    advantage: Array
    """`float32[B, K]`."""
    score: Array
    """`float32[B, K]`."""


def advantages(score: Array, *, standardize: bool = True) -> Array:
    """A_i = (r_i − mean(r)) / std(r) within each group (Shao et al., section 4.1.2).

    Exactly 0 where all scores of a group are the same. The deviation is that of the
    population, plus 10⁻⁴.

    Args:
      score: `[B, K]` of K responses to each of B prompts.
      standardize: False: without the deviation.

    Raises:
      AssertionError: not a matrix of floats.
    """
    chex.assert_rank(score, 2)
    chex.assert_type(score, float)
    apart = score - score[:, :1]  # equal scores give zeros, whatever their rounding
    centred = apart - jnp.mean(apart, axis=-1, keepdims=True)
    if not standardize:
        return centred
    deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True))
    return centred / (deviation + 1e-4)


def loss(
    log_prob: Array,
    old_log_prob: Array,
    reference_log_prob: Array,
    advantage: Array,
    *,
    clip: float | Array,
    beta: float | Array,
) -> Array:
    """L = −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) + β k3 (Shao et al., equations 3, 4).

    Elementwise, on tokens; masks, weights and means are the caller's.

    Args:
      log_prob: `[...]` log π.
      old_log_prob: `[...]` log π_old, a constant; ρ = π / π_old.
      reference_log_prob: `[...]` log π_ref, a constant.
      advantage: `[...]` A, of the response that the token is in, a constant.
      clip: ε > 0, scalar.
      beta: β >= 0, scalar.

    Raises:
      AssertionError: shapes differ, or an array does not hold floats.
    """
    chex.assert_equal_shape([log_prob, old_log_prob, reference_log_prob, advantage])
    surrogate = importance.clipped_surrogate(log_prob, old_log_prob, advantage, clip)
    return beta * importance.k3(log_prob, reference_log_prob) - surrogate


def make(spec: LanguageModel, config: Config = Config()) -> Method:  # noqa: B008
    """GRPO as a method. Batches are `rlx.data.prompts.Responses`, `[B, K, S]`.

    Minibatches are cut along the prompts, so that groups stay whole.

    Args:
      spec: the language model, with a sampler; its reference is where learning starts
        and π_ref.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value.
    """
    _language.check(config)
    _language.require(config, "clip", lambda x: x > 0, "be positive")
    _language.require(config, "beta", lambda x: x >= 0, "not be negative")
    _language.require(config, "importance_cap", lambda x: x >= 1, "be at least 1")

    def token_log_prob(params: Params, rows: Sequences) -> Array:
        """Of rows `[B, K, S]`, float32; 0 off the response."""
        flat = _flat(rows)
        found = _language.log_prob(spec.network, params, flat)
        return found.reshape(rows.tokens.shape)

    def prepare(learner: LearnerState, batch: Any) -> tuple[PyTree, Prepared]:
        rows = batch.sequences
        chex.assert_rank(rows.tokens, 3)
        return learner.stats, Prepared(
            sequences=rows,
            log_prob=token_log_prob(learner.params, rows),
            sampler=jnp.where(rows.response, batch.log_prob, 0.0),
            reference=token_log_prob(learner.target_params, rows),
            advantage=advantages(batch.score, standardize=config.standardize),
            score=batch.score,
        )

    def loss_fn(
        params: Params, target_params: Params, stats: PyTree, batch: Prepared, key: Key
    ) -> tuple[Array, Metrics]:
        del target_params, stats, key
        found = token_log_prob(params, batch.sequences)
        advantage = jnp.broadcast_to(batch.advantage[..., None], found.shape)
        each = loss(
            found,
            batch.log_prob,
            batch.reference,
            advantage,
            clip=config.clip,
            beta=config.beta,
        )
        if config.importance_cap is not None:
            each = each * importance.truncated(
                batch.log_prob, batch.sampler, config.importance_cap
            )
        total = jnp.sum(jnp.where(batch.sequences.response, each, 0.0), axis=-1)
        if config.length_normalization:
            total = total / jnp.maximum(jnp.sum(batch.sequences.response, axis=-1), 1)
        return jnp.mean(total), _metrics(found, batch, config)

    return Method(
        loss_fn=loss_fn,
        prepare=prepare,
        **_language.fields(spec, config),
    )


def _flat(rows: Sequences) -> Sequences:
    def flat(x: Array) -> Array:
        return x.reshape(-1, x.shape[-1])

    return Sequences(flat(rows.tokens), flat(rows.mask), flat(rows.response))


def _metrics(log_prob: Array, batch: Prepared, config: Config) -> Metrics:
    response = batch.sequences.response
    count = jnp.maximum(jnp.sum(response), 1)

    def mean(x: Array) -> Array:
        return jnp.sum(jnp.where(response, x, 0.0)) / count

    moved = jnp.abs(importance.ratio(log_prob, batch.log_prob) - 1.0) > config.clip
    apart = importance.mismatch(batch.log_prob, batch.sampler, response)
    same = jnp.max(batch.score, axis=-1) == jnp.min(batch.score, axis=-1)
    return {
        "score": jnp.mean(batch.score),
        "kl": mean(importance.k3(log_prob, batch.reference)),
        "clip_fraction": mean(moved.astype(jnp.float32)),
        "same_score_fraction": jnp.mean(same.astype(jnp.float32)),
        "response_length": jnp.mean(jnp.sum(response, axis=-1)),
        "mismatch": apart.mean_absolute,
        "mismatch_kl": apart.kl,
        "mismatch_largest_ratio": apart.largest_ratio,
    }
