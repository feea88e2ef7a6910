"""What A-PARL learns by: its config, preparation, sessions and gradient steps.

Chakraborty et al. 2024 (PARL), https://arxiv.org/abs/2308.02585.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rlx.methods import _on_policy, _parl, _preference
from rlx.methods._on_policy_config import OnPolicyConfig
from rlx.ops import normalization, preference, segments, shuffling
from rlx.ops.segments import Labels
from rlx.types import (
    Array,
    Key,
    LearnerState,
    Method,
    Metrics,
    Params,
    PyTree,
    Transition,
)

REPORT = ("direct_norm", "implicit_norm", "cosine", "implicit_scale")


@dataclasses.dataclass(frozen=True)
class ParlConfig(_preference.PreferenceConfig, OnPolicyConfig):
    """A-PARL's fields, and its own defaults for those that it shares."""

    upper: str = "likelihood"
    """U: how well labels are predicted, "likelihood" (the paper's), or "utility", how
    often the teacher prefers a segment to others of the policy; labels then enter
    through a regulariser, their likelihood."""
    kappa: float = 1.0
    """κ: weight of the implicit term; 0 drops it, 1 is the hypergradient."""
    cap: float = 1.0
    """ρ: the implicit term is at most this many times as long as the direct one."""
    solver: str = "cg_fisher"
    """Of (λF + δI) u = ∂_θG: "cg_fisher", "neumann", "dense", or "none"."""
    solver_iterations: int = 10
    """Iterations of conjugate gradients, or terms of the Neumann series."""
    damping: float = 1e-2
    """δ, added to the diagonal of λF."""
    centred: bool = True
    """Whether the implicit term's weights are compared with those of other streams:
    the same in expectation, with less noise."""
    unlabelled_pairs: int = 200
    """Further pairs of a session, for which nobody is asked: labels correct what the
    reward expects of them, a control variate of ∂_θG. 0: labelled pairs alone."""
    temperature: float = 0.05
    """λ: price of a nat in standard deviations of the learned reward; never learned."""
    clip: float = 0.2
    """ε of the lower level's clipped surrogate (PPO)."""
    upper_steps: int = 50
    """Gradient steps of the reward in a session, with one solve for all of them."""
    session_interval: float = 5
    """K: batches, and so lower-level improvements, from one session to the next; the
    first is at the first batch."""
    queries_per_session: int = 20
    """Pairs asked in a session."""
    num_candidates: int = 20
    """Pairs to choose from; only where they are as many as the queries is the implicit
    term's estimate unbiased."""
    query_selection: str = "uniform"
    """Pairs from the policy's own distribution, which G is about."""
    segment_length: int = 25
    """L: steps of a segment."""
    reward_hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of the reward's hidden layers."""


@struct.dataclass
class Stats:
    """What a run knows beside its parameters."""

    policy: PyTree
    """Moments of observations and returns."""
    labels: Labels
    batches: Array
    """`int32[]` batches seen."""
    report: dict[str, Array]
    """Of the last session."""


@struct.dataclass
class Batch:
    """A prepared batch."""

    samples: _on_policy.OnPolicyBatch
    trajectories: _parl.Trajectories
    experience: Transition
    """`[T, B, ...]` as the environment gave it."""


def no_report() -> dict[str, Array]:
    names = (*REPORT, "agreement", "residual", "slope_norm", "likelihood")
    return {name: jnp.zeros(()) for name in names}


def distribution(agent: _on_policy.Agent) -> _parl.Distribution:
    def distribution(params: Params, observation: Array) -> PyTree:
        return agent.distribution(agent.network.apply(params, observation, ())[0])

    return distribution


def make_prepare(
    config: ParlConfig,
    agent: _on_policy.Agent,
    reward: _preference.Reward,
    inner: Method,
) -> Callable[[LearnerState, Transition], tuple[Stats, Batch]]:
    """Advantages for the learned reward, standardised, less λ log π."""
    normalize = _on_policy._normalize_observation

    def prepare(learner: LearnerState, batch: Transition) -> tuple[Stats, Batch]:
        params, stats = learner.params["policy"], learner.stats
        observation = normalize(stats.policy, batch.observation)
        choice = batch.extras["choice"]
        ended = segments.ends(batch)
        first = jnp.concatenate([jnp.ones_like(ended[:1]), ended[:-1]])
        seen = _parl.Trajectories(observation, choice, first)
        acted = distribution(agent)(params, observation).log_prob(choice)
        learned = reward.mean(learner.params["reward"], batch.observation, batch.action)
        soft = normalization.standardize(learned) - config.temperature * acted
        policy_stats, samples = inner.prepare(
            learner.replace(params=params, stats=stats.policy),
            batch.replace(reward=soft),
        )
        prepared = Batch(samples, seen, batch.replace(extras={}))
        stats = stats.replace(policy=policy_stats)
        return stats, jax.lax.stop_gradient(prepared)

    return prepare


