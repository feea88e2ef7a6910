"""PEBBLE's loop, which SURF shares: explore, ask, refit the reward, relabel, improve.

Lee et al. 2021, https://arxiv.org/abs/2106.05091, algorithm 2. The policy learns by
soft actor-critic. The replay keeps the environment's rewards, for the teacher; losses
compute the learned reward of each transition they draw. So after a refit the whole
memory is relabelled at once, and no transition is ever worth what an old reward said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlx.methods import _off_policy, _preference
from rlx.methods import _pebble_learning as _learning
from rlx.methods._pebble_learning import Config, FitLoss, Prepared, Stats
from rlx.methods._preference import Ask, Reward
from rlx.ops import normalization, segments, targets
from rlx.ops.preference import Answer
from rlx.ops.segments import Pairs
from rlx.types import Array, EnvSpec, Key, LearnerState, Method, Metrics, Params


class Asked(NamedTuple):
    """What a session asked, and what it was told."""

    queries: Pairs
    answer: Answer
    candidates: Pairs
    """From which the queries were chosen."""


class Session(NamedTuple):
    """Its two parts: whoever answers may take their time in between."""

    choose: Callable[[LearnerState, Pairs, Key], Pairs]
    """`(learner, candidates, key) -> queries`, within the budget."""
    learn: Callable[[LearnerState, Asked, Key], LearnerState]
    """`(learner, asked, key) -> learner`: keeps the labels, fits the reward to all."""
    reward: Callable[[LearnerState, Array, Array], Array]
    """`(learner, observation [..., *D], action [..., *A]) -> [...]`, as learned."""


def build(
    spec: EnvSpec,
    config: Config,
    fit_loss: Callable[[Reward], FitLoss],
    ask: Ask | None,
    margin: int,
) -> Method:
    """PEBBLE with a fit of the reward.

    Args:
      spec: the environment's.
      config: see its fields.
      fit_loss: what a session minimises.
      ask: the teacher; the scripted one if None.
      margin: steps at either end of a segment that the teacher does not see.
    """
    _learning.check(config)
    agent = _off_policy.make_agent(spec, config)
    reward = _preference.make_reward(spec, config)
    rates: dict[str, float] = {}
    if config.automatic_temperature:
        rates["log_temperature"] = config.temperature_learning_rate
    optimizers = (
        _off_policy.make_optimizer(config, **rates),
        optax.adam(config.reward_learning_rate),
    )

    def init(key: Key) -> Params:
        params = _off_policy.init(
            key, actor=agent.actor, critics=agent.critics, reward=reward.members
        )
        if config.automatic_temperature:
            start = jnp.asarray(config.temperature, jnp.float32)
            params["log_temperature"] = jnp.log(start)
        return params

    def init_stats(num_envs: int) -> Stats:
        del num_envs
        length = config.segment_length + 2 * margin
        return Stats(
            labels=segments.empty(spec, config.label_capacity, length),
            batches=jnp.zeros((), jnp.int32),
            novelty=normalization.init(jnp.zeros(())),
            agreement=jnp.zeros(()),
            reward_steps=jnp.zeros((), jnp.int32),
        )

    method = Method(
        init=init,
        act=_off_policy.make_act(agent),
        loss_fn=_learning.make_loss_fn(spec, agent, reward, config),
        optimizer=_preference.two_optimizers(*optimizers),
        prepare=_learning.make_prepare(config),
        init_stats=init_stats,
        target_update=_off_policy.follow(critics=targets.ema(config.tau)),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
    session = make_session(spec, config, fit_loss)
    steps = _learning.make_steps(method, config, optimizers[0])

    def begin(learner: LearnerState, pairs: Pairs, key: Key) -> LearnerState:
        """A session: ask, and fit the reward to all labels."""
        choose_key, ask_key, fit_key = jax.random.split(key, 3)
        queries = session.choose(learner, pairs, choose_key)
        answer = _preference.consult(ask_key, config, queries, pairs, ask, margin)
        return session.learn(learner, Asked(queries, answer, pairs), fit_key)

    def update(
        learner: LearnerState, batch: Prepared, key: Key
    ) -> tuple[LearnerState, Metrics]:
        keys = jax.random.split(key, 4)
        due, first = _is_due(config, learner.stats)

        def run(learner: LearnerState, key: Key) -> LearnerState:
            return begin(learner, batch.candidates, key)

        def forget(learner: LearnerState, key: Key) -> LearnerState:
            return _learning.reset_critics(agent, optimizers[0], learner, key)

        learner = _preference.once_if(due, run, learner, keys[0])
        learner = _preference.once_if(first, forget, learner, keys[1])
        extra = jnp.where(first, config.catch_up_steps, 0)
        learner = steps.catch_up(learner, batch, keys[2], extra)
        learner, metrics = steps.regular(learner, batch, keys[3])
        stats = learner.stats.replace(batches=learner.stats.batches + 1)
        report = {
            "agreement": stats.agreement,
            "reward_steps": stats.reward_steps.astype(jnp.float32),
            **_preference.counts(stats.labels),
        }
        return learner.replace(stats=stats), {**metrics, **report}

    return method._replace(update=update)


def make_session(
    spec: EnvSpec, config: Config, fit_loss: Callable[[Reward], FitLoss]
) -> Session:
    """The parts of a session between which a teacher is asked."""
    reward = _preference.make_reward(spec, config)
    optimizer = optax.adam(config.reward_learning_rate)
    refit = _learning.make_refit(config, optimizer, fit_loss(reward))

    def choose(learner: LearnerState, candidates: Pairs, key: Key) -> Pairs:
        params = learner.params["reward"]
        pairs, _ = _preference.choose(key, config, reward, params, candidates)
        return _preference.within_budget(config, learner.stats.labels, pairs)

    def learn(learner: LearnerState, asked: Asked, key: Key) -> LearnerState:
        stats = learner.stats
        labels = segments.write(stats.labels, asked.queries, asked.answer)
        learner = learner.replace(stats=stats.replace(labels=labels))
        return refit(learner, asked.candidates, key)

    def value(learner: LearnerState, observation: Array, action: Array) -> Array:
        return reward.mean(learner.params["reward"], observation, action)

    return Session(choose, learn, value)


def _is_due(config: Config, stats: Stats) -> tuple[Array, Array]:
    """Whether a session is due, and whether it is the first."""
    since = stats.batches - config.pretraining_batches
    due = (since >= 0) & (since % config.session_interval == 0)
    return due & (stats.labels.asked < config.num_labels), since == 0
