"""Trust Region Policy Optimization (TRPO).

Schulman, Levine, Moritz, Jordan and Abbeel 2015, https://arxiv.org/abs/1502.05477,
equation 14 and appendix C, with generalised advantages (Schulman et al. 2016,
https://arxiv.org/abs/1506.02438). Each batch is one step along the natural gradient,
as long as the quadratic model of the divergence allows, then shortened until the
sampled divergence obeys and the surrogate improves. The value function is fitted by
minibatches of Adam.

Special cases that hold exactly: before its line search the step is that of on-policy
MDPO's quadratic model, t F⁻¹ g, with t = √(2δ / gᵀ F⁻¹ g).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rlx.methods import _on_policy
from rlx.methods._on_policy_config import OnPolicyConfig
from rlx.ops import distributions, importance, natural_gradient, shuffling, values
from rlx.types import Array, EnvSpec, Key, LearnerState, Method, Metrics, Params


@dataclasses.dataclass(frozen=True)
class Config(OnPolicyConfig):
    """TRPO's own fields. Epochs, minibatches and step sizes are those of the value."""

    max_kl: float = 0.01
    """δ: mean KL(π_old || π) that a step may take, in nats (Schulman et al. 2015)."""
    damping: float = 0.1
    """Added to the diagonal of the Fisher matrix (the authors' code)."""
    solver_iterations: int = 10
    """Iterations of conjugate gradients (Schulman et al. 2015, appendix C)."""
    line_search_trials: int = 10
    """Lengths tried, the full step included (the authors' code)."""
    line_search_factor: float = 0.5
    """How much shorter each is than the one before (the authors' code)."""
    learning_rate: float = 1e-3
    """Adam's step size for the value (OpenAI baselines)."""
    anneal_learning_rate: bool = False
    """The value's learning rate stays constant (OpenAI baselines)."""
    num_epochs: int = 5
    """Passes of the value's fit over each batch (OpenAI baselines)."""
    value_coefficient: float = 1.0
    """Weight of the squared value error in its own gradient."""
    normalize_advantages: str = "batch"
    """Standardises advantages over the "batch", or "none"."""


