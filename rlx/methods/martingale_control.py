"""Control in continuous time by martingale conditions: policy gradient, q-learning.

Jia & Zhou, "Policy Gradient and Actor-Critic Learning in Continuous Time and Space",
JMLR 23 (2022), https://arxiv.org/abs/2111.11232, and "q-Learning in Continuous Time",
JMLR 24 (2023), https://arxiv.org/abs/2207.00713. Both ask that

    dM_i = D_i (e^{-βΔt} J_{i+1} - J_i + (r_i - γ log π(a_i|X_i) - V) Δt)

be orthogonal to test functions: ∇J for the critic, 1 for V (ergodic problems), and for
the actor

- `policy_gradient`: the score ∇log π. E Σ ∇log π dM is the gradient of the value, and
  the data must be of the policy itself. (The paper's further term, the gradient of
  -γ log π at a fixed action, has mean zero and is left out.)
- `q_learning`: ∇q, q the rate of the advantage of an action, which at the optimum makes
  dJ + (r - q - βJ) dt a martingale under *any* behaviour. Its normalisation ∫ e^{q/γ} =
  1 is built in by q = γ log π; e^{q/γ} is then the policy that is learned.

Special cases that hold exactly: on the same data the two differ by the factor γ of the
actor's step; the critic's step is that of `martingale` with `ctd`, λ = 0, on rewards
that include the entropy; at mesh one, with `instrument_power` -1 and γ = 0,
`policy_gradient` is the one-step actor-critic of Sutton & Barto (2018, section 13.5)
with the actor's γᵗ left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rlx.methods import _off_policy
from rlx.methods._martingale import PathBatch, path_batch, per_path, time_first
from rlx.networks.critics import gaussian_policy, state_value
from rlx.networks.features import linear_gaussian, quadratic_family
from rlx.ops import distributions
from rlx.ops import martingale as ops
from rlx.types import (
    Array,
    Box,
    EnvSpec,
    Key,
    LearnerState,
    Method,
    Metrics,
    Network,
    Params,
    PyTree,
    Transition,
)

ALGORITHMS = ("policy_gradient", "q_learning")
_NOT_NEGATIVE = (
    "discount_rate",
    "temperature",
    "learning_rate",
    "actor_learning_rate",
    "average_learning_rate",
)
_POSITIVE = (
    "max_gradient",
    "initial_variance",
    "constant_steps",
    "num_epochs",
    "num_minibatches",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Which condition moves the actor, the problem's constants, the step sizes."""

    algorithm: str = "policy_gradient"
    """policy_gradient (on-policy) or q_learning (any behaviour)."""
    discount_rate: float = 0.1
    """β per unit of time (no default in the papers; a horizon of 10); 0 if ergodic."""
    temperature: float = 0.1
    """γ, the price of entropy per unit of time (2022b, section 5)."""
    average_reward: bool = False
    """Ergodic problems: learn V too and set discount_rate to 0 (2022b, section 4)."""
    instrument_power: float = 0.0
    """p of ξ = D^p ∇, D = e^{-βt}: 0 the papers', -1 discrete reinforcement
    learning's."""
    learning_rate: float = 0.05
    """Of the critic. It multiplies Σ ξ dM of a path, whose mean grows like its length
    (own choice)."""
    actor_learning_rate: float = 0.01
    """Of the policy: slower than the critic (own choice)."""
    average_learning_rate: float = 0.025
    """Of V (own choice)."""
    constant_steps: float = 1e9
    """Gradient steps after which all rates fall like 1/n; by default beyond any run."""
    max_gradient: float = 1.0
    """Bound of every element of the gradient: test functions have heavy tails (own
    choice)."""
    initial_variance: float = 1.0
    """Of the default linear policy."""
    minimum_log_scale: float = -5.0
    """The policy's log scale never falls below this (as in the on-policy methods)."""
    maximum_log_scale: float = 2.0
    """The policy's log scale never rises above this (as in the on-policy methods)."""
    hidden_sizes: tuple[int, ...] = ()
    """(): all monomials to degree 2 as value, a linear Gaussian as policy, as in the
    papers' examples; else units of the hidden layers of both."""
    num_epochs: int = 1
    """Passes over a batch; policy_gradient is exact for one."""
    num_minibatches: int = 1
    """Whole paths are drawn, never parts of one."""


