"""What on-policy actor-critic methods share: the policy, the batch, its preparation.

PPO, MDPO and their relatives differ in one elementwise loss. Everything else is here:
acting, normalisation, advantages, the value loss, schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlx.methods._on_policy_config import OnPolicyConfig, check, make_optimizer
from rlx.networks.actor_critic import ActorCritic, Architecture, actor_critic
from rlx.ops import distributions, normalization, returns, values
from rlx.types import (
    Array,
    Box,
    Carry,
    EnvSpec,
    Key,
    LearnerState,
    LossFn,
    Method,
    Metrics,
    Params,
    PyTree,
    Transition,
)


@struct.dataclass
class OnPolicyBatch:
    """A prepared batch. Leaves `[T * B, ...]`, or `[B, T, ...]` for recurrent nets."""

    observation: PyTree
    """Normalised as the behaviour policy saw it."""
    choice: Array
    """What was sampled: an action before bounds and squashing, or an index."""
    behaviour: PyTree
    """Parameters of the behaviour policy's distribution: constants."""
    behaviour_log_prob: Array
    advantage: Array
    behaviour_value: Array
    value_target: Array
    progress: Array
    """Fraction of the schedule that has passed, the same for the whole batch."""
    first: Array
    """True where an episode begins."""
    carry: Carry
    """Memory before each step (recurrent networks)."""


class Prediction(NamedTuple):
    """What the current parameters say about a batch."""

    distribution: PyTree
    behaviour: PyTree
    """The distribution that acted."""
    log_prob: Array
    value: Array


class Agent(NamedTuple):
    """A network with the distribution that fits the action space."""

    network: ActorCritic
    distribution: Callable[[PyTree], PyTree]
    """From the network's policy output to a distribution over choices."""
    action: Callable[[Array], Array]
    """From a choice to the action that the environment executes."""


def make_agent(spec: EnvSpec, config: OnPolicyConfig) -> Agent:
    """Network and distribution for an environment."""
    network = actor_critic(
        spec,
        Architecture(
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            shared_torso=config.shared_torso,
            recurrent_size=config.recurrent_size,
            state_dependent_scale=config.state_dependent_scale,
            initial_log_scale=config.initial_log_scale,
        ),
    )
    if not isinstance(spec.action, Box):
        return Agent(network, distributions.Categorical, lambda choice: choice)
    box = spec.action
    bounded = bool(
        np.all(np.isfinite([*np.ravel(box.minimum), *np.ravel(box.maximum)]))
    )
    if config.squash and not bounded:
        raise ValueError(
            f"squash=True needs finite action bounds, but {spec.name} has "
            f"[{box.minimum}, {box.maximum}]: leave squash off"
        )

    def gaussian(policy: PyTree) -> PyTree:
        mean, log_scale = policy
        limited = jnp.clip(
            log_scale, config.minimum_log_scale, config.maximum_log_scale
        )
        return distributions.DiagonalGaussian(mean, limited)

    def action(choice: Array) -> Array:
        # Log-probabilities and divergences are those of the choice: squashing is a
        # bijection, so ratios and KL are the same as those of the action.
        if not bounded:
            return choice
        unit = jnp.tanh(choice) if config.squash else jnp.clip(choice, -1.0, 1.0)
        return distributions.rescale_to_box(unit, box.minimum, box.maximum)

    return Agent(network, gaussian, action)


class Stats(NamedTuple):
    """Running estimates; an entry is () where its normalisation is off."""

    observation: PyTree
    reward: PyTree


def _normalize_observation(stats: Stats, observation: PyTree) -> PyTree:
    if isinstance(stats.observation, tuple) and not stats.observation:
        return observation
    return normalization.normalize(stats.observation, observation, clip=10.0)


def make_act(agent: Agent) -> Callable[..., tuple[PyTree, Carry, PyTree]]:
    """The policy: samples with a key, acts by the mode without one."""

    def act(
        params: Params, stats: Stats, observation: PyTree, carry: Carry, key: Key | None
    ) -> tuple[PyTree, Carry, PyTree]:
        observation = _normalize_observation(stats, observation)
        policy, _, new_carry = agent.network.apply(params, observation, carry)
        distribution = agent.distribution(policy)
        choice = distribution.mode() if key is None else distribution.sample(key)
        extras = {"choice": choice, "carry": carry}
        return agent.action(choice), new_carry, extras

    return act


def make_prepare(
    agent: Agent, config: OnPolicyConfig
) -> Callable[[LearnerState, Transition], tuple[Stats, OnPolicyBatch]]:
    """Advantages, value targets and the behaviour policy's numbers, once per batch."""

    def prepare(
        learner: LearnerState, batch: Transition
    ) -> tuple[Stats, OnPolicyBatch]:
        stats, params = learner.stats, learner.params
        # The policy acted on these normalised observations; new moments come later.
        observation = _normalize_observation(stats, batch.observation)
        successor = _normalize_observation(stats, batch.next_observation)
        ended = batch.truncated | (batch.discount == 0)
        first = jnp.concatenate([jnp.zeros_like(ended[:1]), ended[:-1]])
        carry = batch.extras["carry"]
        start = jax.tree.map(lambda x: x[0], carry)
        policy, value, carry_after = agent.network.unroll(
            params, observation, start, first
        )
        _, next_value, _ = agent.network.apply(params, successor, carry_after)
        choice = batch.extras["choice"]
        new_stats, reward = _update_stats(stats, batch, config)
        advantage = returns.generalized_advantage(
            reward,
            batch.discount,
            batch.truncated,
            value,
            next_value,
            config.gamma,
            config.lambda_,
        )
        target = advantage + value
        if config.normalize_advantages == "batch":
            advantage = normalization.standardize(advantage)
        prepared = OnPolicyBatch(
            observation=observation,
            choice=choice,
            behaviour=policy,
            behaviour_log_prob=agent.distribution(policy).log_prob(choice),
            advantage=advantage,
            behaviour_value=value,
            value_target=target,
            progress=jnp.broadcast_to(_progress(learner.step, config), value.shape),
            first=first,
            carry=carry,
        )
        return new_stats, jax.lax.stop_gradient(_to_samples(prepared, config))

    return prepare


