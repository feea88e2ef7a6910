"""Mirror Descent Policy Optimization, on-policy (MDPO).

Tomar, Shani, Efroni and Ghavamzadeh 2022, https://arxiv.org/abs/2005.09814. Each
batch is one step of mirror descent: improve the linearised return, pay for moving
away from the old policy in Kullback-Leibler divergence. Several gradient steps solve
that problem approximately; there is no clipping and no line search.

Special cases that hold exactly: the first gradient step on a batch is the policy
gradient, whatever the step size (the divergence has zero gradient there); with an
infinite step size it is PPO with an infinite clip.
"""

from __future__ import annotations

import dataclasses

import chex
import jax.numpy as jnp

from rlx.methods import _on_policy
from rlx.methods._on_policy_config import OnPolicyConfig
from rlx.ops import distributions, importance
from rlx.types import Array, EnvSpec, Method, Metrics


@dataclasses.dataclass(frozen=True)
class Config(OnPolicyConfig):
    """MDPO's own fields. Advantages must be standardised for t to be scale-free."""

    step_size: float = 1.0
    """t: mirror-descent step size at the start (the authors' code)."""
    anneal_step_size: bool = True
    """t falls linearly over `anneal_steps`, if that is set (the authors' code)."""
    minimum_step_size: float = 1e-3
    """t never falls below this: 1/t must stay finite."""
    anneal_learning_rate: bool = False
    """The learning rate stays constant: t does the annealing (the authors' code)."""


def loss(
    log_prob: Array,
    behaviour_log_prob: Array,
    advantage: Array,
    kl: Array,
    *,
    step_size: float | Array,
) -> Array:
    """One mirror-descent step's objective, negated (Tomar et al. 2022, section 4.1).

    L = -ρ A + KL(π || π_old) / t with ρ = exp(log π(a|s) - log π_old(a|s)).

    Elementwise; masks and means are the caller's.

    Args:
      log_prob: `[...]` log π(a|s) of the current policy.
      behaviour_log_prob: `[...]` log π_old(a|s); a constant of the gradient.
      advantage: `[...]` A; a constant of the gradient.
      kl: `[...]` KL(π(.|s) || π_old(.|s)), the *current* policy first, in nats.
      step_size: t > 0, a scalar or `[...]`; infinity removes the divergence.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([log_prob, behaviour_log_prob, advantage, kl])
    chex.assert_type([log_prob, behaviour_log_prob, advantage, kl], float)
    ratio = importance.ratio(log_prob, behaviour_log_prob)
    return -ratio * advantage + kl / step_size


def step_size_at(progress: Array, config: Config) -> Array:
    """The step size t after the fraction `progress` of the schedule.

    An infinite t stays infinite: there is no proximal term to anneal.
    """
    left = 1.0 - progress if config.anneal_step_size else jnp.ones_like(progress)
    start = jnp.asarray(config.step_size)
    finite = jnp.where(jnp.isinf(start), 1.0, start) * left
    finite = jnp.maximum(finite, config.minimum_step_size)
    return jnp.where(jnp.isinf(start), jnp.inf, finite)


def make(spec: EnvSpec, config: Config = Config()) -> Method:  # noqa: B008 (frozen)
    """On-policy MDPO for an environment with continuous or discrete actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value.
    """
    for name in ("step_size", "minimum_step_size"):
        value = getattr(config, name)
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")

    def policy_loss(
        prediction: _on_policy.Prediction,
        batch: _on_policy.OnPolicyBatch,
        advantage: Array,
    ) -> tuple[Array, Metrics]:
        kl = distributions.kl_divergence(prediction.distribution, prediction.behaviour)
        step_size = step_size_at(batch.progress, config)
        losses = loss(
            prediction.log_prob,
            batch.behaviour_log_prob,
            advantage,
            kl,
            step_size=step_size,
        )
        # The weight 1/t, not t: metrics must be finite, and t may be infinite.
        return losses, {"kl": jnp.mean(kl), "proximal_weight": jnp.mean(1 / step_size)}

    return _on_policy.make_method(spec, config, lambda agent: policy_loss)