def loss(
    value: Array, log_prob: Array, increment: Array, *, actor_weight: float | Array
) -> Array:
    """-dM (J + w log π): the gradient is minus ξ dM of critic and actor.

    Its value means nothing. Elementwise; sums over time and means over paths are the
    caller's.

    Args:
      value: `[...]` J at the start of the step.
      log_prob: `[...]` log π(a|X) of the action taken.
      increment: `[...]` dM, with D^p where test functions carry it; a constant of the
        gradient.
      actor_weight: w: 1 for the policy gradient, γ for q-learning (∇q = γ ∇log π).

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([value, log_prob, increment])
    chex.assert_type([value, log_prob, increment], float)
    return ops.orthogonality_loss(value + actor_weight * log_prob, increment)


class _Agent(NamedTuple):
    config: Config
    value: Network
    actor: Network

    def policy(self, params: Params, observation: Array):
        """π(.|X) of the current parameters."""
        mean, log_scale = self.actor.apply(params["actor"], observation)
        low, high = self.config.minimum_log_scale, self.config.maximum_log_scale
        return distributions.DiagonalGaussian(mean, jnp.clip(log_scale, low, high))


def make(
    spec: EnvSpec,
    config: Config | None = None,
    value: Network | None = None,
    actor: Network | None = None,
    behaviour: Callable[[Array, Key], tuple[Array, PyTree]] | None = None,
) -> Method:
    """Control as a `Method`; batches are `Transition`s `[T, B]` of B paths.

    The reward is the environment's, without entropy: γ enters here. Δt is
    `extras["duration"]` where the data has it, else one over the spec's control
    frequency, else 1. Discounting counts time from the batch's first step (or from the
    episode's, if that is later).

    Args:
      spec: real-vector actions without bounds.
      config: the algorithm.
      value: J, `apply(params, observation [..., O]) -> [...]`; see `hidden_sizes`.
      actor: `apply(params, observation) -> (mean, log_scale)`, both `[..., A]`.
      behaviour: who acts instead of the policy, `(observation, key) -> (action,
        extras)`; q_learning only. Evaluation (no key) runs the learned policy's mean.

    Raises:
      ValueError: an unknown algorithm, an impossible number, actions that have bounds
        or are no vectors, or a behaviour that policy_gradient cannot use.
    """
    config = config or Config()
    _check(spec, config, behaviour)
    agent = _make_agent(spec, config, value, actor)
    step_size = 1 / (spec.control_frequency or 1.0)

    def init(key: Key) -> Params:
        params = _off_policy.init(key, value=agent.value, actor=agent.actor)
        if config.average_reward:
            params["average_reward"] = jnp.zeros(())
        return params

    def act(params, stats, observation, carry, key):
        del stats
        if behaviour is not None and key is not None:
            action, extras = behaviour(observation, key)
            return action, carry, extras
        policy = agent.policy(params, observation)
        action = policy.mode() if key is None else policy.sample(key)
        return action, carry, {}

    def prepare(learner: LearnerState, batch: Transition):
        return learner.stats, path_batch(batch, step_size)

    def loss_fn(
        params: Params, target_params: Params, stats: PyTree, batch: PathBatch, key: Key
    ) -> tuple[Array, Metrics]:
        del target_params, stats, key
        return _conditions(agent, params, time_first(batch))

    return Method(
        init=init,
        act=act,
        loss_fn=loss_fn,
        optimizer=_optimizer(config),
        prepare=prepare,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )


def _conditions(
    agent: _Agent, params: Params, view: PathBatch
) -> tuple[Array, Metrics]:
    """The surrogate of all three conditions on paths `[T, B]`."""
    config, constant = agent.config, jax.lax.stop_gradient
    policy = agent.policy(params, view.observation)
    log_prob = policy.log_prob(view.action)
    steps = view.steps
    entropy = -config.temperature * constant(log_prob) * steps.duration
    value = agent.value.apply(params["value"], view.observation)
    next_value = agent.value.apply(params["value"], view.next_observation)
    increment = ops.increments(
        constant(value),
        constant(next_value),
        steps._replace(reward=steps.reward + entropy),
        config.discount_rate,
        constant(params.get("average_reward", 0.0)),
    )
    worth = ops.start_discount(steps, config.discount_rate)
    weight = 1.0 if config.algorithm == "policy_gradient" else config.temperature
    terms = loss(
        value,
        log_prob,
        worth**config.instrument_power * increment,
        actor_weight=weight,
    )
    total = per_path(terms)
    metrics = {
        "mean_increment": jnp.mean(increment),
        "entropy": jnp.mean(policy.entropy()),
        "value": jnp.mean(value),
    }
    if "average_reward" in params:
        total = total - per_path(increment) * params["average_reward"]
        metrics["average_reward"] = params["average_reward"]
    return total, metrics


def _make_agent(
    spec: EnvSpec, config: Config, value: Network | None, actor: Network | None
) -> _Agent:
    linear = not config.hidden_sizes
    vector = len(spec.observation.shape) == 1
    if linear and not vector and (value is None or actor is None):
        raise ValueError(
            "the default families need vector observations: give value and actor, or "
            "hidden_sizes"
        )
    size = spec.observation.shape[0] if vector else 0
    if value is None:
        sizes = config.hidden_sizes
        value = quadratic_family(size) if linear else state_value(spec, sizes)
    if actor is None and linear:
        actor = linear_gaussian(size, spec.action.shape[0], config.initial_variance)
    return _Agent(config, value, actor or gaussian_policy(spec, config.hidden_sizes))


def _optimizer(config: Config) -> optax.GradientTransformation:
    def rate(start: float) -> Callable[[Array], Array]:
        return lambda n: start * jnp.minimum(1.0, config.constant_steps / (n + 1.0))

    rates = {
        "value": config.learning_rate,
        "actor": config.actor_learning_rate,
        "average_reward": config.average_learning_rate,
    }
    return optax.chain(
        optax.clip(config.max_gradient),
        _off_policy.partition(
            **{name: optax.sgd(rate(start)) for name, start in rates.items()}
        ),
    )


def _check(spec: EnvSpec, config: Config, behaviour: Callable | None) -> None:
    if config.algorithm not in ALGORITHMS:
        raise ValueError(
            f"unknown algorithm {config.algorithm!r}: choose one of {ALGORITHMS}"
        )
    if behaviour is not None and config.algorithm != "q_learning":
        raise ValueError(
            "policy_gradient learns from its own actions only: give no behaviour, or "
            'choose algorithm="q_learning"'
        )
    box = spec.action
    if not isinstance(box, Box) or len(box.shape) != 1:
        raise ValueError(f"{spec.name}: actions must be real vectors, got {box}")
    if (box.minimum, box.maximum) != (-float("inf"), float("inf")):
        raise ValueError(
            f"{spec.name}: a Gaussian policy has no bounds, but actions lie in "
            f"[{box.minimum}, {box.maximum}]: choose another method"
        )
    for name in _NOT_NEGATIVE:
        _off_policy.require(config, name, lambda x: x >= 0, "be at least 0")
    for name in _POSITIVE:
        _off_policy.require(config, name, lambda x: x > 0, "be positive")
