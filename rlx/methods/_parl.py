"""A-PARL's hypergradient from trajectories: both terms, apart.

Chakraborty et al. 2024 (PARL), https://arxiv.org/abs/2308.02585, section 4. The lower
level is a soft Markov decision problem with the fixed temperature λ. At its optimum the
Hessian of its value is −λ F, with F the Fisher matrix under the un-normalised
discounted occupancy, so that the implicit term is a natural-gradient solve:

    dG/dν = ∂_νG + ∂²_{νθ}V (λ F)⁻¹ ∂_θG
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rlx.ops import bilevel, distributions, natural_gradient, preference
from rlx.ops import policy_dependence as dependence
from rlx.ops.natural_gradient import MatrixVector
from rlx.ops.preference import Answer
from rlx.ops.segments import Where
from rlx.types import Array, Params, PyTree

POWER_ITERATIONS = 8
SOLVERS = ("none", "cg_fisher", "neumann", "dense")


@struct.dataclass
class Trajectories:
    """What the behaviour policy did, `[T, B, ...]`."""

    observation: Array
    """As the policy saw it."""
    choice: Array
    """What was sampled."""
    first: Array
    """True at the first step of an episode, and of the batch: where one begins."""


Distribution = Callable[[Params, Array], PyTree]
"""`(policy's params, observation) -> distribution` over choices."""


class Lower(NamedTuple):
    """The lower problem where the trajectories were drawn."""

    distribution: Distribution
    params: Params
    """θ, the policy that acted."""
    trajectories: Trajectories
    gamma: Array | float
    temperature: Array | float
    """λ, per unit of the reward that the policy maximises."""


class Solution(NamedTuple):
    """What the implicit term needs of the linear system."""

    weight: Array
    """`[T, B]` w γʰ / episodes: with it, ∂²_{νθ}V u is the gradient of Σ w r_ν."""
    residual: Array
    """`[]` |H u − b| / |b|."""
    slope_norm: Array
    """`[]` |∂_θG|."""


def log_prob(lower: Lower, params: Params) -> Array:
    """Log-probabilities log π_θ(a|s) `[T, B]`."""
    seen = lower.trajectories
    return lower.distribution(params, seen.observation).log_prob(seen.choice)


def utilities(upper: str, difference: Array, preferred: Array) -> Array:
    """What the policy is to be changed for: U of both segments, `[N, 2]`.

    `likelihood`: how well the reward predicts the label, the same for both, so that
    pairs become easy to predict (Chakraborty et al., section 3.2). `utility`: ½ (y − ½)
    and ½ (½ − y), what the teacher prefers to the policy's other segments.

    Args:
      upper: which.
      difference: `[N]` Δ under the reward.
      preferred: `[N]` y.
    """
    if upper == "utility":
        gain = 0.5 * (preferred - 0.5)
        return jnp.stack([gain, -gain], 1)
    fit = preference.log_likelihood(difference, preferred)
    return jnp.stack([fit, fit], 1)


def expected_utilities(upper: str, difference: Array) -> Array:
    """What the reward itself expects of `utilities`, `[N, 2]`, without a label."""
    return utilities(upper, difference, jax.nn.sigmoid(difference))


def slope(
    lower: Lower, where: Where, length: int, utility: Array, weight: Array
) -> PyTree:
    """∂_θ E[U(τ₀) + U(τ₁)], a pytree like θ, by the score function.

    Of each U the mean over the *other* pairs is subtracted, which is unbiased for pairs
    of their own trajectories; pairs that share some make the estimate a little short.

    Args:
      lower: the policy and its trajectories.
      where: the segments, `[N, 2]`.
      length: L.
      utility: `[N, 2]`, constants.
      weight: `[N]` 1 where a pair counts, else 0.
    """
    count = jnp.sum(weight)
    known = jnp.where(weight[:, None] > 0, utility, 0.0)
    others = (jnp.sum(known, 0, keepdims=True) - known) / jnp.maximum(count - 1, 1)
    advantage = jax.lax.stop_gradient(weight[:, None] * (known - others))
    last = jnp.maximum(where.start, 0) + length - 1

    def objective(params: Params) -> Array:
        scores = log_prob(lower, params)
        so_far = dependence.episode_sum(scores, lower.trajectories.first)
        return jnp.sum(advantage * so_far[last, where.stream]) / jnp.maximum(count, 1)

    return jax.grad(objective)(lower.params)


def curvature(lower: Lower, damping: float | Array) -> MatrixVector:
    """The product v ↦ (λ F + δ I) v, F under the un-normalised occupancy."""
    seen = lower.trajectories
    discount = dependence.episode_discount(seen.first, lower.gamma)
    scale = lower.temperature * discount / jnp.sum(seen.first)
    acted = jax.lax.stop_gradient(lower.distribution(lower.params, seen.observation))

    def divergence(params: Params) -> Array:
        now = lower.distribution(params, seen.observation)
        return jnp.sum(scale * distributions.kl_divergence(acted, now))

    return natural_gradient.fisher_vector_product(divergence, lower.params, damping)


def solver(name: str, num_iterations: int, product: MatrixVector) -> bilevel.Solver:
    """A solver of the menu; `neumann` measures the step size that it can take."""
    if name == "cg_fisher":
        return bilevel.conjugate_gradient(num_iterations)
    if name == "dense":
        return bilevel.dense()

    def solve(matrix: MatrixVector, vector: PyTree) -> PyTree:
        del matrix
        largest = _largest_eigenvalue(product, vector)
        rate = jnp.where(largest > 0, 1.0 / jnp.where(largest > 0, largest, 1.0), 0.0)
        return bilevel.neumann(num_iterations, rate)(product, vector)

    return solve


def _largest_eigenvalue(product: MatrixVector, start: PyTree) -> Array:
    """By power iteration: from below, and well within the factor 2 that matters."""

    def unit(vector: PyTree) -> PyTree:
        size = optax.tree.norm(vector)
        return optax.tree.scale(1.0 / jnp.where(size > 0, size, 1.0), vector)

    def body(_: Array, vector: PyTree) -> PyTree:
        return unit(product(vector))

    vector = jax.lax.fori_loop(0, POWER_ITERATIONS, body, unit(start))
    return optax.tree.norm(product(vector))


def implicit_weight(
    lower: Lower,
    slope: PyTree,
    name: str,
    num_iterations: int,
    damping: float | Array,
    centred: bool = False,
) -> Solution:
    """Solves (λ F + δ I) u = ∂_θG and carries u over to a weight of every reward.

    Args:
      lower: the policy and its trajectories.
      slope: ∂_θG.
      name: one of `SOLVERS`; "none" gives weights of 0.
      num_iterations: of the solver.
      damping: δ.
      centred: see `reward_weight`.
    """
    seen = lower.trajectories
    size = optax.tree.norm(slope)
    if name == "none":
        zero = jnp.zeros(seen.first.shape)
        return Solution(zero, jnp.zeros(()), size)
    product = curvature(lower, damping)
    u = solver(name, num_iterations, product)(product, slope)
    rest = optax.tree.norm(optax.tree.sub(product(u), slope))
    weight = reward_weight(lower, u, centred)
    return Solution(weight, rest / jnp.where(size > 0, size, 1.0), size)


def reward_weight(lower: Lower, u: PyTree, centred: bool) -> Array:
    """Weights w γʰ / episodes `[T, B]`: the gradient of Σ w r_ν is ∂²_{νθ}V u.

    Weights add up scores, whose expectation is 0 at every step. Of each the mean over
    the *other* streams at that step may be subtracted: the same in expectation, and
    with less noise, for the rewards of one step are much alike.

    Args:
      lower: the policy and its trajectories.
      u: a pytree like θ.
      centred: whether to subtract that mean.
    """
    first = lower.trajectories.first
    _, tangent = jax.jvp(lambda p: log_prob(lower, p), (lower.params,), (u,))
    moved = dependence.episode_sum(tangent, first)
    if centred:
        # Of mean 0 always: not cut where an episode ends, which the policy may decide.
        total = jnp.cumsum(tangent, 0)
        others = jnp.sum(total, 1, keepdims=True) - total
        moved = moved - others / max(total.shape[1] - 1, 1)
    discount = dependence.episode_discount(first, lower.gamma)
    return jax.lax.stop_gradient(discount * moved / jnp.sum(first))


def combine(
    direct: PyTree, implicit: PyTree, kappa: float | Array, cap: float | Array
) -> tuple[PyTree, dict[str, Array]]:
    """Direct + κ implicit, the latter at most ρ times as long as the former.

    Args:
      direct: ∂_νG.
      implicit: its term through the policy.
      kappa: κ, 0: the truncated gradient, exactly.
      cap: ρ.

    Returns:
      The sum, and both lengths, their cosine, and the factor applied.
    """
    sizes = optax.tree.norm(direct), optax.tree.norm(implicit)
    pushed = kappa * sizes[1]
    room = cap * sizes[0]
    shrink = jnp.where(pushed > room, room / jnp.where(pushed > 0, pushed, 1.0), 1.0)
    both = sizes[0] * sizes[1]
    cosine = optax.tree.vdot(direct, implicit) / jnp.where(both > 0, both, 1.0)
    report = {
        "direct_norm": sizes[0],
        "implicit_norm": sizes[1],
        "cosine": cosine,
        "implicit_scale": kappa * shrink,
    }
    return optax.tree.add_scale(direct, kappa * shrink, implicit), report


def answered(answer: Answer, whole: Array) -> Array:
    """`[N]` 1 where there is a label, else 0."""
    return jnp.where(whole, answer.weight, 0.0)
