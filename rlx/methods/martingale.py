"""Policy evaluation in continuous time: ML, CTD(λ), CLSTD, CGTD and the naive MSTDE.

Jia & Zhou, "Policy Evaluation and Temporal-Difference Learning in Continuous Time and
Space: A Martingale Approach", JMLR 23 (2022), https://arxiv.org/abs/2108.06655. J is
the value of a policy if and only if M_t = e^{-βt} J(t, X_t) + ∫₀ᵗ e^{-βs} r_s ds is a
martingale. The algorithms are ways to impose that on a parametric J:

- `ml` minimises ½ E ∫ (M_T - M_t)² dt: gradient Monte Carlo (martingale loss).
- `ctd` solves E ∫ ξ dM = 0 by stochastic approximation: TD(λ).
- `clstd` solves the same equations at once for linear J: LSTD(λ).
- `gmm` minimises |E ∫ ξ dM|²_W with more test functions than parameters.
- `cgtd`, `cgtd2`, `ctdc` descend it with a second set of weights: GTD, GTD2, TDC.
- `mean_square_td` minimises ½ E ∫ (dM/dt)² dt: inconsistent, kept to show it.

Special cases that hold exactly: at mesh one with γ = e^{-β} and `instrument_power` -1,
`ctd` is discrete TD(λ/γ), `clstd` is LSTD, `ctdc` is TDC; `ctd` at λ = 1 with power 1
has the gradient of `ml`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rlx.methods import _martingale
from rlx.methods._martingale import PathBatch, per_path, time_first
from rlx.networks.features import quadratic_family
from rlx.ops import linear
from rlx.ops import martingale as ops
from rlx.types import (
    Array,
    EnvSpec,
    Key,
    LearnerState,
    LossFn,
    Method,
    Metrics,
    Network,
    Params,
    PyTree,
    Transition,
)

SOURCE = "episodes"
GRADIENT = ("ml", "ctd", "mean_square_td")
TWO_TIMESCALE = ("cgtd", "cgtd2", "ctdc")
SOLVED = ("clstd", "gmm")
WEIGHTINGS = ("identity", "outer", "optimal")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which martingale condition, and how it is imposed."""

    algorithm: str = "ctd"
    """ml, ctd, clstd, gmm, cgtd, cgtd2, ctdc or mean_square_td (CTD: own choice)."""
    discount_rate: float = 0.1
    """β per unit of time (no default in the paper; one tenth gives a horizon of 10)."""
    lambda_: float = 0.0
    """λ of the test function's trace, per unit of time; 0 as in the sequels."""
    instrument_power: float = 0.0
    """p of ξ = D^p ∇J, D = e^{-βt}: 0 the paper's, -1 discrete TD's, 1 that of ml."""
    carry_traces: bool = False
    """ctd on-line: paths, their time and traces go on from batch to batch."""
    average_reward: bool = False
    """Ergodic problems: learn V too and set discount_rate to 0 (2022b, section 5)."""
    learning_rate: float = 1e-2
    """Of the value's parameters (own choice)."""
    auxiliary_rate: float = 1e-1
    """Of the second weights of cgtd, cgtd2 and ctdc: ten times faster (own choice)."""
    ridge: float = 0.0
    """Added to the diagonal that clstd and gmm invert."""
    weighting: str = "optimal"
    """W of gmm: identity, outer (E ∫ ξξᵀ dt)⁻¹, or optimal, the moments' precision."""
    num_epochs: int = 1
    """Passes over a batch of paths; the solvers always take one."""
    num_minibatches: int = 1
    """Whole paths are drawn, never parts of one."""
    accumulate: bool = True
    """clstd and gmm average A and b over batches; off, each batch is solved alone."""


