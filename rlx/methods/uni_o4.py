"""Offline-to-online by one on-policy objective (Uni-O4).

Lei, He, Lu, Hu, Gao and Xu 2024, https://arxiv.org/abs/2311.03351, in three phases:

1. `make`: from the dataset, an ensemble of behaviour policies, values by implicit
   Q-learning, and an ensemble of dynamics models. Also a baseline: the behaviour.
2. `improvement`: several rounds of offline PPO. Each member is bound by the clipped
   ratio to its last accepted policy, its advantages come from the fixed values, and
   it is accepted if its score in the model (AM-Q) improves.
3. `hand_over`: the parameters with which `rlx.methods.ppo` goes on online.

Differences from the authors' code: members are updated simultaneously; the mean of a
policy is not squashed by a tanh, so that it is PPO's network to the bit; each model
learns from a part of every minibatch that no other model sees, in place of a bootstrap
sample of its own; models predict standardised observations, held inside the range of
the data.

Special cases that hold exactly: without diversity every member is behaviour cloning
from another start; the surrogate is PPO's, and where a member equals the policy that
binds it, its gradient is that of −mean(A log π).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from rlx.methods import _off_policy, _offline, _uni_o4
from rlx.methods._model_evaluation import Evaluation, am_q, gate, paired_difference
from rlx.methods._uni_o4 import Config, dynamics_loss, ensemble_loss, loss
from rlx.methods._uni_o4_evaluation import Foundation, evaluate
from rlx.methods._uni_o4_improvement import improvement
from rlx.networks.ensemble import actor_critic_params, member
from rlx.ops import distributions, targets
from rlx.ops.normalization import RunningStatistics
from rlx.types import (
    Array,
    EnvSpec,
    Key,
    LearnerState,
    Method,
    Metrics,
    Params,
    PyTree,
    Transition,
)

__all__ = [
    "Config",
    "Evaluation",
    "Foundation",
    "am_q",
    "dynamics_loss",
    "ensemble_loss",
    "evaluate",
    "foundation",
    "gate",
    "hand_over",
    "improvement",
    "loss",
    "make",
    "paired_difference",
]

SOURCE = _offline.SOURCE
MARGIN = 0.25
"""Share of the data's range by which predicted observations may leave it (own)."""


# ------------------------------------------------------------------ phase 1: the data


def make(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
    statistics: RunningStatistics | None = None,
) -> Method:
    """Phase 1: behaviour policies, values and models from the same batches.

    It acts by the member that is surest of itself in each state (smallest scale).

    Args:
      spec: the environment's.
      config: see the fields of `Config`.
      statistics: fixed moments of the dataset's observations; None: estimated from the
        batches.

    Raises:
      ValueError: a field of the config has an impossible value, observations are no
        vectors, or actions are no vectors with finite bounds.
    """
    nets = _uni_o4.networks(spec, config)
    preparation = _offline.preparation(spec, config.normalize_observations, statistics)

    def init(key: Key) -> Params:
        return _off_policy.init(
            key,
            members=nets.members,
            critics=nets.agent.critics,
            value=nets.agent.value,
            models=nets.models,
        )

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Transition,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del stats, key
        values, _, metrics = _offline.implicit_q_loss(
            nets.agent, config, config.expectile, params, target_params, batch
        )
        cloning = ensemble_loss(
            nets.policies(params["members"], batch.observation),
            nets.agent.from_env(batch.action),
            weight=config.diversity_weight,
            diversity=config.diversity,
        )
        models, error = _training_loss(nets, config, params["models"], batch)
        # A member's mean, then the sum over members: each learns as if alone.
        total = values + models + jnp.sum(_uni_o4.mean_each(cloning))
        metrics = {
            **metrics,
            "cloning_loss": jnp.mean(cloning),
            "model_loss": models,
            "model_error": jnp.mean(error),
        }
        return total, metrics

    rate = config.critic_learning_rate
    return Method(
        init=init,
        act=_uni_o4.make_act(
            nets, lambda stats, policies: _surest(policies), lambda stats: stats
        ),
        loss_fn=loss_fn,
        optimizer=_off_policy.partition(
            members=optax.adam(config.actor_learning_rate),
            critics=optax.adam(rate),
            value=optax.adam(rate),
            models=optax.chain(
                optax.add_decayed_weights(config.model_weight_decay),
                optax.adam(config.model_learning_rate),
            ),
        ),
        prepare=preparation.prepare,
        init_stats=preparation.init_stats,
        target_update=_off_policy.follow(critics=targets.ema(config.tau)),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )


