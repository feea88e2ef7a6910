"""Alignment in a linear-quadratic world: Gaussian segments, all moments known.

    x' = A x + B u + w,   r_ν = −(xᵀ diag(e^ν) x + R u²),   u = −K x + s·N(0, 1)

The teacher states by how much one segment is better than another, with a quadratic
utility that is not in the class (its Q has a cross term), and the upper objective is
the squared error of that statement. A segment z is Gaussian with mean 0, so for a pair

    G = −½ E[(ΔR_ν − ΔU)²] = −Var(zᵀ M z) = −2 tr(M Σ M Σ)

with M the difference of the two quadratic forms and Σ = Σ(K, s) the covariance of z.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from envs.probe.linear_quadratic import SIGMA, A, B, R
from rlx.types import Array

TRUE = np.array([[1.0, 0.4], [0.4, 0.6]])
"""Q of the teacher's utility −(xᵀ Q x + R u²)."""
GAMMA, TEMPERATURE, LENGTH = 0.9, 0.1, 4


def evaluate(nu: Array, params: Array) -> tuple[Array, Array]:
    """P and the value −V of the policy, x(0) ~ N(0, I), entropy bonus included.

    Args:
      nu: `[2]` log of the diagonal of Q.
      params: `[3]` K and log s.
    """
    gain, std = params[None, :2], jnp.exp(params[2])
    closed = jnp.sqrt(GAMMA) * (A - B @ gain)
    cost = jnp.diag(jnp.exp(nu)) + gain.T @ R @ gain
    system = jnp.eye(4) - jnp.kron(closed.T, closed.T)
    matrix = jnp.linalg.solve(system, cost.ravel()).reshape(2, 2)
    acting = std**2 * (R + GAMMA * B.T @ matrix @ B)[0, 0]
    moving = GAMMA * SIGMA**2 * jnp.trace(matrix)
    entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e) + params[2]
    rest = (acting + moving - TEMPERATURE * entropy) / (1 - GAMMA)
    return matrix, jnp.trace(matrix) + rest


def lower(nu: Array, params: Array) -> Array:
    """−V, to be minimised over K and log s."""
    return evaluate(nu, params)[1]


def best_policy(nu: Array) -> Array:
    """K and log s `[3]`: Riccati's equation, and s² = λ/2 / (R + γ BᵀPB)."""
    cost = jnp.diag(jnp.exp(nu))

    def improve(_: int, matrix: Array) -> Array:
        gain = GAMMA * jnp.linalg.solve(R + GAMMA * B.T @ matrix @ B, B.T @ matrix @ A)
        closed = A - B @ gain
        return cost + gain.T @ R @ gain + GAMMA * closed.T @ matrix @ closed

    matrix = jax.lax.fori_loop(0, 150, improve, cost)
    curvature = R + GAMMA * B.T @ matrix @ B
    gain = GAMMA * jnp.linalg.solve(curvature, B.T @ matrix @ A)[0]
    log_std = 0.5 * jnp.log(0.5 * TEMPERATURE / curvature[0])
    return jnp.concatenate([gain, log_std])


def covariance(params: Array) -> Array:
    """Of a segment z = (x₀, u₀, x₁, ...): `[3L, 3L]`, exactly."""
    gain, std = params[None, :2], jnp.exp(params[2])
    noises = 2 + 3 * LENGTH
    # Each row says how a variable is made of x₀ (2), and per step w (2) and ε (1).
    state, rows = jnp.eye(2, noises), []
    for step in range(LENGTH):
        first = 2 + 3 * step
        action = -gain @ state + std * jnp.eye(1, noises, first)
        rows += [state, action]
        pushed = SIGMA * jnp.eye(2, noises, first + 1)
        state = A @ state + B @ action + pushed
    mixing = jnp.concatenate(rows)
    return mixing @ mixing.T


def upper(nu: Array, params: Array) -> Array:
    """G(ν, θ), to be maximised."""
    wrong = jnp.zeros((3, 3)).at[:2, :2].set(jnp.diag(jnp.exp(nu)) - TRUE)
    form = jnp.kron(jnp.eye(LENGTH), wrong)
    product = form @ covariance(params)
    return -2.0 * jnp.trace(product @ product)


def true_return(params: Array) -> Array:
    """Mean true return of a segment."""
    weight = jnp.zeros((3, 3)).at[:2, :2].set(TRUE).at[2, 2].set(R[0, 0])
    return -jnp.trace(jnp.kron(jnp.eye(LENGTH), weight) @ covariance(params))