def loss(
    value: Array,
    next_value: Array,
    steps: ops.Steps,
    discount_rate: float | Array = 0.0,
    lambda_: float | Array = 0.0,
    instrument_power: float | Array = 0.0,
) -> Array:
    """Semi-gradient loss of CTD(λ), elementwise `[T, ...]`: -c_i J_i.

    Its gradient is minus Σ_i ξ_i dM_i, ξ the trace of D^p ∇J; only `value` carries
    gradient. Ended paths count no successor, cut ones bootstrap from theirs.

    Args:
      value: J_i `[T, ...]`.
      next_value: J of the true successors `[T, ...]`, a constant of the gradient.
      steps: rewards, discounts, durations and cuts of the paths.
      discount_rate: β.
      lambda_: λ in [0, 1].
      instrument_power: p.
    """
    constant = jax.lax.stop_gradient
    increment = ops.increments(
        constant(value), constant(next_value), steps, discount_rate
    )
    coefficient = ops.reverse_trace(increment, steps.duration, steps.cut, lambda_)
    weight = ops.start_discount(steps, discount_rate) ** instrument_power
    return ops.orthogonality_loss(value, weight * coefficient)


class _Problem(NamedTuple):
    """What the parts of one method share."""

    config: Config
    value: Network
    instruments: Callable[[Array], Array] | None
    step_size: float


def _prepare(problem: _Problem, learner: LearnerState, batch: Transition):
    goes_on = problem.config.carry_traces
    paths = _martingale.path_batch(batch, problem.step_size, goes_on)
    if not goes_on:
        return learner.stats, paths
    before = learner.stats
    paths = paths._replace(elapsed=before.elapsed, trace=before.trace)
    view = time_first(paths)
    steps = view.steps
    _, elapsed = ops.elapsed_time(steps.duration, steps.cut, before.elapsed)
    trace = _traces(problem, learner.params, view)[-1]
    trace = jnp.where(steps.cut[-1][:, None], 0.0, trace)
    after = _martingale.Carried(elapsed, trace)
    return jax.tree.map(lambda x, y: y.astype(x.dtype), before, after), paths


def _start_value(problem: _Problem, params: Params, batch: PathBatch) -> Array:
    """Mean of J where the paths `[B, T]` begin: what was learned, in one number."""
    return jnp.mean(problem.value.apply(params["value"], batch.observation[:, 0]))


def _increments(problem: _Problem, params: Params, view: PathBatch) -> Array:
    values = functools.partial(problem.value.apply, params["value"])
    return ops.increments(
        values(view.observation),
        values(view.next_observation),
        view.steps,
        problem.config.discount_rate,
        params.get("average_reward", 0.0),
        view.elapsed,
    )


def _start_discount(problem: _Problem, view: PathBatch) -> Array:
    return ops.start_discount(view.steps, problem.config.discount_rate, view.elapsed)


def _traces(problem: _Problem, params: Params, view: PathBatch) -> Array:
    """The trace of D^p ∇J `[T, B, P]`."""
    config = problem.config
    weight = _start_discount(problem, view) ** config.instrument_power
    return _martingale.traces(
        problem.value, params["value"], view, weight, config.lambda_
    )


def _instruments(problem: _Problem, params: Params, view: PathBatch) -> Array:
    """Test functions `[T, B, K]`: the caller's, or the trace of D^p ∇J; 1 for V."""
    if problem.instruments is not None:
        return problem.instruments(view.observation)
    found = _traces(problem, params, view)
    if "average_reward" in params:
        # The order of `ravel_pytree`: dictionaries sort their keys, V comes first.
        found = jnp.concatenate([jnp.ones_like(found[..., :1]), found], -1)
    return found


def _gradient_loss(problem: _Problem, params: Params, view: PathBatch) -> Array:
    config, steps = problem.config, view.steps
    increment = _increments(problem, params, view)
    if config.algorithm == "mean_square_td":
        return per_path(ops.mean_square_td_loss(increment, steps.duration))
    constant = jax.lax.stop_gradient
    value = problem.value.apply(params["value"], view.observation)
    weight = _start_discount(problem, view)
    increment = constant(increment)
    if config.algorithm == "ml":
        # M_T carries no parameter at a horizon; where a path is cut it is held fixed.
        end = ops.reverse_sum(increment, steps.cut) + constant(weight * value)
        return per_path(ops.martingale_loss(end - weight * value, steps.duration))
    coefficient = ops.reverse_trace(
        increment, steps.duration, steps.cut, config.lambda_
    )
    coefficient = weight**config.instrument_power * coefficient
    total = per_path(ops.orthogonality_loss(value, coefficient))
    if config.carry_traces:
        flat = ravel_pytree(params["value"])[0]
        carried = ops.carried_coefficient(
            increment, steps.duration, steps.cut, config.lambda_
        )
        total = total - jnp.mean((constant(view.trace) @ flat) * carried)
    if "average_reward" in params:
        total = total - per_path(increment) * params["average_reward"]
    return total


