"""What PEBBLE learns by: its config, novelty, losses, the reward's fit, gradient steps.

Lee et al. 2021, https://arxiv.org/abs/2106.05091.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rlx.methods import _off_policy, _preference
from rlx.methods._preference import Fit, Reward
from rlx.networks.actor_critic import num_outputs
from rlx.ops import normalization, soft, state_entropy
from rlx.ops.segments import Batch, Labels, Pairs
from rlx.types import (
    Array,
    EnvSpec,
    Key,
    LearnerState,
    Method,
    Metrics,
    Params,
    Transition,
)


@dataclasses.dataclass(frozen=True)
class Config(_preference.PreferenceConfig, _off_policy.OffPolicyConfig):
    """Fields of PEBBLE and of what extends it."""

    pretraining_batches: int = 5_000
    """Batches in which the reward is the novelty of states (the authors' code: 9,000
    steps for walker)."""
    num_neighbours: int = 5
    """k: novelty is the distance to the k-th nearest state (the authors' code)."""
    reward_epochs: int = 50
    """Passes over the labels in a session, at most (B-Pref's code)."""
    enough_agreement: float = 0.97
    """A session's fit ends after a pass in which so many labels were predicted."""
    catch_up_steps: int = 100
    """Gradient steps after the critics' reset, at the first session."""
    temperature: float = 0.1
    """α: where the temperature starts (the authors' code)."""
    automatic_temperature: bool = True
    """α is learned."""
    temperature_learning_rate: float = 1e-4
    """Adam's step size for log α (the authors' code)."""
    target_entropy: float | None = None
    """Nats; None: minus the dimension of the actions."""


@struct.dataclass
class Stats:
    """What a run knows beside its parameters."""

    labels: Labels
    batches: Array
    """`int32[]` batches seen."""
    novelty: normalization.RunningStatistics
    """Of the distances to the k-th neighbour."""
    agreement: Array
    """`[]` share of the labels that the last fit predicted, in its last pass."""
    reward_steps: Array
    """`int32[]` gradient steps of the reward."""


@struct.dataclass
class Prepared:
    """A batch with what stays constant while it is used."""

    experience: Transition
    novelty: Array
    """`[...]` normalised distance to the k-th neighbour; 0 after pre-training."""
    candidates: Pairs


FitLoss = Callable[[Params, Labels, Pairs, Key], Fit]
"""`(reward's params, labels, candidates, key) -> loss and agreement`."""


def make_loss_fn(
    spec: EnvSpec, agent: _off_policy.Agent, reward: Reward, config: Config
) -> Callable[..., tuple[Array, Metrics]]:
    """Soft actor-critic's summed loss, on the learned reward or on novelty."""
    target_entropy = config.target_entropy
    if target_entropy is None:
        target_entropy = -float(num_outputs(spec.action))

    def temperature_of(params: Params) -> Array:
        if config.automatic_temperature:
            return jax.lax.stop_gradient(jnp.exp(params["log_temperature"]))
        return jnp.asarray(config.temperature, jnp.float32)

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: Stats,
        batch: Prepared,
        key: Key,
    ) -> tuple[Array, Metrics]:
        next_key, key = jax.random.split(key)
        experience = relabel(reward, config, params, stats, batch)
        temperature = temperature_of(params)
        next_value = _off_policy.next_soft_value(
            agent, params, target_params, experience, next_key, temperature
        )
        total, metrics = _off_policy.critic_loss(
            agent, config, params, experience, next_value
        )
        drawn = _off_policy.draw(agent, config, params, experience, key)
        actor = temperature * drawn.log_prob - drawn.action_value
        total = total + jnp.mean(actor)
        if config.automatic_temperature:
            price = soft.multiplier_loss(
                drawn.log_prob + target_entropy,
                log_multiplier=params["log_temperature"],
            )
            total = total + jnp.mean(price)
        return total, {
            **metrics,
            "policy_loss": jnp.mean(actor),
            "entropy": -jnp.mean(drawn.log_prob),
            "temperature": temperature,
            "learned_reward": jnp.mean(experience.reward),
        }

    return loss_fn


