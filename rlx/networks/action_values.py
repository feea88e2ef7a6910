"""Q(s, ·) of discrete actions, with one head or with the two of a dueling network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from rlx.networks.actor_critic import encode
from rlx.networks.initializers import orthogonal
from rlx.networks.mlp import MLP, activation_named
from rlx.ops import values
from rlx.types import Array, Discrete, EnvSpec, Key, Network, Params


class _ActionValues(nn.Module):
    hidden_sizes: Sequence[int]
    activation: str
    num_actions: int
    dueling: bool

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        hidden = inputs
        if self.hidden_sizes:
            torso = MLP(self.hidden_sizes, self.activation, activate_final=True)
            hidden = torso(inputs)
        head = nn.Dense(self.num_actions, kernel_init=orthogonal(1.0), name="actions")
        if not self.dueling:
            return head(hidden)
        value = nn.Dense(1, kernel_init=orthogonal(1.0), name="value")(hidden)
        return values.dueling(value[..., 0], head(hidden))


def action_values(
    spec: EnvSpec,
    hidden_sizes: Sequence[int],
    activation: str = "relu",
    dueling: bool = True,
) -> Network:
    """`apply(params, observation [..., *D]) -> Q(s, ·) [..., A]`.

    Raises:
      ValueError: the actions are not discrete, or the activation is unknown.
    """
    activation_named(activation)
    if not isinstance(spec.action, Discrete):
        raise ValueError(
            f"action values need discrete actions, but {spec.name} has {spec.action}: "
            "use a method for continuous ones, such as sac or td3"
        )
    module: Any = _ActionValues(
        tuple(hidden_sizes), activation, spec.action.num_values, dueling
    )

    def init(key: Key) -> Params:
        example = jnp.zeros(spec.observation.shape, spec.observation.dtype)
        return module.init(key, encode(spec.observation, example))["params"]

    def apply(params: Params, observation: Array) -> Array:
        return module.apply({"params": params}, encode(spec.observation, observation))

    return Network(init, apply)