def make_session(
    config: ParlConfig,
    agent: _on_policy.Agent,
    reward: _preference.Reward,
    optimizer: optax.GradientTransformation,
    ask: _preference.Ask | None,
) -> Callable[[LearnerState, Batch, Key], LearnerState]:
    """Asks about fresh pairs, and follows the hypergradient."""

    def session(learner: LearnerState, batch: Batch, key: Key) -> LearnerState:
        draw_key, choose_key, ask_key, fit_key, more_key = jax.random.split(key, 5)
        params, experience = learner.params["reward"], batch.experience
        where = segments.draw(
            draw_key, experience, config.num_candidates, config.segment_length
        )
        candidates = segments.cut(experience, where, config.segment_length)
        pairs, index = _preference.choose(
            choose_key, config, reward, params, candidates
        )
        answer = _preference.consult(ask_key, config, pairs, candidates, ask)
        labels = learner.stats.labels
        pairs = _preference.within_budget(config, labels, pairs)
        labels = segments.write(labels, pairs, answer)
        chosen = jax.tree.map(lambda x: x[index], where)
        difference = learned_difference(reward, params, pairs)
        utility = _parl.utilities(config.upper, difference, answer.preference)
        lower = _parl.Lower(
            distribution(agent),
            learner.params["policy"],
            batch.trajectories,
            config.gamma,
            config.temperature,
        )
        known = _parl.answered(answer, pairs.whole)
        if config.unlabelled_pairs:
            utility = utility - _parl.expected_utilities(config.upper, difference)
        slope = _parl.slope(lower, chosen, config.segment_length, utility, known)
        if config.unlabelled_pairs:
            more = expected_slope(config, reward, params, lower, experience, more_key)
            slope = optax.tree.add(slope, more)
        solution = _parl.implicit_weight(
            lower,
            slope,
            config.solver,
            config.solver_iterations,
            config.damping,
            config.centred,
        )
        learner = learner.replace(stats=learner.stats.replace(labels=labels))
        learner = _ascend(
            config, reward, optimizer, learner, (experience, solution, fit_key)
        )
        fit = preference.log_likelihood(difference, answer.preference)
        report = {
            **learner.stats.report,
            "residual": solution.residual,
            "slope_norm": solution.slope_norm,
            "likelihood": preference.weighted_mean(fit, known),
        }
        return learner.replace(stats=learner.stats.replace(report=report))

    return session


def learned_difference(
    reward: _preference.Reward, params: Params, pairs: segments.Pairs
) -> Array:
    """Δ `[N]` under the mean of the members."""
    returns = jnp.sum(reward.mean(params, pairs.observation, pairs.action), -1)
    return returns[:, 0] - returns[:, 1]


def expected_slope(
    config: ParlConfig,
    reward: _preference.Reward,
    params: Params,
    lower: _parl.Lower,
    experience: Transition,
    key: Key,
) -> PyTree:
    """∂_θ of what the reward expects of the policy's pairs; reads no true reward."""
    length = config.segment_length
    where = segments.draw(key, experience, config.unlabelled_pairs, length)
    pairs = segments.cut(experience, where, length)
    expected = _parl.expected_utilities(
        config.upper, learned_difference(reward, params, pairs)
    )
    weight = pairs.whole.astype(expected.dtype)
    return _parl.slope(lower, where, length, expected, weight)


def hypergradient(
    config: ParlConfig,
    reward: _preference.Reward,
    params: Params,
    labels: Labels,
    index: Array,
    experience: Transition,
    weight: Array,
) -> tuple[PyTree, PyTree, Array]:
    """Both terms of the ascent direction on G, and the labels' agreement.

    Args:
      config: for the smoothing of labels.
      reward: the ensemble.
      params: ν, its parameters.
      labels: the buffer.
      index: `int32[E, M]` the labels of the direct term.
      experience: `[T, B, ...]` the trajectories of the implicit term.
      weight: `[T, B]` from the solve.

    Returns:
      Direct and implicit term, pytrees like ν, and `[]`.
    """

    def fit(nu: Params) -> tuple[Array, Array]:
        found = _preference.label_loss(
            reward, nu, labels, index, smoothing=config.label_smoothing
        )
        return -found.loss, found.agreement

    def through_policy(nu: Params) -> Array:
        learned = reward.mean(nu, experience.observation, experience.action)
        # Its scale is a constant of the lower problem, as λ is relative to it.
        scale = jax.lax.stop_gradient(jnp.std(learned))
        return jnp.sum(weight * learned) / jnp.maximum(scale, 1e-6)

    direct, agreement = jax.grad(fit, has_aux=True)(params)
    return direct, jax.grad(through_policy)(params), agreement