def relabel(
    reward: Reward, config: Config, params: Params, stats: Stats, batch: Prepared
) -> Transition:
    """The experience with the reward to learn from, a constant of the gradient."""
    experience = batch.experience
    learned = reward.mean(params["reward"], experience.observation, experience.action)
    pretraining = stats.batches < config.pretraining_batches
    chosen = jnp.where(pretraining, batch.novelty, learned)
    return experience.replace(reward=jax.lax.stop_gradient(chosen))


def make_prepare(
    config: Config,
) -> Callable[[LearnerState, Batch], tuple[Stats, Prepared]]:
    """Novelty of the states reached, while the policy is pre-trained."""

    def prepare(learner: LearnerState, batch: Batch) -> tuple[Stats, Prepared]:
        stats, experience = learner.stats, batch.experience
        reached = experience.next_observation
        shape = experience.reward.shape
        flat = reached.reshape(*shape, -1).astype(jnp.float32)
        pool = flat.reshape(-1, flat.shape[-1])

        def measure(carry: tuple) -> tuple:
            row, distance, statistics = carry
            new = state_entropy.neighbour_distance(
                flat[row], pool, config.num_neighbours + 1
            )
            statistics = normalization.update(statistics, new)
            return row + 1, distance.at[row].set(new), statistics

        rows = jnp.where(stats.batches < config.pretraining_batches, shape[0], 0)
        start = (jnp.zeros((), jnp.int32), jnp.zeros(shape), stats.novelty)
        _, distance, novelty = jax.lax.while_loop(
            lambda carry: carry[0] < rows, measure, start
        )
        scale = jnp.sqrt(normalization.variance(novelty) + normalization.EPSILON)
        stats = stats.replace(novelty=novelty)
        return stats, Prepared(experience, distance / scale, batch.candidates)

    return prepare