def _two_timescale_loss(problem: _Problem, params: Params, view: PathBatch) -> Array:
    """Surrogate whose gradients are the two updates; each sees the other's constant.

    With C = E Σ ξξᵀ Δt and m(θ) = E Σ ξ dM: cgtd moves u to m, cgtd2 and ctdc to C⁻¹ m;
    cgtd and cgtd2 descend E Σ (ξ·u) dM in θ, ctdc the form of TDC,
    -m·θ + E Σ (ξ·u) D_{i+1} J_{i+1} Δt, which is Δt times as long a step.
    """
    constant, auxiliary = jax.lax.stop_gradient, params["auxiliary"]
    main = {"value": params["value"]}
    increment = _increments(problem, main, view)
    instrument = constant(_instruments(problem, main, view))
    duration = view.steps.duration
    projection = instrument @ auxiliary
    moment = jnp.mean(jnp.einsum("tbk,tb->bk", instrument, constant(increment)), 0)
    if problem.config.algorithm == "cgtd":
        fast = 0.5 * jnp.sum((auxiliary - moment) ** 2)
    else:
        fast = per_path(0.5 * projection**2 * duration) - auxiliary @ moment
    if problem.config.algorithm != "ctdc":
        return fast + per_path(constant(projection) * increment)
    weight = _start_discount(problem, view)
    value = problem.value.apply(main["value"], view.observation)
    successor = increment + weight * value  # its gradient is that of D_{i+1} J_{i+1}
    correction = per_path(constant(projection) * successor * duration)
    return fast + correction - ravel_pytree(main)[0] @ moment


def _moments(problem: _Problem, params: Params, view: PathBatch) -> linear.Moments:
    """The moment equations of one batch, linearised around the parameters."""
    flat, unravel = ravel_pytree(params)

    def increment(x: Array) -> Array:
        return _increments(problem, unravel(x), view)

    instrument = _instruments(problem, params, view)
    slope = -jax.jacfwd(increment)(flat)
    # dM is affine in θ near `flat`: dM(θ) = dM - s (θ - flat).
    at_zero = increment(flat) + slope @ flat
    return linear.moments(instrument, slope, at_zero, view.steps.duration, flat)


def _solve(problem: _Problem, learner: LearnerState, batch: PathBatch, key: Key):
    """Adds the batch to the running moments and solves for the parameters.

    One step is exact for a linear family. Any other is linearised anew around the
    parameters, so that repeated steps are Newton's method (with `accumulate` off).
    """
    del key
    config = problem.config
    new = _moments(problem, learner.params, time_first(batch))
    share = 1.0 / (learner.step + 1.0) if config.accumulate else 1.0
    running = jax.tree.map(
        lambda x, y: (x + share * (y - x)).astype(x.dtype), learner.stats, new
    )
    weighting = "square" if config.algorithm == "clstd" else config.weighting
    solution = linear.solve_moments(running, weighting, config.ridge)
    params = ravel_pytree(learner.params)[1](solution.params)
    metrics = {
        "condition": solution.condition,
        "residual": jnp.linalg.norm(solution.residual),
        "start_value": _start_value(problem, params, batch),
    }
    return learner.replace(params=params, stats=running, step=learner.step + 1), metrics


def _check(config: Config, instruments: Any) -> None:
    known = GRADIENT + TWO_TIMESCALE + SOLVED
    if config.algorithm not in known:
        raise ValueError(f"unknown algorithm {config.algorithm!r}: choose {known}")
    if config.weighting not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {config.weighting!r}: choose {WEIGHTINGS}")
    if instruments is not None and config.algorithm in GRADIENT:
        raise ValueError(
            f"{config.algorithm!r} uses ∇J as its test function: own instruments need "
            f"one of {TWO_TIMESCALE + SOLVED}"
        )
    if config.average_reward and config.algorithm not in ("ctd", "clstd"):
        raise ValueError("average_reward is known to ctd and clstd only")
    passes = (config.num_epochs, config.num_minibatches)
    if config.carry_traces and (config.algorithm != "ctd" or passes != (1, 1)):
        raise ValueError(
            "carry_traces needs ctd with num_epochs=1 and num_minibatches=1: a trace "
            "belongs to one pass over its path"
        )


