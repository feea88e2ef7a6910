"""What Quark and STEER share: likelihood of texts behind words that name their reward.

A row is read as control words, prompt, response. The reference, which is where learning
began, reads it without the control words.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from rlx.generation.controlled import ControlledModel
from rlx.methods import _language
from rlx.networks.transformer_controls import scale_controls
from rlx.ops.control_tokens import Controlled, prepended
from rlx.ops.distributions import Categorical, kl_divergence
from rlx.ops.language import token_log_prob
from rlx.types import Array, Key, LearnerState, Method, Metrics, Params, PyTree


@dataclasses.dataclass(frozen=True)
class ControlConfig(_language.LanguageConfig):
    """Fields of methods that learn from control words."""

    kl_coefficient: float | None = None
    """Of KL(policy ‖ reference) over the V words; None: the reference is never run."""
    entropy_coefficient: float | None = None
    """Of the entropy, which is a bonus; None: none."""
    control_rate: float = 1.0
    """Step size of the control words' embeddings in units of `learning_rate`."""


@struct.dataclass
class Prepared:
    """A batch, and what the reference would have said."""

    batch: Controlled
    reference: Array | None
    """`float32[B, S − 1, V]` logits of the tokens from the second on."""


def check(config: ControlConfig) -> None:
    """Raises ValueError for fields that no run could use."""
    _language.check(config)
    _language.require(config, "control_rate", lambda x: x > 0, "be positive")
    for name in ("kl_coefficient", "entropy_coefficient"):
        _language.require(config, name, lambda x: x >= 0, "not be negative")
    if config.adapters_only:
        raise ValueError(
            "adapters_only would leave the control words as they were drawn: unset it"
        )


def loss(
    log_prob: Array,
    kl: Array,
    entropy: Array,
    *,
    kl_coefficient: float | Array,
    entropy_coefficient: float | Array,
) -> Array:
    """L = −log p(yₜ) + c_KL KL(p ‖ q) − c_H H(p) at each token. Elementwise.

    Lu et al. 2022, equation 3.

    Args:
      log_prob: `[...]` log p of the tokens, over all V + E words.
      kl: `[...]` KL(p ‖ q) over the V words, q the reference without control words.
      entropy: `[...]` of p.
      kl_coefficient: c_KL ≥ 0, scalar.
      entropy_coefficient: c_H ≥ 0, scalar.

    Raises:
      AssertionError: shapes differ, or an array does not hold floats.
    """
    chex.assert_equal_shape([log_prob, kl, entropy])
    chex.assert_type([log_prob, kl, entropy], float)
    return -log_prob + kl_coefficient * kl - entropy_coefficient * entropy


def make(spec: ControlledModel, config: ControlConfig) -> Method:
    """The method: `loss`, and its mean over all tokens of a batch's responses."""
    apply, words = spec.model.network.apply, spec.controls.num_words

    def prepare(learner: LearnerState, batch: Controlled) -> tuple[PyTree, Prepared]:
        if config.kl_coefficient is None:
            return learner.stats, Prepared(batch, None)
        rows = batch.sequences
        logits = apply(learner.target_params, rows.tokens, mask=rows.mask)
        reference = jax.lax.stop_gradient(logits[:, :-1, :words])
        return learner.stats, Prepared(batch, reference)

    def loss_fn(
        params: Params, target_params: Params, stats: PyTree, batch: Prepared, key: Key
    ) -> tuple[Array, Metrics]:
        del target_params, stats, key
        rows, controls = batch.batch.sequences, batch.batch.controls
        tokens, mask = prepended(controls, rows.tokens, rows.mask)
        # What stands before token s of the row is at s − 1, behind the control words.
        logits = apply(params, tokens, mask=mask)[:, controls.shape[1] : -1]
        response = rows.response[:, 1:]
        log_prob = token_log_prob(logits, rows.tokens[:, 1:])
        entropy = Categorical(logits).entropy()
        kl = jnp.zeros_like(log_prob)
        if batch.reference is not None:
            kl = kl_divergence(
                Categorical(logits[..., :words]), Categorical(batch.reference)
            )
        price, bonus = config.kl_coefficient, config.entropy_coefficient
        each = loss(
            log_prob,
            kl,
            jax.lax.stop_gradient(entropy) if bonus is None else entropy,
            kl_coefficient=0.0 if price is None else price,
            entropy_coefficient=0.0 if bonus is None else bonus,
        )
        count = jnp.maximum(jnp.sum(response), 1)

        def mean(x: Array) -> Array:
            return jnp.sum(jnp.where(response, x, 0.0), dtype=jnp.float32) / count

        found = {"nll": mean(-log_prob), "kl": mean(kl), "entropy": mean(entropy)}
        return mean(each), found

    fields = _language.fields(spec.model, config)
    optimizer = optax.chain(
        fields.pop("optimizer"), scale_controls(words, config.control_rate)
    )
    return Method(loss_fn=loss_fn, prepare=prepare, optimizer=optimizer, **fields)
