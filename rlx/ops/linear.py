"""Small linear systems of temporal-difference learning: solve, update, interval."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax.numpy as jnp

from rlx.types import Array


class Solution(NamedTuple):
    """A solved system and how far to trust it."""

    params: Array
    """`[P]`."""
    condition: Array
    """`[]` 2-norm condition number of the matrix that was inverted."""
    residual: Array
    """`[K]` A θ - b at the solution; 0 up to rounding when K = P and ridge = 0."""


def solve(matrix: Array, vector: Array, ridge: float | Array = 0.0) -> Solution:
    """Solves a square system, `(A + ridge I) θ = b`.

    Args:
      matrix: A `[P, P]`, not necessarily symmetric.
      vector: b `[P]`.
      ridge: added to the diagonal; may be traced.
    """
    chex.assert_rank([matrix, vector], [2, 1])
    size = vector.shape[0]
    chex.assert_shape(matrix, (size, size))
    regular = matrix + ridge * jnp.eye(size, dtype=matrix.dtype)
    params = jnp.linalg.solve(regular, vector)
    return Solution(params, jnp.linalg.cond(regular), matrix @ params - vector)


def weighted_solve(
    matrix: Array, vector: Array, weight: Array, ridge: float | Array = 0.0
) -> Solution:
    """Minimises (Aθ - b)ᵀ W (Aθ - b) + ridge |θ|²: generalised method of moments.

    Hansen (1982), https://doi.org/10.2307/1912775. With K = P and an invertible A every
    weight gives the root of A θ = b.

    Args:
      matrix: A `[K, P]`, K >= P.
      vector: b `[K]`.
      weight: W `[K, K]`, symmetric and positive definite.
      ridge: added to the diagonal of AᵀWA.
    """
    chex.assert_rank([matrix, vector, weight], [2, 1, 2])
    chex.assert_shape(weight, (vector.shape[0],) * 2)
    projected = matrix.T @ weight
    inner = solve(projected @ matrix, projected @ vector, ridge)
    return inner._replace(residual=matrix @ inner.params - vector)


def sherman_morrison(inverse: Array, left: Array, right: Array) -> Array:
    """(A + u vᵀ)⁻¹ from A⁻¹ (Sherman & Morrison 1950); recursive least squares.

    Args:
      inverse: A⁻¹ `[P, P]`.
      left: u `[P]`.
      right: v `[P]`.
    """
    chex.assert_rank([inverse, left, right], [2, 1, 1])
    gained = inverse @ left
    return inverse - jnp.outer(gained, right @ inverse) / (1.0 + right @ gained)


def sandwich(matrix: Array, moments: Array) -> Array:
    """Standard errors `[P]` of a root of the moment equations, from independent paths.

    Cov θ = A⁻¹ S A⁻ᵀ / B with S the covariance of the paths' moments at the root.

    Args:
      matrix: A `[P, P]`.
      moments: `[B, P]` Σ_i z_i m_i(θ) of every path.
    """
    chex.assert_rank([matrix, moments], [2, 2])
    num_paths = moments.shape[0]
    centred = moments - jnp.mean(moments, 0, keepdims=True)
    spread = centred.T @ centred / (num_paths - 1)
    inverse = jnp.linalg.inv(matrix)
    return jnp.sqrt(jnp.diag(inverse @ spread @ inverse.T) / num_paths)


class Moments(NamedTuple):
    """E Σ ξ dM(θ) = b - A θ over paths, and what weighs its entries."""

    matrix: Array
    """A `[K, P]`."""
    vector: Array
    """b `[K]`."""
    outer: Array
    """E Σ ξξᵀ Δt `[K, K]`."""
    covariance: Array
    """Of the paths' moments Σ ξ dM at the parameters they were gathered with."""


def moments(
    instrument: Array, slope: Array, at_zero: Array, duration: Array, params: Array
) -> Moments:
    """Gathers the moment equations of a batch of paths; averages of batches add up.

    Args:
      instrument: ξ `[T, B, K]`, test functions.
      slope: s `[T, B, P]`, the increments being dM(θ) = dM(0) - s·θ.
      at_zero: dM(0) `[T, B]`.
      duration: Δt `[T, B]`.
      params: θ `[P]` at which the covariance is taken.
    """
    chex.assert_rank([instrument, slope, at_zero, params], [3, 3, 2, 1])
    chex.assert_equal_shape([at_zero, duration])
    chex.assert_equal_shape_prefix([instrument, slope, at_zero], 2)
    count = at_zero.shape[1]
    paths = jnp.einsum("tbk,tb->bk", instrument, at_zero - slope @ params)
    centred = paths - jnp.mean(paths, 0, keepdims=True)
    weighted = instrument * duration[..., None]
    return Moments(
        matrix=jnp.einsum("tbk,tbp->kp", instrument, slope) / count,
        vector=jnp.einsum("tbk,tb->k", instrument, at_zero) / count,
        outer=jnp.einsum("tbk,tbl->kl", instrument, weighted) / count,
        covariance=centred.T @ centred / count,
    )


def no_moments(num_instruments: int, num_params: int) -> Moments:
    """Zeros of the right shapes, to average from."""
    square = jnp.zeros((num_instruments, num_instruments))
    matrix = jnp.zeros((num_instruments, num_params))
    return Moments(matrix, jnp.zeros((num_instruments,)), square, square)


def solve_moments(
    gathered: Moments, weighting: str = "square", ridge: float | Array = 0.0
) -> Solution:
    """θ with E Σ ξ dM = 0, or nearest to it.

    Args:
      gathered: from `moments`.
      weighting: "square" solves K = P equations; "identity", "outer" (E Σ ξξᵀ Δt)⁻¹
        and "optimal" (the moments' inverse covariance) weigh K >= P of them.
      ridge: added to the diagonal that is inverted.
    """
    if weighting == "square":
        return solve(gathered.matrix, gathered.vector, ridge)
    size = gathered.vector.shape[0]
    if weighting == "identity":
        weight = jnp.eye(size, dtype=gathered.vector.dtype)
    else:
        chosen = gathered.outer if weighting == "outer" else gathered.covariance
        weight = jnp.linalg.pinv(chosen, hermitian=True)
    return weighted_solve(gathered.matrix, gathered.vector, weight, ridge)
