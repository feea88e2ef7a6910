"""Direct preference optimisation (DPO), and IPO and the hinge beside it.

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, equation 7; IPO: Azar et al.
2023, https://arxiv.org/abs/2310.12036; hinge: Zhao et al. 2023 (SLiC),
https://arxiv.org/abs/2305.10425; label smoothing: Mitchell 2023 (conservative DPO).

On pairs that the policy draws itself (`rlx.data.online_preferences.pairs`) it is online
DPO (Guo et al. 2024, https://arxiv.org/abs/2402.04792): nothing here changes.

Special cases that hold exactly: where policy and reference agree the loss is log 2 and
its gradient −β/2 (∇log π⁺ − ∇log π⁻); it is VPO (`rlx.methods.vpo`) with α = 0.
"""

from __future__ import annotations

import dataclasses

import chex

from rlx.generation.language_model import LanguageModel
from rlx.methods import _language, _pairs
from rlx.ops import preference_optimization
from rlx.types import Array, Key, Method, Metrics, Params, PyTree

SOURCE = _language.SOURCE


@dataclasses.dataclass(frozen=True)
class Config(_pairs.PairConfig):
    """DPO's own fields."""

    link: str = "sigmoid"
    """Or "ipo", or "hinge"."""
    label_smoothing: float = 0.0
    """ε in [0, 1/2): the chance that a label is wrong; "sigmoid" alone knows it."""


def loss(
    chosen: Array,
    rejected: Array,
    *,
    beta: float | Array,
    link: str = "sigmoid",
    label_smoothing: float | Array = 0.0,
) -> Array:
    """L = −log σ(β (h⁺ − h⁻)), or IPO's or the hinge's (Rafailov et al., equation 7).

    Elementwise.

    Args:
      chosen: `[...]` h = log π − log π_ref of the preferred responses.
      rejected: `[...]` h of the others.
      beta: β > 0, scalar.
      link: "sigmoid", "ipo" or "hinge".
      label_smoothing: ε in [0, 1/2), scalar.

    Raises:
      AssertionError: shapes differ, or an array does not hold floats.
      ValueError: an unknown link.
    """
    chex.assert_equal_shape([chosen, rejected])
    chex.assert_type([chosen, rejected], float)
    return preference_optimization.pair_loss(
        chosen - rejected, beta=beta, link=link, label_smoothing=label_smoothing
    )


def make(spec: LanguageModel, config: Config = Config()) -> Method:  # noqa: B008
    """DPO as a method. Batches are `Preferences`, rows `[B, S]`.

    Args:
      spec: the language model; its reference is where learning starts and what the
        policy is held to. Without one that is the fresh network.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value.
    """
    _pairs.check(config)
    _pairs.check_link(config.link)
    _language.require(
        config, "label_smoothing", lambda x: 0 <= x < 0.5, "lie in [0, 0.5)"
    )

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: _pairs.Prepared,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del target_params, stats, key
        chosen, rejected = (
            _pairs.log_ratio(spec.network, params, rows, config.normalize_length)
            for rows in (batch.chosen, batch.rejected)
        )
        each = loss(
            chosen,
            rejected,
            beta=config.beta,
            link=config.link,
            label_smoothing=config.label_smoothing,
        )
        found = _pairs.metrics(chosen, rejected, batch.weight, config.beta)
        return _pairs.weighted(each, batch.weight), found

    return Method(
        loss_fn=loss_fn,
        prepare=_pairs.prepare(spec.network, config.normalize_length),
        **_language.fields(spec, config),
    )
