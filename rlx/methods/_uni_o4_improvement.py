"""The offline phase of Uni-O4: rounds of PPO in a fixed model of the world.

Lei et al. 2024, https://arxiv.org/abs/2311.03351, section 4.2. `rlx.methods.uni_o4`
joins the phases.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rlx.methods import _offline, _uni_o4
from rlx.methods._model_evaluation import Evaluation, Gate, gate, paired_difference
from rlx.methods._uni_o4 import Config, loss, mean_each
from rlx.methods._uni_o4_evaluation import (
    Foundation,
    IsTerminal,
    counted,
    evaluate_seen,
    smallest_value,
)
from rlx.ops import distributions, normalization
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


@struct.dataclass
class ImprovementStats:
    """What phase 2 knows beside the members."""

    foundation: Foundation
    """Its own members are those of the start: the cloned policies."""
    best: Array
    """`[n]` largest accepted score, which "running" must beat; −∞ at first."""
    acting: Params
    """The members that act: the accepted ones, `target_params` once more; where the
    gate is "never", those under way."""
    score: Array
    """`[n]` last score of each of them."""

    @property
    def observation(self) -> PyTree:
        """Moments by which observations are standardised, or ()."""
        return self.foundation.observation


def improvement(
    spec: EnvSpec,
    config: Config,
    base: Foundation,
    is_terminal: IsTerminal | None = None,
) -> Method:
    """Phase 2: offline PPO of every member, with a gate after each batch.

    A batch holds `gate_steps` minibatches of observations `[gate_steps, B, D]`; of the
    rest of a `Transition` nothing is used. `params` are the members under way,
    `target_params` the accepted ones, which bind them; a rejected member is not reset.
    It acts by the accepted member with the best last score, never by a rejected one;
    with the gate "never" by the best of those under way.

    Args:
      spec: the environment's.
      config: that of phase 1.
      base: from `foundation`.
      is_terminal: which observations end an episode, `[K, D] -> bool[K]`, in the
        environment's units; None: none does.

    Raises:
      ValueError: as `make`; when traced, that batches hold another number of
        minibatches than `gate_steps`.
    """
    nets = _uni_o4.networks(spec, config)
    number = config.num_members
    fixed = _offline.constants(base)

    def init(key: Key) -> Params:
        del key
        return {"members": jax.tree.map(jnp.asarray, fixed.members)}

    def init_stats(num_envs: int) -> ImprovementStats:
        del num_envs
        nothing = jnp.full((number,), -jnp.inf, jnp.float32)
        base = jax.tree.map(jnp.asarray, fixed)
        return ImprovementStats(base, nothing, base.members, nothing)

    def prepare(
        learner: LearnerState, batch: Transition
    ) -> tuple[ImprovementStats, Transition]:
        _require_minibatches(batch.observation, config.gate_steps)
        seen = _offline.normalize(learner.stats.observation, batch.observation)
        return learner.stats, batch.replace(observation=seen)

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: ImprovementStats,
        batch: Transition,
        key: Key,
    ) -> tuple[Array, Metrics]:
        observation = batch.observation
        old = nets.policies(target_params["members"], observation)
        choice = jax.lax.stop_gradient(old.sample(key))
        advantage = _advantage(nets, stats.foundation, observation, choice)
        new = nets.policies(params["members"], observation)
        log_prob, bound = new.log_prob(choice), old.log_prob(choice)
        losses = loss(log_prob, bound, advantage, clip=config.clip)
        outside = jnp.abs(jnp.exp(log_prob - bound) - 1.0) > config.clip
        metrics = {
            "policy_loss": jnp.mean(losses),
            "clip_fraction": jnp.mean(outside),
            "behaviour_kl": jnp.mean(distributions.kl_divergence(old, new)),
        }
        return jnp.sum(mean_each(losses)), metrics

    optimizer = optax.chain(
        _clip_each(config.max_gradient_norm), optax.adam(_improvement_rate(config))
    )

    def update(
        learner: LearnerState, batch: Transition, key: Key
    ) -> tuple[LearnerState, Metrics]:
        steps_key, gate_key = jax.random.split(key)
        learner, metrics = _steps(loss_fn, optimizer, learner, batch, steps_key)
        learner, more = _pass_gate(
            nets, config, learner, (batch.observation, gate_key), is_terminal
        )
        return learner, {**metrics, **more}

    act = _uni_o4.make_act(nets, _best_scoring, lambda stats: stats.observation)

    return Method(
        init=init,
        act=lambda params, stats, *rest: act({"members": stats.acting}, stats, *rest),
        loss_fn=loss_fn,
        optimizer=optimizer,
        prepare=prepare,
        init_stats=init_stats,
        num_minibatches=config.gate_steps,
        update=update,
    )


def _require_minibatches(observation: Array, count: int) -> None:
    if observation.ndim != 3 or observation.shape[0] != count:
        raise ValueError(
            f"the offline phase needs batches of gate_steps={count} minibatches, "
            f"[{count}, B, D], got observations {observation.shape}: give the source "
            f"num_minibatches={count}"
        )


def _best_scoring(
    stats: ImprovementStats, policies: distributions.DiagonalGaussian
) -> Array:
    return jnp.broadcast_to(jnp.argmax(stats.score), policies.mean.shape[1:-1])


def _advantage(
    nets: _uni_o4.Networks, base: Foundation, observation: Array, choice: Array
) -> Array:
    """Q − V of what the bounds let through, standardised for each member `[n, ...]`."""
    value = nets.agent.value.apply(base.value, observation)
    state = jnp.broadcast_to(observation, (choice.shape[0], *observation.shape))
    executed = jnp.clip(choice, -1.0, 1.0)
    worth = smallest_value(nets, base, state, executed)
    raw = worth - jnp.broadcast_to(value, worth.shape)
    axes = tuple(range(1, raw.ndim))
    return jax.lax.stop_gradient(normalization.standardize(raw, axis=axes))


def _improvement_rate(config: Config) -> Callable[[Array], Array]:
    def rate(count: Array) -> Array:
        if not config.anneal_steps:
            return jnp.asarray(config.improvement_learning_rate)
        left = 1.0 - jnp.minimum(count / config.anneal_steps, 1.0)
        return config.improvement_learning_rate * left

    return rate


def _clip_each(max_norm: float | Array) -> optax.GradientTransformation:
    """Clips the gradient of each member of an ensemble by its own norm."""

    def clip(updates: PyTree, params: PyTree = None) -> PyTree:
        del params

        squares = [
            jnp.sum(jnp.square(x.reshape(x.shape[0], -1)), axis=1)
            for x in jax.tree.leaves(updates)
        ]
        norm = jnp.sqrt(sum(squares[1:], squares[0]))
        scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
        return jax.tree.map(
            lambda x: scale.reshape(-1, *(1,) * (x.ndim - 1)) * x, updates
        )

    return optax.stateless(clip)


def _steps(
    loss_fn: Callable[..., tuple[Array, Metrics]],
    optimizer: optax.GradientTransformation,
    learner: LearnerState,
    batch: Transition,
    key: Key,
) -> tuple[LearnerState, Metrics]:
    """One gradient step per minibatch of observations, `[S, B, D]`."""

    def one(
        carry: tuple[Params, PyTree], inputs: tuple[Transition, Key]
    ) -> tuple[tuple[Params, PyTree], Metrics]:
        params, opt_state = carry
        minibatch, key = inputs
        (total, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            params, learner.target_params, learner.stats, minibatch, key
        )
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        metrics = {**metrics, "loss": total, "gradient_norm": optax.tree.norm(gradient)}
        return (optax.apply_updates(params, updates), opt_state), metrics

    count = batch.observation.shape[0]
    carry, metrics = jax.lax.scan(
        one,
        (learner.params, learner.opt_state),
        (batch, jax.random.split(key, count)),
    )
    learner = learner.replace(
        params=carry[0], opt_state=carry[1], step=learner.step + count
    )
    return learner, jax.tree.map(jnp.mean, metrics)


def _pass_gate(
    nets: _uni_o4.Networks,
    config: Config,
    learner: LearnerState,
    data: tuple[Array, Key],
    is_terminal: IsTerminal | None,
) -> tuple[LearnerState, Metrics]:
    """Accepts members whose score improved: they bind the next round."""
    seen, key = data
    base = learner.stats.foundation
    flat = seen.reshape(-1, seen.shape[-1])[-config.evaluation_starts :]
    # One evaluation of both, so that they share their noise.
    together = jax.tree.map(
        lambda new, old: jnp.concatenate([new, old]),
        learner.params["members"],
        learner.target_params["members"],
    )
    found = evaluate_seen(nets, config, base, together, (flat, key), is_terminal)
    alive = jnp.mean(found.visited[: config.num_members])
    found = counted(config, found)
    candidate = jax.tree.map(lambda x: x[: config.num_members], found)
    incumbent = jax.tree.map(lambda x: x[config.num_members :], found)
    verdict = judge(config, candidate, incumbent, learner.stats.best)
    accepted = jax.tree.map(
        lambda new, old: jnp.where(
            verdict.accept.reshape(-1, *(1,) * (new.ndim - 1)), new, old
        ),
        learner.params,
        learner.target_params,
    )
    score, rest = _sound(candidate.score), _sound(incumbent.score)
    acting, shown = accepted["members"], jnp.where(verdict.accept, score, rest)
    if config.gate == "never":
        acting, shown = learner.params["members"], score
    learner = learner.replace(
        target_params=accepted,
        stats=learner.stats.replace(
            best=verdict.best,
            acting=acting,
            score=shown,
        ),
    )
    metrics = {
        "score": _mean_of_finite(score),
        "incumbent_score": _mean_of_finite(rest),
        "broken_scores": jnp.mean(jnp.isneginf(score).astype(jnp.float32)),
        "accepted": jnp.mean(verdict.accept.astype(jnp.float32)),
        "steps_alive": alive,
    }
    return learner, metrics


def _sound(score: Array) -> Array:
    """A rollout that left the numbers is worth less than any other."""
    return jnp.where(jnp.isfinite(score), score, -jnp.inf)


def _mean_of_finite(score: Array) -> Array:
    counts = jnp.isfinite(score)
    return jnp.sum(jnp.where(counts, score, 0.0)) / jnp.maximum(jnp.sum(counts), 1)


def judge(
    config: Config, candidate: Evaluation, incumbent: Evaluation, best: Array
) -> Gate:
    """Which members replace the policies they are bound to, see `Config.gate`.

    Args:
      config: its `gate` and `gate_margin`.
      candidate: of the members under way, `[n, K]`.
      incumbent: of the policies that bind them, from the same starts and noise.
      best: `[n]` largest accepted score; −∞ before the first gate.
    """
    score = _sound(candidate.score)
    if config.gate == "never":
        return Gate(jnp.zeros(score.shape, bool), best)
    if config.gate == "always":
        return Gate(jnp.ones(score.shape, bool), jnp.maximum(best, score))
    if config.gate == "paired":
        difference = paired_difference(candidate, incumbent)
        passed = gate(
            difference.mean,
            difference.standard_error,
            jnp.zeros_like(score),
            config.gate_margin,
        )
        best = jnp.where(passed.accept, jnp.maximum(best, score), best)
        return Gate(passed.accept, best)
    # The first score to beat is that of the cloned policies.
    best = jnp.where(jnp.isneginf(best), _sound(incumbent.score), best)
    return gate(score, candidate.standard_error, best, config.gate_margin)
