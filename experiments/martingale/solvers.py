"""Every estimator for linear families, on the arrays of one seed's paths.

The same `rlx.ops` that the method uses, without its loop: closed forms instead of
steps, so that hundreds of seeds fit into one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs import diffusion as df
from rlx.ops import linear, martingale
from rlx.types import Array


class Family(NamedTuple):
    """J(t, x) = f(t, x) + φ(t, x)·θ."""

    features: Callable[[Array, Array], Array]
    """φ `(time, state [d]) -> [P]`."""
    offset: Callable[[Array, Array], Array]
    """f `(time, state [d]) -> []`."""


class Linear(NamedTuple):
    """dM(θ) = dM(0) - s·θ on the paths, and what test functions are made of."""

    features: Array
    """D_i φ_i `[N, M, P]`."""
    slope: Array
    """s `[N, M, P]`."""
    at_zero: Array
    """dM(0) `[N, M]`."""
    discount: Array
    """D_i `[N, M]`."""
    steps: martingale.Steps


def no_offset(time: Array, state: Array) -> Array:
    """F = 0."""
    del time
    return jnp.zeros((), state.dtype)


def linearise(problem: df.Diffusion, family: Family, paths: df.Paths) -> Linear:
    """The increments of M as affine functions of θ; the horizon pays h, not J(T)."""
    batch = df.transitions(problem, paths)
    last = jnp.zeros(batch.reward.shape, bool).at[-1].set(True)
    steps = martingale.Steps(
        batch.reward, batch.discount, batch.extras["duration"], last
    )

    def over_mesh(function: Callable[[Array, Array], Array]) -> Array:
        along = jax.vmap(jax.vmap(function, (None, 0)), (0, 0))
        return along(paths.time, paths.state)

    offset, features = over_mesh(family.offset), over_mesh(family.features)
    beta = problem.discount_rate
    discount = martingale.start_discount(steps, beta)
    gamma = jnp.exp(-beta * steps.duration) * steps.discount
    now = discount[..., None] * features[:-1]
    later = (discount * gamma)[..., None] * features[1:]
    at_zero = martingale.increments(offset[:-1], offset[1:], steps, beta)
    return Linear(now, now - later, at_zero, discount, steps)


def clstd(system: Linear, lambda_: float = 0.0, power: float = 0.0) -> Array:
    """θ of E Σ ξ dM = 0 with ξ the trace of D^p φ."""
    test = (system.discount ** (power - 1.0))[..., None] * system.features
    duration, cut = system.steps.duration, system.steps.cut
    instrument = test
    if lambda_ > 0:
        instrument = martingale.trace(test, duration, cut, lambda_)
    return with_instruments(system, instrument)


def with_instruments(system: Linear, instrument: Array) -> Array:
    """θ of E Σ ξ dM = 0 for test functions `[N, M, P]`."""
    zero = jnp.zeros((system.slope.shape[-1],))
    gathered = linear.moments(
        instrument, system.slope, system.at_zero, system.steps.duration, zero
    )
    return linear.solve_moments(gathered).params


def ml(system: Linear) -> Array:
    """θ of the martingale loss: a regression of the discounted return on D φ."""
    target = martingale.reverse_sum(system.at_zero, system.steps.cut)
    weighted = system.features * system.steps.duration[..., None]
    matrix = jnp.einsum("tbp,tbq->pq", weighted, system.features)
    return jnp.linalg.solve(matrix, jnp.einsum("tbp,tb->p", weighted, target))


def mean_square_td(system: Linear) -> Array:
    """θ that minimises Σ dM² / Δt, what the theory rejects."""
    weighted = system.slope / system.steps.duration[..., None]
    matrix = jnp.einsum("tbp,tbq->pq", weighted, system.slope)
    return jnp.linalg.solve(matrix, jnp.einsum("tbp,tb->p", weighted, system.at_zero))


SOLVERS: dict[str, Callable[[Linear], Array]] = {
    "MSTDE": mean_square_td,
    "ML": ml,
    "CLSTD(0)": clstd,
    "CLSTD(0.5)": lambda system: clstd(system, 0.5),
    "CLSTD(1)": lambda system: clstd(system, 1.0),
    "LSTD": lambda system: clstd(system, power=-1.0),
}


def value_of(family: Family, params: Array, time: Array, state: Array) -> Array:
    """J^θ on the mesh, `[N + 1, M]`."""

    def one(t: Array, x: Array) -> Array:
        return family.offset(t, x) + family.features(t, x) @ params

    return jax.vmap(jax.vmap(one, (None, 0)), (0, 0))(time, state)


def relative_error(
    problem: df.Diffusion, family: Family, params: Array, paths: df.Paths
) -> Array:
    """|J^θ - J| / |J| in the mean square along the paths."""
    true = jax.vmap(jax.vmap(problem.value, (None, 0)), (0, 0))(paths.time, paths.state)
    gap = value_of(family, params, paths.time, paths.state) - true
    weight = jnp.diff(paths.time)[:, None]
    return jnp.sqrt(jnp.sum(gap[:-1] ** 2 * weight) / jnp.sum(true[:-1] ** 2 * weight))
