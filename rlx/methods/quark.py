"""Quark: control by quantised rewards.

Lu et al. 2022, https://arxiv.org/abs/2205.13636, equation 3: the likelihood of texts
behind a word that names the quantile of their reward, near to where learning began. Of
its pool and its rounds: `rlx.data.reward_pool` with `Controls(num_metrics=1)`.

    L = −log p(yₜ | r_k, x, y₁ … yₜ₋₁) + c_KL KL(p ‖ q) − c_H H(p)

Special cases that hold exactly: STEER (`rlx.methods.steer`) with one metric and the
same coefficients; with one bin and one style, and without the two extra terms, SFT
behind a constant word. In an enumerable world one round with exact likelihood gives,
behind the best word, the distribution of the best 1/K of the pool.
"""

from __future__ import annotations

import dataclasses

from rlx.generation.controlled import ControlledModel
from rlx.methods import _control, _language
from rlx.methods._control import loss as loss
from rlx.types import Method

SOURCE = _language.SOURCE


@dataclasses.dataclass(frozen=True)
class Config(_control.ControlConfig):
    """Quark's fields, with the defaults of the paper's code."""

    learning_rate: float = 1e-5
    """AdamW's step size, for models of a thousand million parameters."""
    kl_coefficient: float | None = 0.05
    """Of KL(policy ‖ reference) over the V words; None: the reference is never run."""
    entropy_coefficient: float | None = 0.06
    """Of the entropy, which is a bonus; None: none."""


def make(spec: ControlledModel, config: Config = Config()) -> Method:  # noqa: B008
    """Quark as a method. Batches are `rlx.ops.control_tokens.Controlled`.

    Args:
      spec: the model with control words of one metric.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value, or there are control
        words of several metrics.
    """
    _control.check(config)
    if spec.controls.num_metrics != 1:
        raise ValueError(
            f"Quark has one reward, the control words have "
            f"{spec.controls.num_metrics}: aggregate the rewards and use "
            "Controls(num_metrics=1), or use steer"
        )
    return _control.make(spec, config)
