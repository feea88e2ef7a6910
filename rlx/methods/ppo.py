"""Proximal Policy Optimization with a clipped ratio (PPO).

Schulman, Wolski, Dhariwal, Radford and Klimov 2017, https://arxiv.org/abs/1707.06347,
equation 7, with generalised advantages (Schulman et al. 2016,
https://arxiv.org/abs/1506.02438).

Special cases that hold exactly: with an infinite clip and one gradient step per batch
it is the advantage actor-critic (A2C); with an infinite clip it is MDPO without its
proximal term.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from rlx.methods import _on_policy
from rlx.methods._on_policy_config import OnPolicyConfig
from rlx.ops import importance
from rlx.types import Array, EnvSpec, Method, Metrics


@dataclasses.dataclass(frozen=True)
class Config(OnPolicyConfig):
    """PPO's own fields."""

    clip: float = 0.2
    """epsilon: how far the ratio may leave 1 (Schulman et al. 2017, table 3)."""
    anneal_clip: bool = False
    """The clip falls linearly to zero over `anneal_steps`, if that is set."""


def loss(
    log_prob: Array,
    behaviour_log_prob: Array,
    advantage: Array,
    *,
    clip: float | Array = 0.2,
) -> Array:
    """The clipped surrogate (Schulman et al. 2017, equation 7), negated.

    L = -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) with ρ = exp(log π(a|s) - log π_old(a|s)).

    Elementwise; masks and means are the caller's.

    Args:
      log_prob: `[...]` log π(a|s) of the current policy.
      behaviour_log_prob: `[...]` log π_old(a|s); a constant of the gradient.
      advantage: `[...]` A; a constant of the gradient.
      clip: ε > 0, a scalar or `[...]`.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    return -importance.clipped_surrogate(log_prob, behaviour_log_prob, advantage, clip)


def make(spec: EnvSpec, config: Config = Config()) -> Method:  # noqa: B008 (frozen)
    """PPO for an environment with continuous or discrete actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value.
    """
    if isinstance(config.clip, int | float) and not config.clip > 0:
        raise ValueError(f"clip must be positive, got {config.clip}")

    def policy_loss(
        prediction: _on_policy.Prediction,
        batch: _on_policy.OnPolicyBatch,
        advantage: Array,
    ) -> tuple[Array, Metrics]:
        clip = config.clip * (1.0 - batch.progress if config.anneal_clip else 1.0)
        log_ratio = prediction.log_prob - batch.behaviour_log_prob
        clipped = jnp.abs(jnp.exp(log_ratio) - 1.0) > clip
        losses = loss(
            prediction.log_prob, batch.behaviour_log_prob, advantage, clip=clip
        )
        return losses, {"clip_fraction": jnp.mean(clipped)}

    return _on_policy.make_method(spec, config, lambda agent: policy_loss)
