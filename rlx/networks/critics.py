"""Networks of off-policy methods for continuous actions: policy, critics, value."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rlx.networks.actor_critic import encode, num_outputs
from rlx.networks.mlp import mlp
from rlx.types import Array, EnvSpec, Key, Network, Params


def gaussian_policy(
    spec: EnvSpec, hidden_sizes: Sequence[int], activation: str = "relu"
) -> Network:
    """`apply(params, observation [..., *D]) -> (mean, log_scale)`, both `[..., A]`.

    A small last layer (gain 0.01) starts it near mean 0 and scale 1 everywhere.
    """
    size = num_outputs(spec.action)
    network = mlp(
        _features(spec),
        (*hidden_sizes, 2 * size),
        activation=activation,
        final_scale=0.01,
    )

    def apply(params: Params, observation: Array) -> tuple[Array, Array]:
        outputs = network.apply(params, encode(spec.observation, observation))
        mean, log_scale = jnp.split(outputs, 2, axis=-1)
        return mean, log_scale

    return Network(network.init, apply)


def deterministic_policy(
    spec: EnvSpec, hidden_sizes: Sequence[int], activation: str = "relu"
) -> Network:
    """`apply(params, observation [..., *D]) -> action [..., A]` in (-1, 1).

    A small last layer (gain 0.01) starts it near 0 everywhere.
    """
    sizes = (*hidden_sizes, num_outputs(spec.action))
    network = mlp(_features(spec), sizes, activation=activation, final_scale=0.01)

    def apply(params: Params, observation: Array) -> Array:
        return jnp.tanh(network.apply(params, encode(spec.observation, observation)))

    return Network(network.init, apply)


def critics(
    spec: EnvSpec,
    hidden_sizes: Sequence[int],
    activation: str = "relu",
    num_critics: int = 2,
) -> Network:
    """Independent action-value functions Q_i(s, a) (Fujimoto et al. 2018: two).

    `apply(params, observation [..., *D], action [..., A]) -> [num_critics, ...]`. The
    parameters of each critic are a tree of their own: separate matrix products are
    faster than one batched product on a CPU.
    """
    inputs = _features(spec) + num_outputs(spec.action)
    network = mlp(inputs, (*hidden_sizes, 1), activation=activation)

    def init(key: Key) -> Params:
        keys = jax.random.split(key, num_critics)
        return {f"critic_{i}": network.init(keys[i]) for i in range(num_critics)}

    def apply(params: Params, observation: Array, action: Array) -> Array:
        features = encode(spec.observation, observation)
        both = jnp.concatenate([features, action], axis=-1)
        members = [params[f"critic_{i}"] for i in range(num_critics)]
        return jnp.stack([network.apply(member, both)[..., 0] for member in members])

    return Network(init, apply)


def state_value(
    spec: EnvSpec, hidden_sizes: Sequence[int], activation: str = "relu"
) -> Network:
    """`apply(params, observation [..., *D]) -> [...]`."""
    network = mlp(_features(spec), (*hidden_sizes, 1), activation=activation)

    def apply(params: Params, observation: Array) -> Array:
        return network.apply(params, encode(spec.observation, observation))[..., 0]

    return Network(network.init, apply)


def _features(spec: EnvSpec) -> int:
    example = jnp.zeros(spec.observation.shape, spec.observation.dtype)
    return encode(spec.observation, example).shape[-1]
