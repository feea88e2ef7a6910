"""Networks that stand for a reward."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from rlx.networks.actor_critic import encode, num_outputs
from rlx.networks.mlp import mlp
from rlx.types import Array, EnvSpec, Network, Params


def bounded_reward(
    spec: EnvSpec, hidden_sizes: Sequence[int], activation: str = "leaky_relu"
) -> Network:
    """A reward r(s, a) in (-1, 1), as PEBBLE learns it.

    `apply(params, observation [..., *D], action [..., *A]) -> [...]`. Discrete actions
    become one-hot vectors. The bound fixes the scale, which preferences alone would let
    grow (Lee et al. 2021, https://arxiv.org/abs/2106.05091, the authors' code).

    Raises:
      ValueError: an unknown activation.
    """
    example = jnp.zeros(spec.observation.shape, spec.observation.dtype)
    inputs = encode(spec.observation, example).shape[-1] + num_outputs(spec.action)
    network = mlp(inputs, (*hidden_sizes, 1), activation=activation)

    def apply(params: Params, observation: Array, action: Array) -> Array:
        features = [encode(spec.observation, observation), encode(spec.action, action)]
        outputs = network.apply(params, jnp.concatenate(features, axis=-1))
        return jnp.tanh(outputs[..., 0])

    return Network(network.init, apply)