def make_refit(
    config: Config, optimizer: optax.GradientTransformation, loss: FitLoss
) -> Callable[[LearnerState, Pairs, Key], LearnerState]:
    """Epochs over the labels until the members predict enough of them."""
    size = config.reward_batch_size

    def refit(learner: LearnerState, pairs: Pairs, key: Key) -> LearnerState:
        labels = learner.stats.labels
        per_epoch = jnp.maximum(-(-labels.size // size), 1)
        most = jnp.where(labels.size > 0, config.reward_epochs * per_epoch, 0)

        def total(params: Params, key: Key) -> tuple[Array, Fit]:
            fit = loss(params, labels, pairs, key)
            return fit.loss, fit

        def unfinished(carry: tuple) -> Array:
            _, _, count, _, agreement, _ = carry
            whole = (count % per_epoch == 0) & (count > 0)
            return (count < most) & ~(whole & (agreement > config.enough_agreement))

        def step(carry: tuple) -> tuple:
            params, opt_state, count, summed, agreement, key = carry
            key, own = jax.random.split(key)
            gradient, fit = jax.grad(total, has_aux=True)(params, own)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            summed = jnp.where(count % per_epoch == 0, 0.0, summed) + fit.agreement
            count = count + 1
            last = count % per_epoch == 0
            agreement = jnp.where(last, summed / per_epoch, agreement)
            params = optax.apply_updates(params, updates)
            return params, opt_state, count, summed, agreement, key

        start = (
            learner.params["reward"],
            learner.opt_state["reward"],
            jnp.zeros((), jnp.int32),
            jnp.zeros(()),
            jnp.zeros(()),
            key,
        )
        params, opt_state, count, _, agreement, _ = jax.lax.while_loop(
            unfinished, step, start
        )
        stats = learner.stats
        return learner.replace(
            params={**learner.params, "reward": params},
            opt_state={**learner.opt_state, "reward": opt_state},
            stats=stats.replace(
                agreement=agreement, reward_steps=stats.reward_steps + count
            ),
        )

    return refit


def reset_critics(
    agent: _off_policy.Agent,
    optimizer: optax.GradientTransformation,
    learner: LearnerState,
    key: Key,
) -> LearnerState:
    """Fresh critics, targets and moments: what was learned from novelty is void."""
    critics = agent.critics.init(key)
    params = {**learner.params, "critics": critics}
    old = learner.opt_state["policy"]
    fresh = optimizer.init(_preference.without_reward(params)).inner_states["critics"]
    state = old._replace(inner_states={**old.inner_states, "critics": fresh})
    return learner.replace(
        params=params,
        target_params={**learner.target_params, "critics": critics},
        opt_state={**learner.opt_state, "policy": state},
    )


class Steps(NamedTuple):
    """Gradient steps of the policy and its critics on a prepared batch."""

    regular: Callable[[LearnerState, Prepared, Key], tuple[LearnerState, Metrics]]
    """One for each minibatch and epoch."""
    catch_up: Callable[[LearnerState, Prepared, Key, Array], LearnerState]
    """As many as told, on minibatches drawn anew from the batch."""


def make_steps(
    method: Method, config: Config, optimizer: optax.GradientTransformation
) -> Steps:
    """The steps; `optimizer` is that of all parameters but the reward's."""

    def step(
        learner: LearnerState, minibatch: Prepared, key: Key
    ) -> tuple[LearnerState, Metrics]:
        fixed = {"reward": learner.params["reward"]}

        def total(params: Params) -> tuple[Array, Metrics]:
            return method.loss_fn(
                {**params, **fixed},
                learner.target_params,
                learner.stats,
                minibatch,
                key,
            )

        params = _preference.without_reward(learner.params)
        gradient, metrics = jax.grad(total, has_aux=True)(params)
        updates, state = optimizer.update(gradient, learner.opt_state["policy"], params)
        params = {**optax.apply_updates(params, updates), **fixed}
        count = learner.step + 1
        new = learner.replace(
            params=params,
            target_params=method.target_update(params, learner.target_params, count),
            opt_state={**learner.opt_state, "policy": state},
            step=count,
        )
        return new, metrics

    def regular(
        learner: LearnerState, batch: Prepared, key: Key
    ) -> tuple[LearnerState, Metrics]:
        count = batch.novelty.shape[0]
        rows = jnp.tile(jnp.arange(count), config.num_epochs)

        def body(
            learner: LearnerState, inputs: tuple[Array, Key]
        ) -> tuple[LearnerState, Metrics]:
            row, own = inputs
            return step(learner, _rows(batch, row), own)

        keys = jax.random.split(key, rows.size)
        learner, history = jax.lax.scan(body, learner, (rows, keys))
        return learner, {name: jnp.mean(x) for name, x in history.items()}

    def catch_up(
        learner: LearnerState, batch: Prepared, key: Key, number: Array
    ) -> LearnerState:
        count, size = batch.novelty.shape[:2]

        def body(carry: tuple) -> tuple:
            taken, learner, key = carry
            key, row_key, column_key, own = jax.random.split(key, 4)
            index = (
                jax.random.randint(row_key, (size,), 0, count),
                jax.random.randint(column_key, (size,), 0, size),
            )
            learner, _ = step(learner, _rows(batch, index), own)
            return taken + 1, learner, key

        start = (jnp.zeros((), jnp.int32), learner, key)
        return jax.lax.while_loop(lambda carry: carry[0] < number, body, start)[1]

    return Steps(regular, catch_up)


def _rows(batch: Prepared, index: Array | tuple[Array, Array]) -> Prepared:
    """Some of the experience, and no candidates: losses do not read them."""
    experience = jax.tree.map(lambda x: x[index], batch.experience)
    return Prepared(experience, batch.novelty[index], batch.candidates)


def check(config: Config) -> None:
    """Raises ValueError for fields that no run could use; traced floats pass."""
    _preference.check(config)
    _off_policy.check(config)
    _off_policy.require(config, "temperature", lambda x: x > 0, "be positive")
    for name in ("num_neighbours", "reward_epochs"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("pretraining_batches", "catch_up_steps"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be negative")
