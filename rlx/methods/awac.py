"""Advantage-Weighted Actor-Critic (AWAC).

Nair, Gupta, Dalal and Levine 2020, https://arxiv.org/abs/2006.09359, equations 11 and
13: the critics evaluate the current policy by temporal differences, as off-policy
methods do, and the policy regresses to the data's actions, weighted by exp(A/λ). No
model of the behaviour policy is needed, and the same method goes on online: give it a
replay buffer in place of the dataset.

Critics and policy step together, each by the gradient at the same parameters.

Special cases that hold exactly: λ → ∞ is behaviour cloning, whatever the critics say.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import optax

from rlx.methods import _off_policy, _offline
from rlx.ops import offline, targets
from rlx.ops.normalization import RunningStatistics
from rlx.types import Array, EnvSpec, Key, Method, Metrics, Params, PyTree, Transition

SOURCE = _offline.SOURCE


@dataclasses.dataclass(frozen=True)
class Config(_offline.OfflineConfig):
    """AWAC's own fields."""

    temperature: float = 2.0
    """λ of the advantage weights exp(A/λ) (the authors' code, for MuJoCo)."""
    normalize_weights: bool = True
    """Weights average to one over the batch (the authors' code); off: equation 13."""
    maximum_weight: float = 100.0
    """Weights that are not normalised are clipped at this (as in IQL)."""
    actor_weight_decay: float = 1e-4
    """Times the policy's parameters, added to their gradient (the authors' code)."""
    minimum_log_scale: float = -6.0
    """The policy's log scale never falls below this (the authors' code)."""
    maximum_log_scale: float = 0.0
    """The policy's log scale never rises above this (the authors' code)."""
    initial_log_scale: float = -3.0
    """Where the free log scale starts (the authors' code)."""


def loss(log_prob: Array, weight: Array) -> Array:
    """The policy's loss: weighted maximum likelihood (equation 13).

    L = −w(s, a) log π(a|s), a from the data.

    Elementwise; weights and means are the caller's.

    Args:
      log_prob: `[...]` log π(a|s).
      weight: `[...]` w >= 0, such as exp(A(s, a)/λ); a constant of the gradient.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([log_prob, weight])
    chex.assert_type([log_prob, weight], float)
    return -jax.lax.stop_gradient(weight) * log_prob


def make(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
    statistics: RunningStatistics | None = None,
) -> Method:
    """AWAC for an environment with continuous, bounded actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.
      statistics: fixed moments of the dataset's observations; None: estimated from the
        batches. For `normalize_observations` only.

    Raises:
      ValueError: a field of the config has an impossible value, or the actions are no
        vectors with finite bounds.
    """
    for name in ("temperature", "maximum_weight"):
        _off_policy.require(config, name, lambda x: x > 0, "be positive")
    _offline.require_density(config.policy)
    agent = _offline.make_agent(spec, config, config.policy, config.initial_log_scale)
    preparation = _offline.preparation(spec, config.normalize_observations, statistics)

    def init(key: Key) -> Params:
        return _off_policy.init(key, actor=agent.actor, critics=agent.critics)

    def act(params: Params, observation: PyTree, key: Key) -> Array:
        chosen = agent.distribution(params["actor"], observation)
        # What is executed is inside the bounds; so is what the critics are asked.
        return jax.lax.stop_gradient(jnp.clip(chosen.sample(key), -1.0, 1.0))

    def weights(advantage: Array) -> Array:
        if config.normalize_weights:
            return offline.normalized_advantage_weight(
                advantage, 1.0 / config.temperature
            )
        return offline.advantage_weight(
            advantage, 1.0 / config.temperature, config.maximum_weight
        )

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Transition,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del stats
        next_key, key = jax.random.split(key)
        next_value = jnp.min(
            agent.critics.apply(
                target_params["critics"],
                batch.next_observation,
                act(params, batch.next_observation, next_key),
            ),
            axis=0,
        )
        total, metrics = _off_policy.critic_loss(
            agent, config, params, batch, next_value
        )
        action = agent.from_env(batch.action)
        worth = [
            _offline.chosen_value(
                config, agent.critics.apply(params["critics"], batch.observation, x)
            )
            for x in (action, act(params, batch.observation, key))
        ]
        advantage = worth[0] - worth[1]
        distribution = agent.distribution(params["actor"], batch.observation)
        log_prob = _offline.log_prob(distribution, action)
        actor = loss(log_prob, weights(advantage))
        metrics = {
            **metrics,
            "policy_loss": jnp.mean(actor),
            "log_prob": jnp.mean(log_prob),
            "advantage": jnp.mean(advantage),
        }
        return total + jnp.mean(actor), metrics

    return Method(
        init=init,
        act=_offline.make_act(agent),
        loss_fn=loss_fn,
        optimizer=_off_policy.partition(
            actor=optax.chain(
                optax.add_decayed_weights(config.actor_weight_decay),
                optax.adam(config.actor_learning_rate),
            ),
            critics=optax.adam(config.critic_learning_rate),
        ),
        prepare=preparation.prepare,
        init_stats=preparation.init_stats,
        target_update=_off_policy.follow(critics=targets.ema(config.tau)),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