def loss(log_prob: Array, behaviour_log_prob: Array, advantage: Array) -> Array:
    """The surrogate (Schulman et al. 2015, equation 14), negated.

    L = -ρ A with ρ = exp(log π(a|s) - log π_old(a|s)).

    Elementwise; masks and means are the caller's.

    Args:
      log_prob: `[...]` log π(a|s) of the current policy.
      behaviour_log_prob: `[...]` log π_old(a|s); a constant of the gradient.
      advantage: `[...]` A; a constant of the gradient.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([log_prob, behaviour_log_prob, advantage])
    chex.assert_type([log_prob, behaviour_log_prob, advantage], float)
    ratio = importance.ratio(log_prob, behaviour_log_prob)
    return -ratio * advantage


def make(spec: EnvSpec, config: Config = Config()) -> Method:  # noqa: B008 (frozen)
    """TRPO for an environment with continuous or discrete actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value; policy and value
        share parameters, so that fitting the value would move the policy.
    """
    _check(config)

    def policy_loss(
        prediction: _on_policy.Prediction,
        batch: _on_policy.OnPolicyBatch,
        advantage: Array,
    ) -> tuple[Array, Metrics]:
        return loss(prediction.log_prob, batch.behaviour_log_prob, advantage), {}

    method = _on_policy.make_method(spec, config, lambda agent: policy_loss)
    agent = _on_policy.make_agent(spec, config)
    step = _policy_step(agent, config)
    fit = _value_fit(method, _value_loss(agent, config))

    def update(
        learner: LearnerState, batch: _on_policy.OnPolicyBatch, key: Key
    ) -> tuple[LearnerState, Metrics]:
        params, metrics = step(learner.params, batch)
        learner, fit_metrics = fit(learner.replace(params=params), batch, key)
        return learner, {**metrics, **fit_metrics}

    return method._replace(update=update)


class _Judged(NamedTuple):
    """What the line search looks at."""

    objective: Array
    """`[]` surrogate and entropy bonus, to be minimised."""
    kl: Array
    """`[]` mean KL(π_old || π)."""
    entropy: Array


def _policy_step(
    agent: _on_policy.Agent, config: Config
) -> Callable[[Params, _on_policy.OnPolicyBatch], tuple[Params, Metrics]]:
    """The natural step on a whole batch, and its line search."""

    def judge(params: Params, batch: _on_policy.OnPolicyBatch) -> _Judged:
        prediction = _on_policy.predict(agent, config, params, batch)
        surrogate = jnp.mean(
            loss(prediction.log_prob, batch.behaviour_log_prob, batch.advantage)
        )
        entropy = jnp.mean(prediction.distribution.entropy())
        kl = distributions.kl_divergence(prediction.behaviour, prediction.distribution)
        objective = surrogate - config.entropy_coefficient * entropy
        return _Judged(objective, jnp.mean(kl), entropy)

    def step(params: Params, batch: _on_policy.OnPolicyBatch):
        old, gradient = jax.value_and_grad(lambda p: judge(p, batch).objective)(params)
        product = natural_gradient.fisher_vector_product(
            lambda p: judge(p, batch).kl, params, config.damping
        )
        natural = natural_gradient.natural_step(
            optax.tree.scale(-1.0, gradient),
            product,
            config.max_kl,
            config.solver_iterations,
        )

        def acceptable(candidate: Params) -> Array:
            judged = judge(candidate, batch)
            return (judged.objective < old) & (judged.kl <= config.max_kl)

        found = natural_gradient.backtrack(
            acceptable,
            params,
            optax.tree.scale(natural.step_size, natural.direction),
            config.line_search_trials,
            config.line_search_factor,
        )
        judged = judge(found.params, batch)
        metrics = {
            "policy_loss": judged.objective,
            "kl": judged.kl,
            "entropy": judged.entropy,
            "step_size": natural.step_size,
            "step_fraction": found.fraction,
            "solver_residual": natural.residual,
        }
        return found.params, metrics

    return step


def _value_loss(
    agent: _on_policy.Agent, config: Config
) -> Callable[[Params, _on_policy.OnPolicyBatch], Array]:
    def value_loss(params: Params, batch: _on_policy.OnPolicyBatch) -> Array:
        value = _on_policy.predict(agent, config, params, batch).value
        if config.value_clip is None:
            errors = values.squared_error(value, batch.value_target)
        else:
            errors = values.clipped_value_loss(
                value, batch.behaviour_value, batch.value_target, config.value_clip
            )
        return config.value_coefficient * jnp.mean(errors)

    return value_loss


def _value_fit(
    method: Method,
    value_loss: Callable[[Params, _on_policy.OnPolicyBatch], Array],
) -> Callable[..., tuple[LearnerState, Metrics]]:
    """Epochs x minibatches of Adam; the policy's parameters have no gradient in it."""

    def fit(learner: LearnerState, batch: _on_policy.OnPolicyBatch, key: Key):
        size, count = batch.advantage.shape[0], method.num_minibatches
        if size % count:
            raise ValueError(
                f"a batch of {size} cannot be cut into {count} equal minibatches: "
                f"choose num_minibatches among the divisors of {size}"
            )

        def step(learner: LearnerState, indices: Array):
            minibatch = jax.tree.map(lambda x: x[indices], batch)
            error, gradient = jax.value_and_grad(value_loss)(learner.params, minibatch)
            updates, opt_state = method.optimizer.update(
                gradient, learner.opt_state, learner.params
            )
            new = learner.replace(
                params=optax.apply_updates(learner.params, updates),
                opt_state=opt_state,
                step=learner.step + 1,
            )
            return new, error

        epochs = shuffling.permutations(key, size, method.num_epochs)
        indices = epochs.reshape(-1, size // count)
        learner, errors = jax.lax.scan(step, learner, indices)
        return learner, {"value_loss": jnp.mean(errors)}

    return fit


def _check(config: Config) -> None:
    if config.shared_torso or config.recurrent_size:
        raise ValueError(
            "TRPO needs a policy and a value without common parameters: leave "
            "shared_torso and recurrent_size off"
        )
    if config.target_kl is not None:
        raise ValueError("TRPO bounds the KL by max_kl: leave target_kl at None")
    if config.policy_warmup_steps:
        raise ValueError(
            "TRPO's policy takes natural steps: leave policy_warmup_steps 0"
        )
    if config.normalize_advantages == "minibatch":
        raise ValueError('normalize_advantages must be "batch" or "none" for TRPO')
    for name in ("solver_iterations", "line_search_trials"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("max_kl", "line_search_factor"):
        value = getattr(config, name)
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if isinstance(config.damping, int | float) and not config.damping >= 0:
        raise ValueError(f"damping must not be negative, got {config.damping}")
