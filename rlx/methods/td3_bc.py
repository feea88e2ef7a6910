"""Twin delayed policy gradient with behaviour cloning (TD3+BC).

Fujimoto and Gu 2021, https://arxiv.org/abs/2106.06860, equations 3 to 5: TD3
(Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477) whose policy also pays for its
squared distance from the data's actions, Q being scaled to a mean size of α. States
are standardised.

Critics and policy step by the gradient at the same parameters; every second step
leaves the policy and all targets as they are.

Special cases that hold exactly: α = 0 is behaviour cloning by squared error; scaling
all of Q leaves the policy's loss as it is.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from rlx.methods import _deterministic, _off_policy, _offline
from rlx.ops.normalization import RunningStatistics
from rlx.types import (
    Array,
    Carry,
    EnvSpec,
    Key,
    Method,
    Metrics,
    Params,
    PyTree,
    Transition,
)

SOURCE = _offline.SOURCE


@dataclasses.dataclass(frozen=True)
class Config(_deterministic.TwinDelayedConfig):
    """TD3+BC's own fields; step sizes, layers and TD3's fields as in table 3."""

    value_weight: float = 2.5
    """α: weight of Q against the distance from the data (section 5)."""
    normalize_observations: bool = True
    """Standardises observations, clipped at 10 (section 5: by the dataset's moments);
    see `statistics` of `make`."""


def value_scale(action_value: Array, weight: float | Array) -> Array:
    """λ = α / mean |Q(s, a)|, the scale of Q in the policy's loss (equation 5).

    Args:
      action_value: `[...]` Q of the whole batch; a constant of the gradient.
      weight: α >= 0, a scalar.

    Returns:
      `[]`; α / 10⁻⁶ at most, where Q is 0 everywhere.

    Raises:
      AssertionError: Q does not hold floats, or α is no scalar.
    """
    chex.assert_type(action_value, float)
    chex.assert_rank(weight, 0)
    size = jnp.mean(jnp.abs(jax.lax.stop_gradient(action_value)))
    return weight / jnp.maximum(size, 1e-6)


def loss(action_value: Array, squared_error: Array, *, scale: float | Array) -> Array:
    """The policy's loss (equations 3 and 5).

    L = −λ Q(s, π(s)) + |π(s) − a|² / A, A the dimension of the actions.

    Elementwise; means are the caller's.

    Args:
      action_value: `[...]` Q(s, π(s)), a function of the policy through its action.
      squared_error: `[...]` |π(s) − a|² / A for the data's action a, both in [-1, 1].
      scale: λ, a scalar, as `value_scale` gives it.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([action_value, squared_error])
    chex.assert_type([action_value, squared_error], float)
    return squared_error - scale * action_value


def make(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
    statistics: RunningStatistics | None = None,
) -> Method:
    """TD3+BC for an environment with continuous, bounded actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.
      statistics: fixed moments of the dataset's observations; None: estimated from the
        batches. For `normalize_observations` only.

    Raises:
      ValueError: a field of the config has an impossible value, or the actions are no
        vectors with finite bounds.
    """
    _off_policy.require(config, "value_weight", lambda x: x >= 0, "not be negative")
    _deterministic.check_twin_delayed(config)
    agent = _deterministic.make_agent(spec, config, num_critics=2)
    preparation = _offline.preparation(spec, config.normalize_observations, statistics)
    act_on_seen = _deterministic.make_act(agent, config.exploration_noise)

    def act(
        params: Params, stats: PyTree, observation: PyTree, carry: Carry, key: Key
    ) -> tuple[Array, Carry, PyTree]:
        seen = _offline.normalize(stats, observation)
        return act_on_seen(params, stats, seen, carry, key)

    def critic_loss(
        params: Params, target_params: Params, batch: Transition, key: Key
    ) -> tuple[Array, Metrics]:
        ahead = _deterministic.smoothed_values(
            agent, config, target_params, batch.next_observation, key
        )
        next_value = jnp.min(ahead, axis=0)
        return _off_policy.critic_loss(agent, config, params, batch, next_value)

    def policy_loss(params: Params, batch: Transition) -> tuple[Array, Metrics]:
        action = agent.actor.apply(params["actor"], batch.observation)
        constant = jax.lax.stop_gradient(params["critics"])
        worth = agent.critics.apply(constant, batch.observation, action)[0]
        squared = jnp.square(action - agent.from_env(batch.action))
        distance = jnp.mean(squared, axis=-1)
        scale = value_scale(worth, config.value_weight)
        total = jnp.mean(loss(worth, distance, scale=scale))
        metrics = {"policy_loss": total, "squared_error": jnp.mean(distance)}
        return total, {**metrics, "value_scale": scale}

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Transition,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del stats
        total, metrics = critic_loss(params, target_params, batch, key)
        actor, more = policy_loss(params, batch)
        return total + actor, {**metrics, **more}

    return Method(
        init=lambda key: _deterministic.init(agent, key),
        act=act,
        loss_fn=loss_fn,
        optimizer=_deterministic.make_optimizer(config, config.policy_delay),
        prepare=preparation.prepare,
        init_stats=preparation.init_stats,
        target_update=_deterministic.follow(config.tau, config.policy_delay),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
