"""Deep Q-networks (DQN): double, dueling, with returns of n steps.

Mnih et al. 2015, https://doi.org/10.1038/nature14236; double: van Hasselt et al. 2016,
https://arxiv.org/abs/1509.06461; dueling: Wang et al. 2016,
https://arxiv.org/abs/1511.06581; prioritised replay: Schaul et al. 2016,
https://arxiv.org/abs/1511.05952; n steps as in Hessel et al. 2018,
https://arxiv.org/abs/1710.02298, uncorrected.

It learns from `rlx.data.prioritised`; on `rlx.data.replay` (uniform) it runs as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import optax

from rlx.methods import _q_learning
from rlx.networks.action_values import action_values
from rlx.types import Array, EnvSpec, Method, Network, PyTree

SOURCE = "prioritised"
loss = _q_learning.loss


@dataclasses.dataclass(frozen=True)
class Config(_q_learning.QLearningConfig):
    """Fields of DQN."""

    hidden_sizes: tuple[int, ...] = (128, 128)
    """Units of the hidden layers."""
    activation: str = "relu"
    """Activation between layers."""


def make(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
    *,
    network: Network | None = None,
    allowed: Callable[[PyTree], Array] | None = None,
) -> Method:
    """DQN for an environment with discrete actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.
      network: `apply(params, observation) -> Q(s, ·) [..., A]`, in place of a
        perceptron with `config.dueling`, for observations that are no arrays.
      allowed: `observation -> bool[..., A]`: which actions may be taken and count in
        the target; all unless given. Where none is, 0 is taken and worth 0.

    Raises:
      ValueError: a field of the config has an impossible value, or the actions are not
        discrete.
    """
    _q_learning.check(config)
    if network is None:
        network = action_values(
            spec, config.hidden_sizes, config.activation, config.dueling
        )

    def where(observation: PyTree, everything: Array) -> Array:
        if allowed is None:
            return jnp.ones(everything.shape, bool)
        return allowed(observation)

    dtype = spec.action.dtype
    agent = _q_learning.Agent(
        network=network,
        where=where,
        to_env=lambda observation, everything, index: index.astype(dtype),
        taken=lambda batch: batch.action,
    )
    return _q_learning.make_method(agent, config, optax.adam(config.learning_rate))
