"""Policy and value networks for actor-critic methods, with or without memory.

One record serves both: a memoryless network has the carry `()` and unrolls by
applying itself to the whole sequence at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.networks.initializers import orthogonal
from rlx.networks.mlp import MLP, activation_named
from rlx.types import Array, Box, Carry, Discrete, EnvSpec, Key, Params, PyTree, Space


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Sizes and choices of an actor-critic network."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    shared_torso: bool = False
    recurrent_size: int = 0
    """Units of the GRU between torso and heads; 0: no memory."""
    state_dependent_scale: bool = False
    initial_log_scale: float = 0.0


class ActorCritic(NamedTuple):
    """A policy and a value function. `policy` is what a distribution is built from.

    For continuous actions `policy` is `(mean, log_scale)`, both `[..., A]`; for
    discrete ones it is `logits [..., K]`.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, Array, Carry], tuple[PyTree, Array, Carry]]
    """`(params, observation [..., *D], carry) -> (policy, value [...], carry)`."""
    unroll: Callable[[Params, Array, Carry, Array], tuple[PyTree, Array, Carry]]
    """`(params, observation [T, B, *D], carry [B], first [T, B])`
    `-> (policy, value [T, B], carry after each step [T, B])`.

    Where `first` is True the memory is emptied before the step.
    """
    init_carry: Callable[[], Carry]


class _Torso(nn.Module):
    architecture: Architecture

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        sizes = self.architecture.hidden_sizes
        if not sizes:
            return inputs
        return MLP(sizes, self.architecture.activation, activate_final=True)(inputs)


class _Heads(nn.Module):
    """Torso (or torsos), optional GRU, policy and value heads."""

    architecture: Architecture
    num_outputs: int
    gaussian: bool

    @nn.compact
    def __call__(self, inputs: Array, carry: Carry) -> tuple[PyTree, Array, Carry]:
        arch = self.architecture
        hidden = _Torso(arch, name="torso" if arch.shared_torso else "policy_torso")(
            inputs
        )
        value_hidden = hidden
        if not arch.shared_torso:
            value_hidden = _Torso(arch, name="value_torso")(inputs)
        if arch.recurrent_size:
            joined = hidden
            if not arch.shared_torso:
                joined = jnp.concatenate([hidden, value_hidden], axis=-1)
            carry, hidden = nn.GRUCell(arch.recurrent_size, name="memory")(
                carry, joined
            )
            value_hidden = hidden
        # A small last layer makes the first policy nearly uniform.
        policy = self._policy(hidden)
        head = nn.Dense(1, kernel_init=orthogonal(1.0), name="value")
        return policy, head(value_hidden)[..., 0], carry

    def _policy(self, hidden: Array) -> PyTree:
        arch, size = self.architecture, self.num_outputs
        width = 2 * size if self.gaussian and arch.state_dependent_scale else size
        init = orthogonal(0.01)
        outputs = nn.Dense(width, kernel_init=init, name="policy")(hidden)
        if not self.gaussian:
            return outputs
        if arch.state_dependent_scale:
            mean, log_scale = jnp.split(outputs, 2, axis=-1)
            return mean, log_scale + arch.initial_log_scale
        start = nn.initializers.constant(arch.initial_log_scale)
        log_scale = self.param("log_scale", start, (size,))
        return outputs, jnp.broadcast_to(log_scale, outputs.shape)


def encode(space: Space, observation: Array) -> Array:
    """Observations as feature vectors: `[..., *shape] -> [..., D]`.

    Arrays are flattened, discrete values become one-hot vectors.
    """
    if isinstance(space, Discrete):
        return jax.nn.one_hot(observation, space.num_values)
    rank = len(space.shape)
    if rank and observation.shape[-rank:] != space.shape:
        raise ValueError(
            f"observation has shape {observation.shape}, but the environment's "
            f"observations end in {space.shape}"
        )
    batch = observation.shape[: observation.ndim - rank]
    return observation.reshape(*batch, -1).astype(jnp.float32)


def num_outputs(space: Space) -> int:
    """Action dimensions of a Box, number of actions of a Discrete space."""
    if isinstance(space, Discrete):
        return space.num_values
    if len(space.shape) != 1:
        raise ValueError(f"actions must be vectors, got shape {space.shape}")
    return space.shape[0]


def actor_critic(spec: EnvSpec, architecture: Architecture) -> ActorCritic:
    """Builds the policy and value networks that fit an environment.

    Args:
      spec: the environment; its action space decides the kind of policy.
      architecture: sizes and choices.

    Raises:
      ValueError: unknown activation, or an action space that is no vector.
    """
    activation_named(architecture.activation)
    gaussian = isinstance(spec.action, Box)
    module: Any = _Heads(architecture, num_outputs(spec.action), gaussian)

    def init_carry() -> Carry:
        size = architecture.recurrent_size
        return jnp.zeros((size,)) if size else ()

    def init(key: Key) -> Params:
        example = jnp.zeros(spec.observation.shape, spec.observation.dtype)
        features = encode(spec.observation, example)
        return module.init(key, features, init_carry())["params"]

    def apply(params: Params, observation: Array, carry: Carry):
        features = encode(spec.observation, observation)
        return module.apply({"params": params}, features, carry)

    def unroll(params: Params, observation: Array, carry: Carry, first: Array):
        if not architecture.recurrent_size:
            return apply(params, observation, carry)
        chex.assert_rank(first, 2)

        def step(carry, inputs):
            observation, first = inputs
            carry = jnp.where(first[:, None], init_carry(), carry)
            policy, value, carry = apply(params, observation, carry)
            return carry, (policy, value, carry)

        _, outputs = jax.lax.scan(step, carry, (observation, first))
        return outputs

    return ActorCritic(init, apply, unroll, init_carry)
