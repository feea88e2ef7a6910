"""STEER: style transfer with expert reinforcement, by a vector of reward words.

Hallinan et al. 2023, https://arxiv.org/abs/2311.07167. Texts for S styles, first
written by a product of experts (`rlx.generation.experts`), then by the policy itself,
lie in a pool (`rlx.data.reward_pool`). Their style strength, their likeness to the
source and their fluency are each cut into K quantiles of the style; a word for each
quantile is put before the text, and the policy learns to continue. To write well it is
given the best three words. What the paper calls off-policy reinforcement is this
likelihood: there are no importance weights and no values.

Default coefficients are those of the paper's code, where neither divergence nor entropy
weigh. Lengths count: the mean is over all tokens of a batch's responses.

Special cases that hold exactly: with one metric it is Quark (`rlx.methods.quark`) with
Quark's coefficients; with K = 1 and one style it is SFT behind constant words.
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
    """STEER's fields; the paper's code has learning rate 5e-4."""

    learning_rate: float = 5e-4
    """AdamW's step size."""


def make(spec: ControlledModel, config: Config = Config()) -> Method:  # noqa: B008
    """STEER as a method. Batches are `rlx.ops.control_tokens.Controlled`.

    Args:
      spec: the model with its control words; learning starts from its reference.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value.
    """
    _control.check(config)
    return _control.make(spec, config)