def _update_stats(
    stats: Stats, batch: Transition, config: OnPolicyConfig
) -> tuple[Stats, Array]:
    reward = batch.reward
    observation_stats, reward_stats = stats
    if config.normalize_rewards:
        reward_stats, reward = normalization.scale_rewards(
            reward_stats, batch.reward, batch.discount, batch.truncated, config.gamma
        )
    if config.normalize_observations and config.update_observation_moments:
        observation_stats = normalization.update(observation_stats, batch.observation)
    return Stats(observation_stats, reward_stats), reward


def _progress(step: Array, config: OnPolicyConfig) -> Array:
    if not config.anneal_steps:
        return jnp.zeros(())
    return jnp.minimum(step / config.anneal_steps, 1.0)


def _to_samples(batch: OnPolicyBatch, config: OnPolicyConfig) -> OnPolicyBatch:
    if config.recurrent_size:
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batch)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def predict(
    agent: Agent, config: OnPolicyConfig, params: Params, batch: OnPolicyBatch
) -> Prediction:
    """Distribution, log-probability and value of a prepared batch under `params`."""
    if config.recurrent_size:
        time_major = jax.tree.map(
            lambda x: jnp.swapaxes(x, 0, 1), (batch.observation, batch.first)
        )
        start = jax.tree.map(lambda x: x[:, 0], batch.carry)
        outputs = agent.network.unroll(params, time_major[0], start, time_major[1])
        policy, value = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), outputs[:2])
    else:
        policy, value, _ = agent.network.apply(params, batch.observation, ())
    distribution = agent.distribution(policy)
    return Prediction(
        distribution=distribution,
        behaviour=agent.distribution(batch.behaviour),
        log_prob=distribution.log_prob(batch.choice),
        value=value,
    )


PolicyLoss = Callable[[Prediction, OnPolicyBatch, Array], tuple[Array, Metrics]]
"""`(prediction, batch, advantage) -> (elementwise loss, metrics)`."""


def make_loss_fn(
    agent: Agent, config: OnPolicyConfig, policy_loss: PolicyLoss
) -> LossFn:
    """Policy loss + value loss - entropy bonus, as means over the batch."""

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: OnPolicyBatch,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del target_params, stats, key
        prediction = predict(agent, config, params, batch)
        advantage = batch.advantage
        if config.normalize_advantages == "minibatch":
            advantage = normalization.standardize(advantage)
        policy_term, metrics = policy_loss(prediction, batch, advantage)
        value_term = _value_loss(prediction.value, batch, config)
        entropy = prediction.distribution.entropy()
        kl = jnp.mean(
            distributions.kl_divergence(prediction.behaviour, prediction.distribution)
        )
        loss = (
            jnp.mean(policy_term)
            + config.value_coefficient * jnp.mean(value_term)
            - config.entropy_coefficient * jnp.mean(entropy)
        )
        metrics = {
            "policy_loss": jnp.mean(policy_term),
            "value_loss": jnp.mean(value_term),
            "entropy": jnp.mean(entropy),
            "behaviour_kl": kl,
            "explained_variance": _explained(prediction.value, batch.value_target),
            **metrics,
        }
        if config.target_kl is not None:
            metrics["stop"] = kl > config.target_kl
        return loss, metrics

    return loss_fn


def _value_loss(value: Array, batch: OnPolicyBatch, config: OnPolicyConfig) -> Array:
    if config.value_clip is None:
        return values.squared_error(value, batch.value_target)
    return values.clipped_value_loss(
        value, batch.behaviour_value, batch.value_target, config.value_clip
    )


def _explained(value: Array, target: Array) -> Array:
    variance = jnp.var(target)
    return 1.0 - jnp.var(target - value) / jnp.maximum(variance, 1e-8)


def make_method(
    spec: EnvSpec,
    config: OnPolicyConfig,
    make_policy_loss: Callable[[Agent], PolicyLoss],
) -> Method:
    """An on-policy method from its elementwise policy loss.

    Raises:
      ValueError: a field of the config has an impossible value.
    """
    check(config)
    agent = make_agent(spec, config)

    def init_stats(num_envs: int) -> Stats:
        example = jnp.zeros(spec.observation.shape, jnp.float32)
        return Stats(
            observation=normalization.init(example)
            if config.normalize_observations
            else (),
            reward=normalization.init_reward_scale(num_envs)
            if config.normalize_rewards
            else (),
        )

    return Method(
        init=agent.network.init,
        act=make_act(agent),
        loss_fn=make_loss_fn(agent, config, make_policy_loss(agent)),
        optimizer=make_optimizer(config),
        prepare=make_prepare(agent, config),
        init_carry=agent.network.init_carry,
        init_stats=init_stats,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
