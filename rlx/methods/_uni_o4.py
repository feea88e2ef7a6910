"""Parts of Uni-O4: its fields, its losses, its networks.

Lei et al. 2024, https://arxiv.org/abs/2311.03351. `rlx.methods.uni_o4` joins them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from rlx.methods import _off_policy, _offline
from rlx.networks.ensemble import ensemble, gaussian_dynamics
from rlx.ops import distributions, importance, offline
from rlx.ops.distributions import DiagonalGaussian
from rlx.types import Array, Box, Carry, EnvSpec, Key, Network, Params, PyTree

DIVERSITIES = ("none", "heuristic", "distribution", "overlap")
GATES = ("paired", "running", "always", "never")
SCORES = ("horizon", "visited")
LARGEST_KL = 2.0
"""Cap of the unbounded term of "distribution", in nats (own choice)."""


@dataclasses.dataclass(frozen=True)
class Config(_off_policy.OffPolicyConfig):
    """Uni-O4's own fields. Floats may be swept under `vmap`."""

    num_members: int = 4
    """Behaviour policies (section 5.3: beyond 4 nothing is gained)."""
    diversity: str = "overlap"
    """What keeps them apart: "none", "heuristic" (the authors' code, which has the
    gradients of "none"), "distribution", or "overlap" (own choice: bounded)."""
    diversity_weight: float = 0.1
    """α: weight of the diversity (section 5.3)."""
    expectile: float = 0.7
    """τ of the values (IQL; the authors' code)."""
    actor_learning_rate: float = 1e-4
    """Adam's step size for the behaviour policies (the authors' code)."""
    critic_learning_rate: float = 1e-4
    """Adam's step size for the values (the authors' code)."""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """Units of the hidden layers of policies and values (the authors: of policies)."""
    minimum_log_scale: float = -5.0
    """The policies' log scale never falls below this (the authors' code)."""
    maximum_log_scale: float = 0.0
    """The policies' log scale never rises above this (the authors' code)."""
    normalize_observations: bool = True
    """Standardises observations, clipped at 10; see `statistics` of `make`."""
    num_models: int = 7
    """Members of the dynamics ensemble (the authors' code)."""
    num_elites: int = 5
    """Models with the smallest error on held-out data, which alone are used."""
    model_hidden_sizes: tuple[int, ...] = (200, 200, 200, 200)
    """Units of the hidden layers of a model, between them silu (the authors' code)."""
    model_learning_rate: float = 1e-3
    """Adam's step size for the models (the authors' code)."""
    model_weight_decay: float = 5e-5
    """Times the models' parameters, added to their gradient (the authors' code: 2.5e-5
    in the first layer to 1e-4 in the last)."""
    bound_weight: float = 0.01
    """Weight of the spread of the learned bounds of the log-variance (same)."""
    clip: float = 0.25
    """ε of the offline phase: how far the ratio may leave 1 (the authors' code)."""
    improvement_learning_rate: float = 1e-4
    """Adam's step size in the offline phase (the authors' code)."""
    anneal_steps: int = 0
    """Gradient steps over which that step size falls linearly to zero; 0: never."""
    max_gradient_norm: float = 0.5
    """Norm to which each member's gradient is clipped there (the authors' code)."""
    gate: str = "paired"
    """When a member replaces the policy it is bound to: it scores better from the same
    starts with the same noise ("paired"), it beats the best score so far ("running",
    the authors' code), "always", or "never" (one-step improvement)."""
    gate_margin: float = 0.0
    """Standard errors by which it must be better (the authors' code: 0)."""
    gate_steps: int = 100
    """Gradient steps between two gates: minibatches of a batch (the authors' code)."""
    evaluation_starts: int = 512
    """Rollouts of an evaluation, from states of the dataset (the authors' code)."""
    horizon: int = 1000
    """Steps of a rollout (the authors' code, for locomotion)."""
    score: str = "horizon"
    """What a sum of Q along a rollout is divided by: its "horizon" (section 4.2: steps
    after the end count zero), or the steps "visited" before its end (the authors'
    code), by which a policy gains that dies before the worse states come."""


# -------------------------------------------------------------------------- losses


