"""Supervised fine-tuning (SFT): a language model imitates given responses.

Ouyang et al. 2022, https://arxiv.org/abs/2203.02155 (section 3.5, step 1): maximum
likelihood of the response's tokens, its stop token included; the prompt is read, never
learned.

Special case that holds exactly: with every token of a row in the response, it is the
training of a language model on plain text.
"""

from __future__ import annotations

import dataclasses

import chex
import jax.numpy as jnp

from rlx.generation.language_model import LanguageModel
from rlx.methods import _language
from rlx.ops import language
from rlx.ops.sequences import Sequences
from rlx.types import Array, Key, Method, Metrics, Params, PyTree

SOURCE = _language.SOURCE


@dataclasses.dataclass(frozen=True)
class Config(_language.LanguageConfig):
    """SFT's own fields."""

    weighting: str = "token"
    """"token": every token of a minibatch counts alike; "sequence": every response, by
    the mean over its tokens, so that long ones count no more than short ones."""


def loss(log_prob: Array) -> Array:
    """Minus the log-likelihood of a token.

    L = −log π(yₜ | x, y₁ … yₜ₋₁). Elementwise; masks and means are the caller's.

    Args:
      log_prob: `[...]` log π of tokens.

    Raises:
      AssertionError: it does not hold floats.
    """
    chex.assert_type(log_prob, float)
    return -log_prob


def make(spec: LanguageModel, config: Config = Config()) -> Method:  # noqa: B008 (frozen)
    """SFT of a language model. Batches are `Sequences` `[B, S]`.

    Args:
      spec: the model; learning starts from its `reference`, if it has one.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value.
    """
    _language.check(config)
    if config.weighting not in ("token", "sequence"):
        raise ValueError(
            f'weighting must be "token" or "sequence", got {config.weighting!r}'
        )

    def loss_fn(
        params: Params, target_params: Params, stats: PyTree, batch: Sequences, key: Key
    ) -> tuple[Array, Metrics]:
        del target_params, stats, key
        price = loss(_language.log_prob(spec.network, params, batch))
        count = jnp.maximum(jnp.sum(batch.response), 1)
        per_token = jnp.sum(price, dtype=jnp.float32) / count
        total = per_token
        if config.weighting == "sequence":
            total = jnp.mean(
                language.sequence_log_prob(price, batch.response, normalize=True)
            )
        per_row = language.sequence_log_prob(price, batch.response)
        metrics = {
            "token_loss": per_token,
            "sequence_loss": jnp.mean(per_row),
            "response_length": jnp.mean(jnp.sum(batch.response, axis=-1)),
        }
        return total, metrics

    return Method(
        loss_fn=loss_fn,
        **_language.fields(spec, config),
    )
