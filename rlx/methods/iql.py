"""Implicit Q-Learning (IQL).

Kostrikov, Nair and Levine 2022, https://arxiv.org/abs/2110.06169, equations 5 to 7: an
expectile of Q over the data's own actions stands for the value of the best of them, so
that Q is never asked about an action that the data lacks; the policy is extracted by
advantage-weighted regression.

Value, critics and policy step together, each by the gradient at the same parameters:
their losses are one sum, in which `stop_gradient` says what is a constant for which.

Special cases that hold exactly: with the expectile ½ V is the mean of Q over the data's
actions, as in SARSA; with `inverse_temperature` 0 the policy is behaviour cloning.
"""

from __future__ import annotations

import dataclasses

import chex
import jax.numpy as jnp
import optax

from rlx.methods import _off_policy, _offline
from rlx.ops import offline, targets
from rlx.ops.normalization import RunningStatistics
from rlx.types import Array, EnvSpec, Key, Method, Metrics, Params, PyTree, Transition

SOURCE = _offline.SOURCE


@dataclasses.dataclass(frozen=True)
class Config(_offline.OfflineConfig):
    """IQL's own fields."""

    expectile: float = 0.7
    """τ: ½ averages over the data's actions, 1 takes their best (section 5.1)."""
    inverse_temperature: float = 3.0
    """β of the advantage weights exp(β A) (section 5.1: 3 for MuJoCo)."""
    maximum_weight: float = 100.0
    """Advantage weights are clipped at this (the authors' code)."""
    minimum_log_scale: float = -5.0
    """The policy's log scale never falls below this (the authors' code)."""
    anneal_steps: int = 0
    """Gradient steps over which schedules run; 0: none. `rlx train` fills it in."""
    anneal_actor: bool = True
    """The policy's step size falls as a cosine to zero over `anneal_steps`, if set
    (the authors' code)."""


def loss(
    log_prob: Array,
    advantage: Array,
    *,
    inverse_temperature: float | Array = 3.0,
    maximum_weight: float | Array = 100.0,
) -> Array:
    """The policy's loss: advantage-weighted regression (equation 7).

    L = −min(exp(β A(s, a)), w_max) log π(a|s), a from the data.

    Elementwise; means are the caller's.

    Args:
      log_prob: `[...]` log π(a|s).
      advantage: `[...]` Q(s, a) − V(s), a constant of the gradient.
      inverse_temperature: β >= 0, a scalar.
      maximum_weight: w_max > 0, a scalar.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([log_prob, advantage])
    chex.assert_type([log_prob, advantage], float)
    weight = offline.advantage_weight(advantage, inverse_temperature, maximum_weight)
    return -weight * log_prob


def make(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
    statistics: RunningStatistics | None = None,
) -> Method:
    """IQL for an environment with continuous, bounded actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.
      statistics: fixed moments of the dataset's observations; None: estimated from the
        batches. For `normalize_observations` only.

    Raises:
      ValueError: a field of the config has an impossible value, or the actions are no
        vectors with finite bounds.
    """
    _check(config)
    agent = _offline.make_agent(spec, config, config.policy, config.initial_log_scale)
    preparation = _offline.preparation(spec, config.normalize_observations, statistics)

    def init(key: Key) -> Params:
        networks = {"actor": agent.actor, "critics": agent.critics}
        return _off_policy.init(key, **networks, value=agent.value)

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Transition,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del stats, key
        total, advantage, metrics = _offline.implicit_q_loss(
            agent, config, config.expectile, params, target_params, batch
        )
        distribution = agent.distribution(params["actor"], batch.observation)
        log_prob = _offline.log_prob(distribution, agent.from_env(batch.action))
        actor = loss(
            log_prob,
            advantage,
            inverse_temperature=config.inverse_temperature,
            maximum_weight=config.maximum_weight,
        )
        metrics = {
            **metrics,
            "policy_loss": jnp.mean(actor),
            "log_prob": jnp.mean(log_prob),
            "advantage": jnp.mean(advantage),
        }
        return total + jnp.mean(actor), metrics

    def actor_rate(count: Array) -> Array:
        if not (config.anneal_steps and config.anneal_actor):
            return jnp.asarray(config.actor_learning_rate)
        passed = jnp.minimum(count / config.anneal_steps, 1.0)
        return config.actor_learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * passed))

    return Method(
        init=init,
        act=_offline.make_act(agent),
        loss_fn=loss_fn,
        optimizer=_off_policy.partition(
            actor=optax.adam(actor_rate),
            critics=optax.adam(config.critic_learning_rate),
            value=optax.adam(config.critic_learning_rate),
        ),
        prepare=preparation.prepare,
        init_stats=preparation.init_stats,
        target_update=_off_policy.follow(critics=targets.ema(config.tau)),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )


def _check(config: Config) -> None:
    require = _off_policy.require
    require(config, "expectile", lambda x: 0 < x < 1, "lie in (0, 1)")
    require(config, "inverse_temperature", lambda x: x >= 0, "not be negative")
    require(config, "maximum_weight", lambda x: x > 0, "be positive")
    _offline.require_density(config.policy)
