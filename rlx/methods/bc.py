"""Behaviour cloning (BC): the policy that the data was made by, as far as one fits.

Pomerleau 1991, https://doi.org/10.1162/neco.1991.3.1.88; maximum likelihood as in the
baselines of Fu et al. 2020 (D4RL), https://arxiv.org/abs/2004.07219.

Special cases that hold exactly: for a "gaussian" policy whose scale is fixed the
gradient of the likelihood is that of the squared error ("deterministic"), times a
constant.
"""

from __future__ import annotations

import dataclasses

import chex
import jax.numpy as jnp
import optax

from rlx.methods import _offline
from rlx.ops.normalization import RunningStatistics
from rlx.types import Array, EnvSpec, Key, Method, Metrics, Params, PyTree, Transition

SOURCE = _offline.SOURCE


@dataclasses.dataclass(frozen=True)
class Config:
    """Behaviour cloning's fields. Floats may be swept under `vmap`."""

    policy: str = "gaussian"
    """"gaussian": tanh mean, one free scale; "tanh_gaussian": as in SAC; or
    "deterministic": the squared error of tanh(μ(s)), no likelihood."""
    actor_learning_rate: float = 3e-4
    """Adam's step size (Kostrikov et al. 2022, for its policy)."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Units of the hidden layers (Kostrikov et al. 2022)."""
    activation: str = "relu"
    """Activation between layers (Kostrikov et al. 2022)."""
    minimum_log_scale: float = -5.0
    """The log scale never falls below this (code of Kostrikov et al. 2022)."""
    maximum_log_scale: float = 2.0
    """The log scale never rises above this (code of Kostrikov et al. 2022)."""
    initial_log_scale: float = 0.0
    """Where the free log scale of "gaussian" starts."""
    normalize_observations: bool = True
    """Standardises observations, clipped at 10; see `statistics` of `make`."""
    num_epochs: int = 1
    """Passes over each batch."""
    num_minibatches: int = 1
    """Gradient steps per batch; the data source's `num_minibatches`."""


def likelihood_loss(log_prob: Array) -> Array:
    """The negative log-likelihood of the data's actions.

    Elementwise.

    Args:
      log_prob: `[...]` log π(a|s).

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the array does not hold floats.
    """
    chex.assert_type(log_prob, float)
    return -log_prob


def squared_loss(action: Array, dataset_action: Array) -> Array:
    """The squared error of a deterministic policy, averaged over action dimensions.

    Args:
      action: `[..., A]` π(s).
      dataset_action: `[..., A]` a, in the same units.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: shapes differ.
    """
    chex.assert_equal_shape([action, dataset_action])
    return jnp.mean(jnp.square(action - dataset_action), axis=-1)


def make(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
    statistics: RunningStatistics | None = None,
) -> Method:
    """Behaviour cloning for continuous, bounded actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.
      statistics: fixed moments of the dataset's observations; None: estimated from the
        batches.

    Raises:
      ValueError: a field of the config has an impossible value, or the actions are no
        vectors with finite bounds.
    """
    shared = _offline.shared_fields(config)
    agent = _offline.make_agent(spec, shared, config.policy, config.initial_log_scale)
    preparation = _offline.preparation(spec, config.normalize_observations, statistics)

    def init(key: Key) -> Params:
        return {"actor": agent.actor.init(key)}

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Transition,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del target_params, stats, key
        distribution = agent.distribution(params["actor"], batch.observation)
        action = agent.from_env(batch.action)
        squared = squared_loss(distribution.mode(), action)
        metrics = {"squared_error": jnp.mean(squared)}
        if config.policy == "deterministic":
            return jnp.mean(squared), metrics
        log_prob = _offline.log_prob(distribution, action)
        metrics["log_prob"] = jnp.mean(log_prob)
        return jnp.mean(likelihood_loss(log_prob)), metrics

    return Method(
        init=init,
        act=_offline.make_act(agent),
        loss_fn=loss_fn,
        optimizer=optax.adam(config.actor_learning_rate),
        prepare=preparation.prepare,
        init_stats=preparation.init_stats,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