def ensemble_loss(
    policies: DiagonalGaussian,
    action: Array,
    *,
    weight: float | Array = 0.1,
    diversity: str = "none",
) -> Array:
    """Behaviour cloning by several policies that keep apart (section 4.1).

        none          −log πᵢ(a|s)
        heuristic     −log πᵢ − α (log πᵢ − sg maxⱼ≠ᵢ log πⱼ)
        distribution  −log πᵢ − α min(KL(πᵢ ‖ sg πⱼ), 2), j ≠ i the densest at a
        overlap       −log πᵢ + α meanⱼ≠ᵢ ∫ √(πᵢ sg πⱼ)

    "heuristic" is what the authors' code does by default. Its gradient is exactly
    (1 + α) times that of "none": the others enter as an added constant, so it keeps
    nothing apart. All members are updated at once, each seeing the others as they were.

    Args:
      policies: n distributions, parameters `[n, ..., A]`.
      action: `[..., A]` of the data.
      weight: α >= 0, a scalar.
      diversity: one of the four.

    Returns:
      `[n, ...]` the losses to minimise, of each member in its own parameters alone.

    Raises:
      AssertionError: shapes do not match, or α is no scalar.
      ValueError: another diversity.
    """
    chex.assert_equal_shape([policies.mean[0], action])
    chex.assert_equal_shape([policies.mean, policies.log_scale])
    chex.assert_rank(weight, 0)
    if diversity not in DIVERSITIES:
        raise ValueError(
            f"diversity must be one of {', '.join(DIVERSITIES)}, got {diversity!r}"
        )
    log_prob = jax.vmap(lambda policy: policy.log_prob(action))(policies)
    number = log_prob.shape[0]
    if diversity == "none" or number == 1:
        return -log_prob
    others = jax.lax.stop_gradient(policies)
    if diversity == "overlap":
        pairs = jax.vmap(
            lambda mine: jax.vmap(lambda other: offline.gaussian_overlap(mine, other))(
                others
            )
        )(policies)
        apart = ~jnp.eye(number, dtype=bool).reshape(
            number, number, *(1,) * (log_prob.ndim - 1)
        )
        shared = jnp.sum(jnp.where(apart, pairs, 0.0), axis=1) / (number - 1)
        return -log_prob + weight * shared
    nearest, density = _densest_other(jax.lax.stop_gradient(log_prob))
    if diversity == "heuristic":
        return -log_prob - weight * (log_prob - density)
    picked = jax.tree.map(
        lambda x: jnp.take_along_axis(x, nearest[..., None], axis=0), others
    )
    kl = distributions.kl_divergence(policies, picked)
    return -log_prob - weight * jnp.minimum(kl, LARGEST_KL)


def _densest_other(log_prob: Array) -> tuple[Array, Array]:
    """Of every member, which other one is densest at the data's action, and how."""
    number = log_prob.shape[0]
    itself = jnp.eye(number, dtype=bool).reshape(
        number, number, *(1,) * (log_prob.ndim - 1)
    )
    table = jnp.where(
        itself, -jnp.inf, jnp.broadcast_to(log_prob[None], (number, *log_prob.shape))
    )
    return jnp.argmax(table, axis=1), jnp.max(table, axis=1)