def _training_loss(
    nets: _uni_o4.Networks, config: Config, models: Params, batch: Transition
) -> tuple[Array, Array]:
    """Summed over models: likelihood and spread of the bounds; squared errors `[K]`.

    Each model learns from a K-th of the minibatch; what is left over teaches none.
    """
    flat = jax.tree.map(
        lambda x: x.reshape(-1, x.shape[-1]),
        (batch.observation, nets.agent.from_env(batch.action), _outcome(batch)),
    )
    share = flat[0].shape[0] // config.num_models
    if not share:
        raise ValueError(
            f"{config.num_models} models share a minibatch of {flat[0].shape[0]} "
            "transitions: make batch_size larger"
        )
    used = share * config.num_models
    observation, action, target = jax.tree.map(
        lambda x: x[:used].reshape(config.num_models, share, x.shape[-1]), flat
    )
    mean, log_variance = nets.each_model(models, observation, action)
    one = jax.vmap(lambda m, v, y: dynamics_loss(m[None], v[None], y)[0])
    likelihood = jnp.sum(_uni_o4.mean_each(one(mean, log_variance, target)))
    spread = jnp.sum(models["maximum"] - models["minimum"])
    return likelihood + config.bound_weight * spread, _error(mean, target)


def _outcome(batch: Transition) -> Array:
    """What models predict, `[..., D + 1]`: change of the observation, reward."""
    change = batch.next_observation - batch.observation
    return jnp.concatenate([change, batch.reward[..., None]], axis=-1)


def _error(mean: Array, target: Array) -> Array:
    """Squared errors of models, `[K]`; rollouts ask one for the observation alone."""
    residual = (mean - target)[..., :-1]
    return _uni_o4.mean_each(jnp.square(residual))


def _surest(policies: distributions.DiagonalGaussian) -> Array:
    """The member densest at its own mean, `int[...]`: the one of smallest scale."""
    return jnp.argmin(jnp.sum(policies.log_scale, axis=-1), axis=0)


# ---------------------------------------------------------------- between the phases


def foundation(
    spec: EnvSpec, config: Config, learner: LearnerState, holdout: Transition
) -> Foundation:
    """Picks the elite models and measures the range of the data.

    Args:
      spec: the environment's.
      config: that of phase 1.
      learner: phase 1's, one run.
      holdout: transitions `[N, ...]` as the dataset has them, best such that no model
        was trained on.
    """
    nets = _uni_o4.networks(spec, config)
    params = learner.params
    seen = holdout.replace(
        observation=_offline.normalize(learner.stats, holdout.observation),
        next_observation=_offline.normalize(learner.stats, holdout.next_observation),
    )
    action = nets.agent.from_env(seen.action)
    mean, _ = nets.models.apply(params["models"], seen.observation, action)
    happened = jnp.broadcast_to(_outcome(seen), mean.shape)
    elites = jnp.argsort(_error(mean, happened))[: config.num_elites]
    flat = seen.observation.reshape(-1, seen.observation.shape[-1])
    low, high = jnp.min(flat, axis=0), jnp.max(flat, axis=0)
    room = MARGIN * (high - low)
    return Foundation(
        members=params["members"],
        critics=params["critics"],
        value=params["value"],
        models=member(params["models"], elites),
        observation=learner.stats,
        low=low - room,
        high=high + room,
    )


def hand_over(members: Params, value: Params, index: int | Array) -> Params:
    """What `rlx.methods.ppo` starts from: one member and the offline values.

    PPO acts by them exactly as the member did, if its config has the same
    `hidden_sizes`, `activation` and bounds of the log scale, `state_dependent_scale`
    True, `shared_torso`, `recurrent_size` and `squash` off, `initial_log_scale` 0, and
    its stats the moments of the observations:

        fresh = ppo.make(spec, ppo.Config(...))
        params = hand_over(members, base.value, index)
        online = fresh._replace(
            init=lambda key: params,
            init_stats=lambda num_envs: fresh.init_stats(num_envs)._replace(
                observation=base.observation
            ),
        )

    Args:
      members: policies, stacked `[n, ...]`, best those that were accepted.
      value: of the offline phase; what it is worth online depends on the scale of the
        rewards there.
      index: which member.
    """
    return actor_critic_params(member(members, index), value)
