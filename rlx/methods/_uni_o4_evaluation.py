"""AM-Q of Uni-O4's policies: what they score in its models, by its values.

Lei et al. 2024, https://arxiv.org/abs/2311.03351, section 4.2. `rlx.methods.uni_o4`
joins the phases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import struct

from rlx.methods import _offline, _uni_o4
from rlx.methods._model_evaluation import Evaluation, am_q
from rlx.methods._uni_o4 import Config
from rlx.ops import normalization
from rlx.ops.normalization import RunningStatistics
from rlx.types import Array, EnvSpec, Key, Params, PyTree

IsTerminal: TypeAlias = Callable[[Array], Array]
"""`observation [K, D] -> bool[K]`, in the environment's units."""


@struct.dataclass
class Foundation:
    """What phase 2 stands on: the results of phase 1, all fixed but the members."""

    members: Params
    critics: Params
    value: Params
    models: Params
    """The elites alone."""
    observation: PyTree
    """Moments by which observations are standardised, or ()."""
    low: Array
    """`[D]` smallest standardised observation that a model may predict."""
    high: Array


def evaluate(
    spec: EnvSpec,
    config: Config,
    base: Foundation,
    members: Params,
    start: Array,
    key: Key,
    is_terminal: IsTerminal | None = None,
) -> Evaluation:
    """AM-Q of every member, all from the same starts with the same noise.

    Args:
      spec: the environment's.
      config: of both phases.
      base: critics and models.
      members: policies, stacked `[n, ...]`.
      start: `[K, D]` observations as the environment gives them.
      key: for the models' noise.
      is_terminal: of observations as the environment gives them; None: none is.

    Returns:
      Sums and counts `[n, K]`; counts are the horizon where `config.score` says so.
    """
    nets = _uni_o4.networks(spec, config)
    begin = (_offline.normalize(base.observation, start), key)
    found = evaluate_seen(nets, config, base, members, begin, is_terminal)
    return counted(config, found)


def counted(config: Config, found: Evaluation) -> Evaluation:
    """With the counts that `config.score` wants: what sums of Q are divided by."""
    if config.score == "visited":
        return found
    return found._replace(visited=jnp.full_like(found.visited, config.horizon))


def evaluate_seen(
    nets: _uni_o4.Networks,
    config: Config,
    base: Foundation,
    members: Params,
    begin: tuple[Array, Key],
    is_terminal: IsTerminal | None,
) -> Evaluation:
    """AM-Q from standardised starts `[K, D]`; counts are the steps visited."""

    def ended(observation: Array) -> Array:
        assert is_terminal is not None
        if isinstance(base.observation, RunningStatistics):
            observation = normalization.denormalize(base.observation, observation)
        return is_terminal(observation)

    def one(params: Params) -> Evaluation:
        return am_q(
            lambda x: jnp.clip(nets.policy(params, x).mode(), -1.0, 1.0),
            lambda x, action: smallest_value(nets, base, x, action),
            lambda x, action, key: model_step(nets, base, x, action, key),
            *begin,
            config.horizon,
            None if is_terminal is None else ended,
        )

    return jax.vmap(one)(members)


def smallest_value(
    nets: _uni_o4.Networks, base: Foundation, observation: Array, action: Array
) -> Array:
    """The smaller of both critics, `[...]`."""
    both = nets.agent.critics.apply(base.critics, observation, action)
    return jnp.min(both, axis=0)


def model_step(
    nets: _uni_o4.Networks,
    base: Foundation,
    observation: Array,
    action: Array,
    key: Key,
) -> Array:
    """A successor from one elite per state, drawn anew, with its noise."""
    which_key, noise_key = jax.random.split(key)
    mean, log_variance = nets.models.apply(base.models, observation, action)
    elite = jax.random.randint(which_key, observation.shape[:-1], 0, mean.shape[0])
    mean, log_variance = (
        jnp.take_along_axis(x, elite[None, ..., None], axis=0)[0, ..., :-1]
        for x in (mean, log_variance)
    )
    noise = jax.random.normal(noise_key, mean.shape)
    successor = observation + mean + jnp.exp(0.5 * log_variance) * noise
    low, high = (jnp.broadcast_to(x, successor.shape) for x in (base.low, base.high))
    return jnp.clip(successor, low, high)