def _ascend(
    config: ParlConfig,
    reward: _preference.Reward,
    optimizer: optax.GradientTransformation,
    learner: LearnerState,
    inputs: tuple[Transition, _parl.Solution, Key],
) -> LearnerState:
    """`upper_steps` steps of Adam on ν; none without labels."""
    experience, solution, key = inputs
    labels = learner.stats.labels

    def step(carry: tuple, key: Key) -> tuple[tuple, dict[str, Array]]:
        params, opt_state = carry
        index = _preference.minibatch(key, config, labels)
        direct, implicit, agreement = hypergradient(
            config, reward, params, labels, index, experience, solution.weight
        )
        total, report = _parl.combine(direct, implicit, config.kappa, config.cap)
        descent = optax.tree.scale(-1.0, total)
        updates, opt_state = optimizer.update(descent, opt_state, params)
        new = (optax.apply_updates(params, updates), opt_state)
        kept = jax.tree.map(lambda a, b: jnp.where(labels.size > 0, a, b), new, carry)
        return kept, {**report, "agreement": agreement}

    start = (learner.params["reward"], learner.opt_state["reward"])
    keys = jax.random.split(key, config.upper_steps)
    (params, opt_state), reports = jax.lax.scan(step, start, keys)
    means = {name: jnp.mean(values) for name, values in reports.items()}
    stats = learner.stats
    return learner.replace(
        params={**learner.params, "reward": params},
        opt_state={**learner.opt_state, "reward": opt_state},
        stats=stats.replace(report={**stats.report, **means}),
    )


def make_improve(
    config: ParlConfig, inner: Method, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[LearnerState, dict[str, Any]]]:
    """Epochs x minibatches of the lower level's gradient steps."""

    def improve(
        learner: LearnerState, samples: _on_policy.OnPolicyBatch, key: Key
    ) -> tuple[LearnerState, dict[str, Any]]:
        size, count = samples.advantage.shape[0], config.num_minibatches
        if size % count:
            raise ValueError(
                f"a batch of {size} cannot be cut into {count} equal minibatches: "
                f"choose num_minibatches among the divisors of {size}"
            )
        order_key, loss_key = jax.random.split(key)

        def step(carry: tuple, inputs: tuple[Array, Key]) -> tuple[tuple, Metrics]:
            params, opt_state = carry
            rows, own = inputs
            minibatch = jax.tree.map(lambda x: x[rows], samples)

            def total(params: Params) -> tuple[Array, Metrics]:
                return inner.loss_fn(params["policy"], (), (), minibatch, own)

            gradient, metrics = jax.grad(total, has_aux=True)(params)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            metrics = {**metrics, "gradient_norm": optax.tree.norm(gradient)}
            return (optax.apply_updates(params, updates), opt_state), metrics

        epochs = shuffling.permutations(order_key, size, config.num_epochs)
        rows = epochs.reshape(-1, size // count)
        keys = jax.random.split(loss_key, rows.shape[0])
        start = (
            _preference.without_reward(learner.params),
            learner.opt_state["policy"],
        )
        (params, state), metrics = jax.lax.scan(step, start, (rows, keys))
        learner = learner.replace(
            params={**learner.params, **params},
            opt_state={**learner.opt_state, "policy": state},
            step=learner.step + rows.shape[0],
        )
        return learner, {k: jnp.mean(v) for k, v in metrics.items()}

    return improve


def check(config: ParlConfig) -> None:
    _preference.check(config)
    if config.upper not in ("likelihood", "utility"):
        raise ValueError(
            f'upper must be "likelihood" or "utility", got {config.upper!r}'
        )
    if config.solver not in _parl.SOLVERS:
        known = ", ".join(_parl.SOLVERS)
        raise ValueError(f"solver must be one of {known}, got {config.solver!r}")
    if config.recurrent_size:
        raise ValueError("A-PARL needs a policy without memory: leave recurrent_size 0")
    if config.num_candidates < config.queries_per_session:
        raise ValueError(
            f"num_candidates={config.num_candidates} is less than the "
            f"{config.queries_per_session} queries of a session"
        )
    if config.unlabelled_pairs < 0:
        raise ValueError(
            f"unlabelled_pairs must not be negative, got {config.unlabelled_pairs}"
        )
    for name in ("solver_iterations", "upper_steps"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    limits = {"temperature": True, "clip": True, "kappa": False, "cap": False}
    for name, positive in {**limits, "damping": False}.items():
        value = getattr(config, name)
        if isinstance(value, int | float) and not (
            value > 0 if positive else value >= 0
        ):
            what = "be positive" if positive else "not be negative"
            raise ValueError(f"{name} must {what}, got {value}")
