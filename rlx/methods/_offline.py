"""What methods for fixed datasets share: policies, fixed normalisation, implicit Q.

A batch is a `Transition` with any leading axes, its actions in the environment's
units; all losses are means over it. Policies act, and densities are taken, in [-1, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlx.methods import _off_policy
from rlx.networks.critics import deterministic_policy, gaussian_policy
from rlx.ops import distributions, normalization, values
from rlx.ops.normalization import RunningStatistics
from rlx.types import (
    Array,
    Box,
    Carry,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    Network,
    Params,
    PyTree,
    Transition,
)

SOURCE = "dataset"
ACTION_MARGIN = 1e-5
"""Dataset actions stay this far from ±1 before their tanh is undone: beyond it, a
recorded bound would ask for an infinite mean (atanh(1 − 10⁻⁵) is 6.1)."""


@dataclasses.dataclass(frozen=True)
class OfflineConfig(_off_policy.OffPolicyConfig):
    """Fields that every offline actor-critic has. Floats may be swept under `vmap`."""

    policy: str = "gaussian"
    """"gaussian": tanh mean, one free scale; or "tanh_gaussian": as in SAC."""
    initial_log_scale: float = 0.0
    """Where the free log scale starts, between its bounds."""
    normalize_observations: bool = False
    """Standardises observations, clipped at 10; see `statistics` of `make`."""


@struct.dataclass
class Deterministic:
    """A policy without noise, where others have a distribution."""

    action: Array
    """`[..., A]` in [-1, 1]."""

    def mode(self) -> Array:
        """The action."""
        return self.action

    def sample(self, key: Key) -> Array:
        """The action again."""
        del key
        return self.action


class Policy(NamedTuple):
    """A policy network with its distribution over actions in [-1, 1]."""

    network: Network
    distribution: Callable[[Params, PyTree], Any]
    """`(params, observation) -> distribution`."""


def policy(
    spec: EnvSpec,
    kind: str,
    architecture: tuple[tuple[int, ...], str],
    log_scale: tuple[float | Array, float | Array, float | Array],
) -> Policy:
    """A policy of one of three kinds.

    Args:
      spec: the environment's.
      kind: "gaussian" has the mean tanh(μ(s)) and one free scale, its logarithm
        squeezed between its bounds by a sigmoid, so that no bound is ever stuck to;
        "tanh_gaussian" squashes the Gaussian itself, its scale depending on s;
        "deterministic" is tanh(μ(s)).
      architecture: hidden sizes and activation.
      log_scale: smallest, largest and first log scale; the first of the free one.

    Raises:
      ValueError: another kind.
    """
    low, high, first = log_scale
    if kind == "tanh_gaussian":
        network = gaussian_policy(spec, *architecture)

        def squashed(params: Params, observation: PyTree) -> distributions.TanhGaussian:
            mean, scale = network.apply(params, observation)
            return distributions.tanh_gaussian(mean, jnp.clip(scale, low, high))

        return Policy(network, squashed)
    mean_network = deterministic_policy(spec, *architecture)
    if kind == "deterministic":

        def certain(params: Params, observation: PyTree) -> Deterministic:
            return Deterministic(mean_network.apply(params, observation))

        return Policy(mean_network, certain)
    if kind != "gaussian":
        raise ValueError(
            'policy must be "gaussian", "tanh_gaussian" or "deterministic", got '
            f"{kind!r}"
        )

    def init(key: Key) -> Params:
        share = jnp.asarray((first - low) / (high - low), jnp.float32)
        scale = jnp.full(spec.action.shape, jnp.log(share) - jnp.log1p(-share))
        return {"mean": mean_network.init(key), "scale": scale}

    def apply(params: Params, observation: PyTree) -> tuple[Array, Array]:
        mean = mean_network.apply(params["mean"], observation)
        scale = low + (high - low) * jax.nn.sigmoid(params["scale"])
        return mean, jnp.broadcast_to(scale, mean.shape)

    def gaussian(params: Params, observation: PyTree) -> distributions.DiagonalGaussian:
        return distributions.DiagonalGaussian(*apply(params, observation))

    return Policy(Network(init, apply), gaussian)


def make_agent(
    spec: EnvSpec,
    config: _off_policy.OffPolicyConfig,
    kind: str,
    initial_log_scale: float | Array = 0.0,
) -> _off_policy.Agent:
    """Networks and units, with a policy of the kind given (see `policy`).

    Raises:
      ValueError: a field has an impossible value, or actions are no vectors with finite
        bounds.
    """
    _off_policy.check(config)
    limits = (config.minimum_log_scale, config.maximum_log_scale, initial_log_scale)
    if kind == "gaussian" and all(isinstance(x, int | float) for x in limits):
        low, high, first = limits
        if not low < first < high:
            raise ValueError(
                f"initial_log_scale must lie between minimum_log_scale {low} and "
                f"maximum_log_scale {high}, got {first}"
            )
    agent = _off_policy.make_agent(spec, config)
    made = policy(spec, kind, (config.hidden_sizes, config.activation), limits)
    return agent._replace(actor=made.network, distribution=made.distribution)


def shared_fields(config: Any) -> _off_policy.OffPolicyConfig:
    """The fields of a config that every off-policy method has; defaults for the rest.

    Raises:
      ValueError: one of them has an impossible value.
    """
    names = {field.name for field in dataclasses.fields(_off_policy.OffPolicyConfig)}
    known = {name: x for name, x in vars(config).items() if name in names}
    shared = _off_policy.OffPolicyConfig(**known)
    _off_policy.check(shared)
    return shared


def require_density(kind: str) -> None:
    """Raises ValueError for a policy without a likelihood."""
    if kind == "deterministic":
        raise ValueError(
            'policy "deterministic" has no likelihood, which this method maximises: '
            'choose "gaussian" or "tanh_gaussian"'
        )


def log_prob(distribution: Any, action: Array) -> Array:
    """Log-density of dataset actions, kept inside the bounds where tanh is undone."""
    if isinstance(distribution, distributions.TanhGaussian):
        bound = 1.0 - ACTION_MARGIN
        action = jnp.clip(action, -bound, bound)
    return distribution.log_prob(action)


def make_act(
    agent: _off_policy.Agent,
) -> Callable[..., tuple[Array, Carry, PyTree]]:
    """The policy: samples with a key, acts by the mode without; inside the bounds."""

    def act(
        params: Params, stats: PyTree, observation: PyTree, carry: Carry, key: Key
    ) -> tuple[Array, Carry, PyTree]:
        chosen = agent.distribution(params["actor"], normalize(stats, observation))
        unit = chosen.mode() if key is None else chosen.sample(key)
        return agent.to_env(jnp.clip(unit, -1.0, 1.0)), carry, {}

    return act


# ------------------------------------------------------------------- normalisation


def normalize(stats: PyTree, observation: PyTree) -> PyTree:
    """Observations as networks see them; `stats` is () where nothing is changed."""
    if isinstance(stats, tuple) and not stats:
        return observation
    return normalization.normalize(stats, observation, clip=10.0)


def constants(tree: PyTree) -> PyTree:
    """Arrays to close over: on the host, so that no old sharding comes with them.

    What `train.fit` returns lies on a mesh of its own, which the mesh of the next fit
    would refuse. Traced arrays stay as they are.
    """
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.core.Tracer) else np.asarray(x), tree
    )


class Preparation(NamedTuple):
    """What `Method` needs to normalise observations."""

    init_stats: Callable[[int], PyTree]
    prepare: Callable[[LearnerState, Transition], tuple[PyTree, Transition]]


def preparation(
    spec: EnvSpec, enabled: bool, statistics: RunningStatistics | None
) -> Preparation:
    """Normalisation by given moments, or by those of all batches so far.

    Unlike in online learning, the batch itself counts before it is normalised: no
    policy has acted on it. Uniform batches give the dataset's moments soon: after
    10⁵ transitions to about 0.3 %.

    Args:
      spec: the environment's.
      enabled: whether observations are normalised at all.
      statistics: moments that never change; None: those of the batches.

    Raises:
      ValueError: statistics are given but not wanted, or observations are no arrays of
        real numbers.
    """
    if not enabled:
        if statistics is not None:
            raise ValueError(
                "statistics are given, but normalize_observations is off: turn it on"
            )
        return Preparation(lambda num_envs: (), lambda learner, batch: ((), batch))
    if not isinstance(spec.observation, Box):
        raise ValueError(
            f"normalize_observations needs observations that are real numbers, but "
            f"{spec.name} has {spec.observation}: leave it off"
        )
    example = jax.ShapeDtypeStruct(spec.observation.shape, jnp.float32)
    fixed = constants(statistics)

    def init_stats(num_envs: int) -> RunningStatistics:
        del num_envs
        if fixed is None:
            return normalization.init(example)
        return jax.tree.map(jnp.asarray, fixed)

    def prepare(
        learner: LearnerState, batch: Transition
    ) -> tuple[RunningStatistics, Transition]:
        stats = learner.stats
        if statistics is None:
            stats = normalization.update(stats, batch.observation)
        batch = batch.replace(
            observation=normalize(stats, batch.observation),
            next_observation=normalize(stats, batch.next_observation),
        )
        return stats, batch

    return Preparation(init_stats, prepare)


# -------------------------------------------------------------------------- losses


def chosen_value(config: _off_policy.OffPolicyConfig, both: Array) -> Array:
    """Q of the policy's loss, `[2, ...] -> [...]`: see `policy_critic`."""
    return jnp.min(both, axis=0) if config.policy_critic == "min" else both[0]


