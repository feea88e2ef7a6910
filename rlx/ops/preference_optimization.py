"""Losses of preference optimisation: what is made of a pair's margin.

h(x, y) = log π(y|x) − log π_ref(y|x) is the implicit reward in units of β; a pair's
margin is h(x, y⁺) − h(x, y⁻).
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlx.ops import preference
from rlx.types import Array

LINKS = ("sigmoid", "ipo", "hinge")


def pair_loss(
    margin: Array,
    *,
    beta: float | Array,
    link: str = "sigmoid",
    label_smoothing: float | Array = 0.0,
) -> Array:
    """The loss of a preferred pair.

    - "sigmoid": −log σ(β m) (DPO, Rafailov et al. 2023,
      https://arxiv.org/abs/2305.18290, equation 7), with labels wrong with probability
      `label_smoothing`;
    - "ipo": (m − 1/(2β))² (Azar et al. 2023, https://arxiv.org/abs/2310.12036,
      equation 17);
    - "hinge": max(0, 1 − β m) (SLiC, Zhao et al. 2023,
      https://arxiv.org/abs/2305.10425).

    Elementwise.

    Args:
      margin: `[...]` h of the preferred response less that of the other.
      beta: β > 0, scalar: temperature of the KL penalty.
      link: one of `LINKS`.
      label_smoothing: ε in [0, 1/2), scalar; "sigmoid" alone knows it.

    Raises:
      AssertionError: margins are no floats.
      ValueError: an unknown link.
    """
    chex.assert_type(margin, float)
    if link == "ipo":
        return jnp.square(margin - 0.5 / beta)
    if link == "hinge":
        return jax.nn.relu(1.0 - beta * margin)
    if link != "sigmoid":
        raise ValueError(f"link must be one of {LINKS}, got {link!r}")
    if isinstance(label_smoothing, int | float) and label_smoothing == 0:
        return -jax.nn.log_sigmoid(beta * margin)
    label = jnp.ones_like(margin) - label_smoothing
    return -preference.log_likelihood(beta * margin, label)
