"""A reward model from preferences between responses (Bradley-Terry).

Bradley & Terry 1952, https://doi.org/10.2307/2334029; Stiennon et al. 2020,
https://arxiv.org/abs/2009.01325, equation 1: a network that scores prompt and response
gives the preferred one the higher score.

Preferences leave free what depends on the prompt alone. `centering` draws the scores
to zero mean (Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244, equation 6).
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from rlx.methods import _language
from rlx.ops.sequences import Preferences, Sequences
from rlx.types import Array, Key, Method, Metrics, Network, Params, PyTree

SOURCE = _language.SOURCE


@dataclasses.dataclass(frozen=True)
class Config(_language.LanguageConfig):
    """The reward model's own fields."""

    centering: float = 0.0
    """Weight of the squared sum of a pair's scores; the paper has 0.01."""


def loss(chosen_score: Array, rejected_score: Array) -> Array:
    """Minus the log-likelihood of a preference (Stiennon et al. 2020, equation 1).

    L = −log σ(r(x, y⁺) − r(x, y⁻)). Elementwise.

    Args:
      chosen_score: `[...]` r of the preferred responses.
      rejected_score: `[...]` r of the others.

    Raises:
      AssertionError: shapes differ, or an array does not hold floats.
    """
    chex.assert_equal_shape([chosen_score, rejected_score])
    chex.assert_type([chosen_score, rejected_score], float)
    return -jax.nn.log_sigmoid(chosen_score - rejected_score)


def make(spec: Network, config: Config = Config()) -> Method:  # noqa: B008 (frozen)
    """A reward model as a method. Batches are `Preferences` `[B, S]`.

    Its "action" is the score of the text that it observes, so that what holds a policy
    holds a reward model as well.

    Args:
      spec: the network that scores, `apply(params, tokens, mask=mask) -> [B]`, such as
        `rlx.networks.transformer_scores.scorer`.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value.
    """
    _language.check(config)
    _language.require(config, "centering", lambda x: x >= 0, "not be negative")

    def scores(params: Params, rows: Sequences) -> Array:
        return spec.apply(params, rows.tokens, mask=rows.mask)

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Preferences,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del target_params, stats, key
        chosen, rejected = scores(params, batch.chosen), scores(params, batch.rejected)
        weight = batch.weight / jnp.maximum(jnp.sum(batch.weight), 1e-8)
        price = loss(chosen, rejected)
        spread = config.centering * jnp.square(chosen + rejected)
        right = (chosen > rejected).astype(jnp.float32)
        metrics = {
            "accuracy": jnp.sum(weight * right),
            "margin": jnp.sum(weight * (chosen - rejected)),
            "mean_score": 0.5 * jnp.sum(weight * (chosen + rejected)),
        }
        return jnp.sum(weight * (price + spread)), metrics

    return Method(
        init=spec.init,
        act=_language.make_judge(spec.apply),
        loss_fn=loss_fn,
        optimizer=_language.make_optimizer(config),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