def loss(
    log_prob: Array,
    behaviour_log_prob: Array,
    advantage: Array,
    *,
    clip: float | Array = 0.25,
) -> Array:
    """The clipped surrogate of both phases (section 4.2): PPO's, negated.

    L = −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) with ρ = exp(log π(a|s) − log π_k(a|s)).

    Offline, π_k is the last accepted policy, a is drawn from it, and A = Q − V is that
    of fixed critics.

    Elementwise; means are the caller's.

    Args:
      log_prob: `[...]` log π(a|s).
      behaviour_log_prob: `[...]` log π_k(a|s); a constant of the gradient.
      advantage: `[...]` A; a constant of the gradient.
      clip: ε > 0, a scalar.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    fixed, worth = jax.lax.stop_gradient((behaviour_log_prob, advantage))
    return -importance.clipped_surrogate(log_prob, fixed, worth, clip)


def dynamics_loss(mean: Array, log_variance: Array, target: Array) -> Array:
    """Maximum likelihood of an ensemble of Gaussian models (appendix; MOPO's code).

    Args:
      mean: `[K, ..., D]` predictions of each model.
      log_variance: `[K, ..., D]`.
      target: `[..., D]` what happened: change of the observation, then reward.

    Returns:
      `[K, ...]` the losses to minimise, averaged over D.

    Raises:
      AssertionError: shapes do not match.
    """
    chex.assert_equal_shape([mean, log_variance])
    chex.assert_equal_shape([mean[0], target])
    wide = jnp.broadcast_to(target, mean.shape)
    return jnp.mean(offline.gaussian_error(mean, log_variance, wide), axis=-1)


# ------------------------------------------------------------------------- networks


class Networks(NamedTuple):
    """Everything that Uni-O4 learns with."""

    agent: _off_policy.Agent
    """Critics, value and units; its actor is one member."""
    members: Network
    """The behaviour policies, stacked."""
    models: Network
    """The dynamics ensemble, stacked."""
    each_model: Callable[[Params, Array, Array], tuple[Array, Array]]
    """Of inputs that every model has for itself, `[K, ..., D]` and `[K, ..., A]`."""
    policies: Callable[[Params, PyTree], DiagonalGaussian]
    """`(members' params, observation [..., D]) -> [n, ..., A]`."""
    policy: Callable[[Params, PyTree], DiagonalGaussian]
    """`(one member's params, observation) -> [..., A]`."""


def networks(spec: EnvSpec, config: Config) -> Networks:
    """Builds them.

    Raises:
      ValueError: a field has an impossible value, observations are no vectors, or
        actions are no vectors with finite bounds.
    """
    _check(config)
    if not isinstance(spec.observation, Box) or len(spec.observation.shape) != 1:
        raise ValueError(
            f"the dynamics model needs observations that are vectors, but {spec.name} "
            f"has {spec.observation}: flatten them"
        )
    agent = _off_policy.make_agent(spec, config)
    members = ensemble(agent.actor, config.num_members)
    model = gaussian_dynamics(spec, config.model_hidden_sizes)

    def gaussian(outputs: tuple[Array, Array]) -> DiagonalGaussian:
        mean, log_scale = outputs
        low, high = config.minimum_log_scale, config.maximum_log_scale
        return DiagonalGaussian(mean, jnp.clip(log_scale, low, high))

    return Networks(
        agent=agent,
        members=members,
        models=ensemble(model, config.num_models),
        each_model=jax.vmap(model.apply),
        policies=lambda params, x: gaussian(members.apply(params, x)),
        policy=lambda params, x: gaussian(agent.actor.apply(params, x)),
    )


def make_act(
    nets: Networks,
    choose: Callable[[PyTree, DiagonalGaussian], Array],
    moments: Callable[[PyTree], PyTree],
) -> Callable[..., tuple[Array, Carry, PyTree]]:
    """Acts by one member per state: by its mean, or with a key by a sample, in bounds.

    Args:
      nets: the networks.
      choose: `(stats, policies [n, ..., A]) -> int[...]`, the member that acts.
      moments: from the method's stats to those of the observations.
    """

    def act(
        params: Params, stats: PyTree, observation: PyTree, carry: Carry, key: Key
    ) -> tuple[Array, Carry, PyTree]:
        seen = _offline.normalize(moments(stats), observation)
        policies = nets.policies(params["members"], seen)
        index = choose(stats, policies)[None, ..., None]
        one = jax.tree.map(lambda x: jnp.take_along_axis(x, index, axis=0)[0], policies)
        unit = one.mode() if key is None else one.sample(key)
        return nets.agent.to_env(jnp.clip(unit, -1.0, 1.0)), carry, {}

    return act


def mean_each(x: Array) -> Array:
    """The mean of each member, `[K, ...] -> [K]`."""
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


def _check(config: Config) -> None:
    _off_policy.check(config)
    choices = {"diversity": DIVERSITIES, "gate": GATES, "score": SCORES}
    for name, known in choices.items():
        value = getattr(config, name)
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    for name in ("num_members", "num_models", "num_elites", "gate_steps", "horizon"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.evaluation_starts < 2:
        raise ValueError(
            f"evaluation_starts must be at least 2, got {config.evaluation_starts}"
        )
    if config.num_elites > config.num_models:
        raise ValueError(
            f"num_elites must be at most num_models={config.num_models}, got "
            f"{config.num_elites}"
        )
    require = _off_policy.require
    for name in ("clip", "improvement_learning_rate", "max_gradient_norm"):
        require(config, name, lambda x: x > 0, "be positive")
    for name in ("diversity_weight", "gate_margin", "model_weight_decay"):
        require(config, name, lambda x: x >= 0, "not be negative")
    require(config, "expectile", lambda x: 0 < x < 1, "lie in (0, 1)")
