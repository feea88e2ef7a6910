"""The fields that every on-policy method has, and the optimiser they describe."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax

from rlx.types import Array, Params


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig:
    """Fields that every on-policy method has. Floats may be swept under `vmap`."""

    learning_rate: float = 3e-4
    """Adam's step size (Schulman et al. 2017, table 3)."""
    adam_epsilon: float = 1e-5
    """Adam's epsilon (OpenAI baselines)."""
    value_learning_rate: float | None = None
    """Adam's step size for the value function; None: `learning_rate`."""
    policy_warmup_steps: int = 0
    """Gradient steps before the policy's first, in which the value function alone
    learns: for a policy that comes from elsewhere."""
    max_gradient_norm: float = 0.5
    """Global norm to which gradients are clipped (OpenAI baselines)."""
    anneal_steps: int = 0
    """Gradient steps over which schedules run; 0: none. `rlx train` fills it in."""
    anneal_learning_rate: bool = True
    """Learning rate falls linearly to zero over `anneal_steps`, if that is set."""
    gamma: float = 0.99
    """Discount factor (Schulman et al. 2017, table 3)."""
    lambda_: float = 0.95
    """GAE's lambda (Schulman et al. 2017, table 3)."""
    num_epochs: int = 10
    """Passes over each batch (Schulman et al. 2017, table 3)."""
    num_minibatches: int = 8
    """Minibatches per pass; must divide the batch."""
    value_coefficient: float = 0.5
    """Weight of the squared value error, without a factor 1/2 (Stable-Baselines3)."""
    value_clip: float | None = None
    """Clips the change of the value function; None: off (Andrychowicz et al. 2021)."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus (OpenAI baselines for MuJoCo)."""
    normalize_observations: bool = True
    """Standardises observations by running moments, clipped at 10."""
    update_observation_moments: bool = True
    """Those moments follow the stream; off: they stay as the run begins with them, for
    a policy that comes from elsewhere, which other moments would change."""
    normalize_rewards: bool = True
    """Divides rewards by the running deviation of the discounted return."""
    normalize_advantages: str = "batch"
    """Standardises advantages per "batch", per "minibatch", or "none"."""
    target_kl: float | None = None
    """Ends the steps on a batch once the mean KL exceeds it; None: never."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of the hidden layers (Schulman et al. 2017)."""
    activation: str = "tanh"
    """Activation between layers (Schulman et al. 2017)."""
    shared_torso: bool = False
    """One torso for policy and value instead of two."""
    recurrent_size: int = 0
    """Units of a GRU between torso and heads; 0: no memory."""
    squash: bool = False
    """tanh-squashed Gaussian instead of clipping actions at their bounds."""
    state_dependent_scale: bool = False
    """The Gaussian's scale comes from the network instead of being free."""
    initial_log_scale: float = 0.0
    """Logarithm of the Gaussian's first scale (OpenAI baselines: 0)."""
    minimum_log_scale: float = -5.0
    """The Gaussian's log scale never falls below this."""
    maximum_log_scale: float = 2.0
    """The Gaussian's log scale never rises above this."""


def make_optimizer(config: OnPolicyConfig) -> optax.GradientTransformation:
    """Adam behind a clip of the gradient's global norm, with the linear schedule."""

    def schedule(rate: float | Array, warmup: int = 0) -> optax.Schedule:
        def learning_rate(count: Array) -> Array:
            left: float | Array = 1.0
            if config.anneal_steps and config.anneal_learning_rate:
                left = 1.0 - jnp.minimum(count / config.anneal_steps, 1.0)
            if warmup:
                left = jnp.where(count < warmup, 0.0, left)
            return jnp.asarray(rate * left)

        return learning_rate

    def adam(*arguments: Any) -> optax.GradientTransformation:
        return optax.adam(schedule(*arguments), eps=config.adam_epsilon)

    rate, value_rate = config.learning_rate, config.value_learning_rate
    if value_rate is None and not config.policy_warmup_steps:
        step = adam(rate)
    else:
        step = optax.partition(
            {
                "policy": adam(rate, config.policy_warmup_steps),
                "value": adam(rate if value_rate is None else value_rate),
            },
            _parts,
        )
    return optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), step)


def _parts(params: Params) -> dict[str, str]:
    """Which optimiser each entry of an actor-critic's parameters has."""
    return {name: "value" if name.startswith("value") else "policy" for name in params}


def check(config: OnPolicyConfig) -> None:
    """Raises ValueError for fields that no run could use; traced floats pass."""
    if config.normalize_advantages not in ("batch", "minibatch", "none"):
        raise ValueError(
            'normalize_advantages must be "batch", "minibatch" or "none", got '
            f"{config.normalize_advantages!r}"
        )
    for name in ("num_epochs", "num_minibatches"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    split = config.value_learning_rate is not None or config.policy_warmup_steps > 0
    if split and (config.shared_torso or config.recurrent_size):
        raise ValueError(
            "value_learning_rate and policy_warmup_steps need a value function of its "
            "own: leave shared_torso and recurrent_size off"
        )
    warmup = config.policy_warmup_steps
    if warmup < 0:
        raise ValueError(f"policy_warmup_steps must not be negative, got {warmup}")
    ranges = {"gamma": (0.0, 1.0), "lambda_": (0.0, 1.0)}
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if isinstance(value, int | float) and not low <= value <= high:
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")
    positive = ("learning_rate", "value_learning_rate", "max_gradient_norm")
    for name in (*positive, "adam_epsilon"):
        value = getattr(config, name)
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