def implicit_q_loss(
    agent: _off_policy.Agent,
    config: _off_policy.OffPolicyConfig,
    expectile: float | Array,
    params: Params,
    target_params: Params,
    batch: Transition,
) -> tuple[Array, Array, Metrics]:
    """Values of the best actions in the data, and nothing of other actions.

    Kostrikov et al. 2022, https://arxiv.org/abs/2110.06169, eq. 5 and 6 (with a ½ in
    front of eq. 6): V is an expectile of the target critics' Q over the actions of the
    data, and the critics regress to r + γ d V(s').

    Returns:
      The summed loss, the advantages `[...]` of the batch's actions (constants), and
      metrics.
    """
    action = agent.from_env(batch.action)
    slow = agent.critics.apply(target_params["critics"], batch.observation, action)
    value = agent.value.apply(params["value"], batch.observation)
    next_value = agent.value.apply(params["value"], batch.next_observation)
    worth = chosen_value(config, slow)
    value_loss = jnp.mean(values.expectile_loss(value, worth, expectile))
    critic_loss, metrics = _off_policy.critic_loss(
        agent, config, params, batch, next_value
    )
    metrics = {**metrics, "value_loss": value_loss, "value": jnp.mean(value)}
    advantage = jax.lax.stop_gradient(worth - value)
    return value_loss + critic_loss, advantage, metrics
