"""Ensembles: networks of one architecture whose parameters are stacked.

Leaves of the parameters lead with the axis of members `[K, ...]`, so that one `vmap`
runs them all and `jax.tree.map` picks one.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rlx.networks.actor_critic import encode, num_outputs
from rlx.networks.mlp import mlp
from rlx.ops.offline import soft_clamp
from rlx.types import Array, EnvSpec, Key, Network, Params, PyTree

INITIAL_LOG_VARIANCES = (-10.0, 0.5)
"""Where the learned bounds of a dynamics model start (Chua et al. 2018)."""


def ensemble(network: Network, num_members: int) -> Network:
    """`num_members` independent copies; every one sees the same inputs.

    `apply(params, *inputs)` gives what the network gives, with a leading axis `[K]`.

    Raises:
      ValueError: fewer than one member.
    """
    if num_members < 1:
        raise ValueError(f"an ensemble needs at least 1 member, got {num_members}")

    def init(key: Key) -> Params:
        return jax.vmap(network.init)(jax.random.split(key, num_members))

    def apply(params: Params, *inputs: PyTree) -> PyTree:
        return jax.vmap(lambda member: network.apply(member, *inputs))(params)

    return Network(init, apply)


def member(params: Params, index: int | Array) -> Params:
    """The parameters of one member of an ensemble."""
    return jax.tree.map(lambda x: x[index], params)


def actor_critic_params(policy: Params, value: Params) -> Params:
    """The parameters of an actor-critic made of two perceptrons.

    With them `rlx.networks.actor_critic`, with torsos of their own and a scale that
    depends on the state, computes what `gaussian_policy` and `state_value` compute.

    Args:
      policy: of `rlx.networks.critics.gaussian_policy`.
      value: of `rlx.networks.critics.state_value`.
    """

    def parts(name: str, layers: Params) -> Params:
        last = _last_layer(layers)
        torso = {k: v for k, v in layers.items() if k != last}
        made = {name: layers[last]}
        return {**made, f"{name}_torso": {"MLP_0": torso}} if torso else made

    return {**parts("policy", policy), **parts("value", value)}


def last_layer_scaled(params: Params, factor: float | Array) -> Params:
    """A perceptron whose output is `factor` times that of another: its parameters.

    Args:
      params: of `rlx.networks.critics.state_value`; any leading axes.
      factor: a scalar.
    """
    last = _last_layer(params)
    return {**params, last: jax.tree.map(lambda x: factor * x, params[last])}


def _last_layer(params: Params) -> str:
    return f"layer_{len(params) - 1}"


def gaussian_dynamics(
    spec: EnvSpec, hidden_sizes: Sequence[int], activation: str = "silu"
) -> Network:
    """One probabilistic model of the next step (Chua et al. 2018, PE).

    `apply(params, observation [..., *D], action [..., A]) -> (mean, log_variance)`,
    both `[..., D + 1]`: the change of the flattened observation, then the reward. The
    log-variance is clamped softly between bounds that are parameters themselves.
    """
    size = _features(spec)
    network = mlp(
        size + num_outputs(spec.action),
        (*hidden_sizes, 2 * (size + 1)),
        activation=activation,
    )

    def init(key: Key) -> Params:
        low, high = (
            jnp.full((size + 1,), x, jnp.float32) for x in INITIAL_LOG_VARIANCES
        )
        return {"network": network.init(key), "minimum": low, "maximum": high}

    def apply(params: Params, observation: Array, action: Array) -> tuple[Array, Array]:
        features = encode(spec.observation, observation)
        outputs = network.apply(
            params["network"], jnp.concatenate([features, action], axis=-1)
        )
        mean, raw = jnp.split(outputs, 2, axis=-1)
        return mean, soft_clamp(raw, params["minimum"], params["maximum"])

    return Network(init, apply)


def _features(spec: EnvSpec) -> int:
    example = jnp.zeros(spec.observation.shape, spec.observation.dtype)
    return encode(spec.observation, example).shape[-1]
