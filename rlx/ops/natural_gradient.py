"""Natural gradients without a Fisher matrix: products, conjugate gradients, search.

Amari 1998, https://doi.org/10.1162/089976698300017746; Schulman et al. 2015 (TRPO),
https://arxiv.org/abs/1502.05477, appendix C. Vectors are pytrees of the structure of
the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rlx.types import Array, Params, PyTree

MatrixVector = Callable[[PyTree], PyTree]


class NaturalStep(NamedTuple):
    """A step along the natural gradient, and what its quadratic model promises."""

    direction: PyTree
    """F⁻¹ g."""
    step_size: Array
    """`[]` t, for which the modelled divergence ½ t² gᵀ F⁻¹ g is exactly δ."""
    residual: Array
    """`[]` |F x − g| / |g| of the solution found."""


class Search(NamedTuple):
    """Where a backtracking line search ended."""

    params: Params
    """The accepted parameters, or the old ones."""
    fraction: Array
    """`[]` of the full step; 0 where nothing was accepted."""


def fisher_vector_product(
    divergence: Callable[[Params], Array], params: Params, damping: float | Array = 0.0
) -> MatrixVector:
    """Fisher-vector product: v ↦ (F + damping I) v.

    F is the Hessian of a divergence at its minimum.

    Forward over reverse mode: about three evaluations of the divergence, and no
    matrix. Both directions of the KL divergence have the Fisher information as their
    Hessian where the policies are equal.

    Args:
      divergence: `params -> []` mean divergence from the policy at `params`.
      params: θ_k, where the divergence is 0.
      damping: added to the diagonal, scalar.

    Returns:
      The product, a linear function of a pytree like `params`.
    """
    gradient = jax.grad(divergence)

    def product(vector: PyTree) -> PyTree:
        _, curvature = jax.jvp(gradient, (params,), (vector,))
        return jax.tree.map(lambda c, v: c + damping * v, curvature, vector)

    return product


def conjugate_gradient(
    product: MatrixVector,
    vector: PyTree,
    num_iterations: int,
    tolerance: float = 1e-10,
) -> PyTree:
    """Solves A x = b for a symmetric positive definite A, starting at x = 0.

    Hestenes & Stiefel 1952. Exact after as many iterations as A has distinct
    eigenvalues, up to rounding.

    Args:
      product: v ↦ A v.
      vector: b.
      num_iterations: at most.
      tolerance: ends once |A x − b|² falls below this (TRPO's code: 1e-10).

    Returns:
      x, a pytree like `vector`.

    Raises:
      ValueError: `num_iterations` is less than 1.
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
    squared = optax.tree.vdot

    def unfinished(state: tuple) -> Array:
        count, _, _, _, size = state
        return (count < num_iterations) & (size > tolerance)

    def iterate(state: tuple) -> tuple:
        count, solution, residual, direction, size = state
        image = product(direction)
        rate = size / squared(direction, image)
        solution = optax.tree.add_scale(solution, rate, direction)
        residual = optax.tree.add_scale(residual, -rate, image)
        new_size = squared(residual, residual)
        direction = optax.tree.add_scale(residual, new_size / size, direction)
        return count + 1, solution, residual, direction, new_size

    start = jax.tree.map(jnp.zeros_like, vector)
    state = (jnp.zeros((), jnp.int32), start, vector, vector, squared(vector, vector))
    return jax.lax.while_loop(unfinished, iterate, state)[1]


def natural_step(
    gradient: PyTree,
    product: MatrixVector,
    max_divergence: float | Array,
    num_iterations: int = 10,
) -> NaturalStep:
    """The step of a quadratic trust region (Schulman et al. 2015, appendix C).

        maximise gᵀ s  subject to  ½ sᵀ F s <= δ:    s = t F⁻¹ g,  t = √(2δ / gᵀ F⁻¹ g)

    Args:
      gradient: g, of what is to *increase*.
      product: v ↦ F v.
      max_divergence: δ > 0, scalar.
      num_iterations: of conjugate gradients.

    Returns:
      F⁻¹ g and t; both 0 where the gradient is.

    Raises:
      AssertionError: δ is no scalar.
    """
    chex.assert_rank(max_divergence, 0)
    direction = conjugate_gradient(product, gradient, num_iterations)
    image = product(direction)
    # The curvature along the direction found, not gᵀx: right for inexact solutions.
    curvature = optax.tree.vdot(direction, image)
    safe = jnp.where(curvature > 0, curvature, 1.0)
    step_size = jnp.where(curvature > 0, jnp.sqrt(2.0 * max_divergence / safe), 0.0)
    size = optax.tree.norm(gradient)
    rest = optax.tree.norm(optax.tree.sub(image, gradient))
    return NaturalStep(direction, step_size, rest / jnp.where(size > 0, size, 1.0))


def backtrack(
    acceptable: Callable[[Params], Array],
    params: Params,
    step: PyTree,
    num_trials: int = 10,
    factor: float | Array = 0.5,
) -> Search:
    """Shortens a step until it is acceptable: params + factorʲ step, j = 0, 1, ...

    Args:
      acceptable: `params -> bool[]`.
      params: where the step starts.
      step: the full step.
      num_trials: how many lengths are tried, the full one included.
      factor: in (0, 1), scalar.

    Returns:
      The first acceptable parameters, or the old ones after `num_trials` failures.

    Raises:
      ValueError: `num_trials` is less than 1.
    """
    if num_trials < 1:
        raise ValueError(f"num_trials must be at least 1, got {num_trials}")

    def moved(fraction: Array) -> Params:
        return optax.tree.add_scale(params, fraction, step)

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        trial, _, accepted = state
        return (trial < num_trials) & ~accepted

    def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        trial, fraction, _ = state
        fraction = jnp.where(trial == 0, fraction, fraction * factor)
        return trial + 1, fraction, acceptable(moved(fraction))

    start = (jnp.zeros((), jnp.int32), jnp.ones(()), jnp.zeros((), bool))
    _, fraction, accepted = jax.lax.while_loop(unfinished, attempt, start)
    found = moved(fraction)
    kept = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), found, params)
    return Search(kept, jnp.where(accepted, fraction, 0.0))
