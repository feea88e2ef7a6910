"""Policy alignment as a bilevel problem, with both terms of its gradient (A-PARL).

Chakraborty, Bedi, Koppel, Wang, Manocha, Wang and Huang 2024 (PARL),
https://arxiv.org/abs/2308.02585. A reward r_ν is learned from preferences between
segments of the policy; the policy is best for r_ν. Its change with ν is the *implicit*
term of the reward's gradient, which PEBBLE and its relatives drop:

    G(ν) = E_{τ ~ π*(ν)}[U_ν(τ)],  dG/dν = E[∂_νU] + ∂²_{νθ}V (λF)⁻¹ ∂_θ E[U]

The lower level is PPO on r_ν with entropy in its return, at a *fixed* temperature λ, on
which the formula rests. No code of the authors is public; what the paper leaves open is
said at the fields of `Config`.

Special cases that hold exactly: with κ = 0, with ρ = 0 and with the solver "none" the
reward's gradient is PEBBLE's. Without λ, labels and reward it is PPO.

Rewards in `Transition.reward` are the environment's and are read for the teacher alone.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from rlx.methods import _on_policy, _preference
from rlx.methods import _parl_learning as _learning
from rlx.methods._on_policy_config import make_optimizer
from rlx.methods._parl_learning import Batch, Stats
from rlx.ops import importance, segments
from rlx.types import (
    Array,
    Carry,
    EnvSpec,
    Key,
    LearnerState,
    Method,
    Metrics,
    Params,
    PyTree,
)


@dataclasses.dataclass(frozen=True)
class Config(_learning.ParlConfig):
    """All fields are described at `ParlConfig`, which holds them."""


def loss(
    log_prob: Array,
    behaviour_log_prob: Array,
    advantage: Array,
    *,
    clip: float | Array = 0.2,
) -> Array:
    """The lower level's loss: PPO's clipped surrogate, negated.

    L = −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A), A of the learned reward less λ log π.

    Elementwise.

    Args:
      log_prob: `[...]` log π(a|s) of the current policy.
      behaviour_log_prob: `[...]` log π_old(a|s); a constant of the gradient.
      advantage: `[...]` A; a constant of the gradient.
      clip: ε > 0.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    return -importance.clipped_surrogate(log_prob, behaviour_log_prob, advantage, clip)


def make(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
    ask: _preference.Ask | None = None,
) -> Method:
    """A-PARL for an environment with continuous or discrete actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.
      ask: a teacher of one's own; the scripted one of the config if None.

    Raises:
      ValueError: a field of the config has an impossible value, or a segment is longer
        than an episode.
    """
    _learning.check(config)
    agent = _on_policy.make_agent(spec, config)
    reward = _preference.make_reward(spec, config)

    def policy_loss(prediction, batch, advantage) -> tuple[Array, Metrics]:
        losses = loss(
            prediction.log_prob, batch.behaviour_log_prob, advantage, clip=config.clip
        )
        return losses, {}

    inner = _on_policy.make_method(spec, config, lambda agent: policy_loss)
    optimizers = (make_optimizer(config), optax.adam(config.reward_learning_rate))

    def init(key: Key) -> Params:
        policy_key, reward_key = jax.random.split(key)
        return {
            "policy": inner.init(policy_key),
            "reward": reward.members.init(reward_key),
        }

    def act(
        params: Params, stats: Stats, observation: PyTree, carry: Carry, key: Key | None
    ) -> tuple[PyTree, Carry, PyTree]:
        return inner.act(params["policy"], stats.policy, observation, carry, key)

    def init_stats(num_envs: int) -> Stats:
        return Stats(
            policy=inner.init_stats(num_envs),
            labels=segments.empty(spec, config.label_capacity, config.segment_length),
            batches=jnp.zeros((), jnp.int32),
            report=_learning.no_report(),
        )

    def loss_fn(
        params: Params, target_params: Params, stats: PyTree, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        del target_params, stats
        return inner.loss_fn(params["policy"], (), (), batch.samples, key)

    session = _learning.make_session(config, agent, reward, optimizers[1], ask)
    improve = _learning.make_improve(config, inner, optimizers[0])

    def update(
        learner: LearnerState, batch: Batch, key: Key
    ) -> tuple[LearnerState, Metrics]:
        session_key, improve_key = jax.random.split(key)
        stats = learner.stats
        due = stats.batches % config.session_interval == 0
        due = due & (stats.labels.asked < config.num_labels)

        def run(learner: LearnerState, key: Key) -> LearnerState:
            return session(learner, batch, key)

        # The policy's parameters are still those that acted.
        learner = _preference.once_if(due, run, learner, session_key)
        learner, metrics = improve(learner, batch.samples, improve_key)
        stats = learner.stats.replace(batches=learner.stats.batches + 1)
        counts = _preference.counts(stats.labels)
        return learner.replace(stats=stats), {**metrics, **stats.report, **counts}

    return Method(
        init=init,
        act=act,
        loss_fn=loss_fn,
        optimizer=_preference.two_optimizers(*optimizers),
        prepare=_learning.make_prepare(config, agent, reward, inner),
        init_carry=inner.init_carry,
        init_stats=init_stats,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
        update=update,
    )
