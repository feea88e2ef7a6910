"""Hypergradients: how an upper objective changes through a lower problem's solution.

    G(x) = f(x, y*(x)),   y*(x) = argmin_y g(x, y)
    dG/dx = ∂ₓf − ∂²ₓᵧg [∂²ᵧᵧg]⁻¹ ∂ᵧf        (both derivatives at y*)

The first term is what one gets by taking y for a constant, the second what one drops
by doing so. They are returned apart. Bengio 2000,
https://doi.org/10.1162/089976600300015187 (implicit); Pedregosa 2016,
https://arxiv.org/abs/1602.02355 (conjugate gradients); Lorraine et al. 2020,
https://arxiv.org/abs/1911.02590 (Neumann series); Franceschi et al. 2017,
https://arxiv.org/abs/1703.01785 (unrolling).

x and y are pytrees. Nothing here knows whether f is to be maximised or minimised. The
lower problem is a *minimisation*: of a return, take its negative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rlx.ops import natural_gradient
from rlx.ops.natural_gradient import MatrixVector
from rlx.types import Array, PyTree

Objective = Callable[[PyTree, PyTree], Array]
"""`(x, y) -> []`."""
Solver = Callable[[MatrixVector, PyTree], PyTree]
"""`(v ↦ H v, b) -> H⁻¹ b` for a symmetric H >= 0; see `dense` and its neighbours."""


class Hypergradient(NamedTuple):
    """Both terms of dG/dx, each a pytree like x."""

    direct: PyTree
    """∂ₓf: the solution taken for a constant."""
    implicit: PyTree
    """(dy*/dx)ᵀ ∂ᵧf: what x does through the solution."""
    residual: Array
    """`[]` how far the term is from what it should be: of `implicit`, |H u − b| / |b|
    of the linear system; of `unroll`, |step(y) − y|, 0 at a solution."""

    def total(self, weight: float | Array = 1.0) -> PyTree:
        """Direct + weight · implicit; 1 is the hypergradient, 0 the truncated one."""
        return optax.tree.add_scale(self.direct, weight, self.implicit)


def implicit(
    upper: Objective,
    lower: Objective,
    upper_params: PyTree,
    lower_params: PyTree,
    solve: Solver,
    product: MatrixVector | None = None,
) -> Hypergradient:
    """The hypergradient by the implicit function theorem.

    Exact at y = y*(x) up to the solver's residual. Elsewhere the error is of the order
    of |∂ᵧg|. Where ∂²ᵧᵧg is singular along directions that neither objective sees (the
    constants of a softmax's logits), every solver here returns the right answer: the
    directions get nothing.

    Args:
      upper: f.
      lower: g, to be minimised over y, twice differentiable.
      upper_params: x.
      lower_params: y*(x).
      solve: `dense()`, `conjugate_gradient(...)` or `neumann(...)`.
      product: v ↦ H v where H is not to be ∂²ᵧᵧg by automatic differentiation: a Fisher
        matrix, or a sum over a trajectory (`summed_product`).

    Returns:
      Both terms and the relative residual of the linear system.

    Raises:
      AssertionError: an objective is no scalar.
    """
    direct, slope = _slopes(upper, upper_params, lower_params)
    if product is None:
        product = hessian_product(lower, upper_params, lower_params)
    solution = solve(product, slope)
    cross = cross_product(lower, upper_params, lower_params, solution)
    rest = optax.tree.norm(optax.tree.sub(product(solution), slope))
    size = optax.tree.norm(slope)
    residual = rest / jnp.where(size > 0, size, 1.0)
    return Hypergradient(direct, optax.tree.scale(-1.0, cross), residual)


def unroll(
    upper: Objective,
    step: Callable[[PyTree, PyTree], PyTree],
    upper_params: PyTree,
    lower_params: PyTree,
    num_steps: int,
    rematerialize: bool = False,
) -> tuple[Hypergradient, PyTree]:
    """The hypergradient of f(x, y_K), y_{k+1} = step(x, y_k), y_0 a constant.

    Exact for what K steps reach; of dG/dx it forgets what the start would have
    carried, so its error falls with K as the steps contract. Memory grows with K:
    every y_k is kept, and unless `rematerialize`, what each step computed.

    Args:
      upper: f.
      step: `(x, y) -> y`, such as `gradient_step`.
      upper_params: x.
      lower_params: y_0.
      num_steps: K >= 1.
      rematerialize: compute each step a second time instead of keeping its insides.

    Returns:
      Both terms with |step(x, y_K) − y_K| for a residual, and y_K.

    Raises:
      ValueError: `num_steps` is less than 1.
      AssertionError: f is no scalar.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    once = jax.checkpoint(step) if rematerialize else step

    def run(x: PyTree) -> PyTree:
        def body(y: PyTree, _: None) -> tuple[PyTree, None]:
            return once(x, y), None

        return jax.lax.scan(body, lower_params, None, length=num_steps)[0]

    reached, pull_back = jax.vjp(run, upper_params)
    direct, slope = _slopes(upper, upper_params, reached)
    (through,) = pull_back(slope)
    moved = optax.tree.sub(step(upper_params, reached), reached)
    return Hypergradient(direct, through, optax.tree.norm(moved)), reached


def gradient_step(
    lower: Objective, step_size: float | Array
) -> Callable[[PyTree, PyTree], PyTree]:
    """(x, y) ↦ y − η ∂ᵧg(x, y), for `unroll`; contracts if 0 < η < 2 / |∂²ᵧᵧg|."""
    chex.assert_rank(step_size, 0)
    slope = jax.grad(lower, 1)

    def step(x: PyTree, y: PyTree) -> PyTree:
        return optax.tree.add_scale(y, -step_size, slope(x, y))

    return step


# --------------------------------------------------------------------------- products


def hessian_product(
    lower: Objective, upper_params: PyTree, lower_params: PyTree
) -> MatrixVector:
    """The product v ↦ ∂²ᵧᵧg v, forward over reverse mode: no matrix is formed."""
    slope = jax.grad(lower, 1)

    def product(vector: PyTree) -> PyTree:
        return jax.jvp(lambda y: slope(upper_params, y), (lower_params,), (vector,))[1]

    return product


def cross_product(
    lower: Objective, upper_params: PyTree, lower_params: PyTree, vector: PyTree
) -> PyTree:
    """∂²ₓᵧg v, a pytree like x: the gradient in x of g's derivative along v.

    Args:
      lower: g.
      upper_params: x.
      lower_params: y.
      vector: v, a pytree like y; a constant.
    """

    def along(x: PyTree) -> Array:
        return jax.jvp(lambda y: lower(x, y), (lower_params,), (vector,))[1]

    return jax.grad(along)(upper_params)


def summed_product(
    term: Callable[[PyTree, PyTree], Array], lower_params: PyTree, items: PyTree
) -> MatrixVector:
    """The product v ↦ Σ_t ∂²ᵧᵧ term(y, item_t) v, one item at a time.

    The memory is that of a single item, however many there are: the curvature of a
    trajectory of any length, a step at a time. Together with `conjugate_gradient`,
    which keeps four vectors, nothing grows with length or iterations.

    Args:
      term: `(y, item) -> []`, weights included: γʰ/N · KL(π_old(s) ‖ π(s)) gives the
        Fisher matrix under the discounted, *un-normalised* occupancy of N trajectories.
      lower_params: y.
      items: a pytree, every leaf `[T, ...]`; T of them.
    """

    def product(vector: PyTree) -> PyTree:
        def add(total: PyTree, item: PyTree) -> tuple[PyTree, None]:
            slope = jax.grad(lambda y: term(y, item))
            image = jax.jvp(slope, (lower_params,), (vector,))[1]
            return optax.tree.add(total, image), None

        start = jax.tree.map(jnp.zeros_like, lower_params)
        return jax.lax.scan(add, start, items)[0]

    return product


# ---------------------------------------------------------------------------- solvers


def dense(damping: float | Array = 0.0) -> Solver:
    """(H + δI)⁻¹ b by forming H; of a singular H, the solution of least norm.

    P products for P unknowns and O(P³): the reference, for small problems.

    Args:
      damping: δ >= 0, scalar.
    """
    chex.assert_rank(damping, 0)

    def solve(product: MatrixVector, vector: PyTree) -> PyTree:
        flat, unravel = ravel_pytree(vector)

        def column(unit: Array) -> Array:
            return ravel_pytree(product(unravel(unit)))[0]

        identity = jnp.eye(flat.size, dtype=flat.dtype)
        matrix = jax.vmap(column)(identity) + damping * identity
        # Rounding makes small eigenvalues of zeros; their inverses must not count.
        cutoff = 10 * flat.size * float(jnp.finfo(flat.dtype).eps)
        return unravel(jnp.linalg.lstsq(matrix, flat, rcond=cutoff)[0])

    return solve


def conjugate_gradient(
    num_iterations: int, damping: float | Array = 0.0, tolerance: float = 1e-10
) -> Solver:
    """(H + δI)⁻¹ b by conjugate gradients from zero.

    Keeps four vectors, however many iterations. From zero it never leaves the range of
    H, so of a singular H it finds the solution of least norm, if there is one.

    Args:
      num_iterations: at most; as many as H has distinct eigenvalues suffice.
      damping: δ >= 0, scalar.
      tolerance: ends once |H u − b| <= tolerance |b|.

    Raises:
      ValueError: `num_iterations` is less than 1.
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
    chex.assert_rank(damping, 0)

    def solve(product: MatrixVector, vector: PyTree) -> PyTree:
        size = optax.tree.norm(vector)
        size = jnp.where(size > 0, size, 1.0)

        def damped(v: PyTree) -> PyTree:
            return optax.tree.add_scale(product(v), damping, v)

        # Of unit length, so that the absolute tolerance below is a relative one.
        unit = optax.tree.scale(1.0 / size, vector)
        solution = natural_gradient.conjugate_gradient(
            damped, unit, num_iterations, tolerance**2
        )
        return optax.tree.scale(size, solution)

    return solve


def neumann(num_terms: int, step_size: float | Array) -> Solver:
    """H⁻¹ b ≈ η Σ_{j<J} (I − ηH)ʲ b; of a singular H, tends to the least norm.

    What J gradient steps on the lower problem's quadratic model reach. The error along
    an eigenvalue h is (1 − ηh)ᴶ: diverges unless 0 < η < 2 / |H|.

    Args:
      num_terms: J >= 1.
      step_size: η, scalar.

    Raises:
      ValueError: `num_terms` is less than 1.
    """
    if num_terms < 1:
        raise ValueError(f"num_terms must be at least 1, got {num_terms}")
    chex.assert_rank(step_size, 0)

    def solve(product: MatrixVector, vector: PyTree) -> PyTree:
        def body(_: Array, total: PyTree) -> PyTree:
            # Horner: Σ_{j<J} Mʲ b = b + M (b + M (...)), M = I − ηH.
            moved = optax.tree.add_scale(total, -step_size, product(total))
            return optax.tree.add(vector, moved)

        total = jax.lax.fori_loop(1, num_terms, body, vector)
        return optax.tree.scale(step_size, total)

    return solve


def _slopes(upper: Objective, x: PyTree, y: PyTree) -> tuple[PyTree, PyTree]:
    value, slopes = jax.value_and_grad(upper, (0, 1))(x, y)
    chex.assert_rank(value, 0)
    return slopes
