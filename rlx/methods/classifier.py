"""A classifier of texts: several yes-or-no questions about each.

What STEER (Hallinan et al. 2023, https://arxiv.org/abs/2311.07167) rates style with: a
sigmoid for each style, trained by the cross-entropy of each question on its own, so
that a text may be of several styles or of none. With one question it is a
discriminator, such as of real texts from corrupted ones.

Special case that holds exactly: with one question and targets 0 and 1 the loss is that
of logistic regression, −log σ(±z).
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from rlx.methods import _language
from rlx.ops.sequences import Labelled
from rlx.types import Array, Key, Method, Metrics, Network, Params, PyTree

SOURCE = _language.SOURCE


@dataclasses.dataclass(frozen=True)
class Config(_language.LanguageConfig):
    """The classifier's own fields."""

    learning_rate: float = 1e-3
    """AdamW's step size (own choice, for small networks)."""
    weight_decay: float = 0.01
    """AdamW's (its authors')."""
    label_smoothing: float = 0.0
    """ε in [0, 1): targets are drawn to ½ by this share, against overconfidence."""


def loss(logit: Array, label: Array, *, label_smoothing: float | Array = 0.0) -> Array:
    """Binary cross-entropy −y log σ(z) − (1 − y) log σ(−z). Elementwise.

    Args:
      logit: `[...]` z.
      label: `[...]` in [0, 1]; with smoothing y = (1 − ε) label + ε / 2.
      label_smoothing: ε in [0, 1), scalar.

    Raises:
      AssertionError: shapes differ, or an array does not hold floats.
    """
    chex.assert_equal_shape([logit, label])
    chex.assert_type([logit, label], float)
    target = (1.0 - label_smoothing) * label + 0.5 * label_smoothing
    yes, no = jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
    return -target * yes - (1.0 - target) * no


def make(spec: Network, config: Config = Config()) -> Method:  # noqa: B008 (frozen)
    """A classifier as a method. Batches are `rlx.ops.sequences.Labelled`.

    Its "action" is the probability of each yes, of the text that it observes.

    Args:
      spec: the network, `apply(params, tokens, mask=mask) -> [B, C]` logits, such as
        `rlx.networks.text_cnn.classifier`.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value.
    """
    _language.check(config)
    _language.require(config, "label_smoothing", lambda x: 0 <= x < 1, "lie in [0, 1)")

    def loss_fn(
        params: Params, target_params: Params, stats: PyTree, batch: Labelled, key: Key
    ) -> tuple[Array, Metrics]:
        del target_params, stats, key
        logit = spec.apply(params, batch.tokens, mask=batch.mask)
        each = loss(logit, batch.label, label_smoothing=config.label_smoothing)
        right = (logit > 0) == (batch.label > 0.5)
        return jnp.mean(each), {"accuracy": jnp.mean(right.astype(jnp.float32))}

    def chances(params: Params, tokens: Array, mask: Array) -> Array:
        return jax.nn.sigmoid(spec.apply(params, tokens, mask=mask))

    return Method(
        init=spec.init,
        act=_language.make_judge(chances),
        loss_fn=loss_fn,
        optimizer=_language.make_optimizer(config),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