def make(
    spec: EnvSpec,
    config: Config | None = None,
    value: Network | None = None,
    instruments: Callable[[Array], Array] | None = None,
    policy: Callable[[Array, Key | None], tuple[Array, PyTree]] | None = None,
) -> Method:
    """Policy evaluation as a `Method`; batches are `Transition`s `[T, B]` of B paths.

    Δt is `extras["duration"]` where the data has it, else one over the spec's control
    frequency, else 1. Time and traces start anew with every path and every batch: whole
    paths make CTD(λ) exact, batches of one step are on-line CTD(0). With `carry_traces`
    they start anew with every path only, and batches of one step of streams that go on
    (`rollout`, length 1) are on-line CTD(λ): the trace keeps the gradients at the
    parameters of their own time.

    Args:
      spec: shapes of the observation and the action.
      config: the algorithm.
      value: J, `apply(params, observation [..., O]) -> [...]`; all monomials of degree
        up to 2 when not given. clstd and gmm are exact for linear families.
      instruments: test functions ξ `[..., O] -> [..., K]`; else the trace of ∇J.
      policy: what is evaluated, `(observation, key) -> (action, extras)`; a constant
        action of 0 when not given, which suits uncontrolled diffusions.

    Raises:
      ValueError: unknown names, or a combination that has no meaning.
    """
    config = config or Config()
    _check(config, instruments)
    if value is None:
        if len(spec.observation.shape) != 1:
            raise ValueError("the default family needs vector observations: give value")
        value = quadratic_family(spec.observation.shape[0])
    problem = _Problem(config, value, instruments, 1 / (spec.control_frequency or 1.0))
    solved = config.algorithm in SOLVED

    def init(key: Key) -> Params:
        params = {"value": value.init(key)}
        if config.average_reward:
            params["average_reward"] = jnp.zeros(())
        if config.algorithm in TWO_TIMESCALE:
            params["auxiliary"] = jnp.zeros((_sizes(problem, spec)[0],))
        return params

    def init_stats(num_envs: int) -> PyTree:
        if config.carry_traces:
            size = _sizes(problem, spec)[0] - config.average_reward
            return _martingale.Carried(
                jnp.zeros((num_envs,)), jnp.zeros((num_envs, size))
            )
        return linear.no_moments(*_sizes(problem, spec)) if solved else ()

    return Method(
        init=init,
        act=_martingale.spectator(spec, policy),
        loss_fn=_loss_fn(problem),
        optimizer=_optimizer(config),
        prepare=lambda learner, batch: _prepare(problem, learner, batch),
        init_stats=init_stats,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
        update=functools.partial(_solve, problem) if solved else None,
    )


def _loss_fn(problem: _Problem) -> LossFn:
    two = problem.config.algorithm in TWO_TIMESCALE
    objective = _two_timescale_loss if two else _gradient_loss

    def loss_fn(
        params: Params, target_params: Params, stats: PyTree, batch: PathBatch, key: Key
    ) -> tuple[Array, Metrics]:
        del target_params, stats, key
        view = time_first(batch)
        metrics = {
            "mean_increment": jnp.mean(_increments(problem, params, view)),
            "start_value": _start_value(problem, params, batch),
        }
        return objective(problem, params, view), metrics

    return loss_fn


def _optimizer(config: Config) -> optax.GradientTransformation:
    slow = optax.adam if config.algorithm == "ml" else optax.sgd
    return optax.partition(
        {"slow": slow(config.learning_rate), "fast": optax.sgd(config.auxiliary_rate)},
        lambda params: {k: "fast" if k == "auxiliary" else "slow" for k in params},
    )


def _sizes(problem: _Problem, spec: EnvSpec) -> tuple[int, int]:
    """K test functions and P parameters."""
    shapes = jax.eval_shape(problem.value.init, jax.random.key(0))
    size = sum(x.size for x in jax.tree.leaves(shapes)) + problem.config.average_reward
    if problem.instruments is None:
        return size, size
    observation = jax.ShapeDtypeStruct(spec.observation.shape, spec.observation.dtype)
    return jax.eval_shape(problem.instruments, observation).shape[-1], size
