"""A linear-quadratic probe: the best policy and its value are known in closed form.

    x' = A x + B u + w,  w ~ N(0, σ² I)        reward = −(xᵀQx + uᵀRu)

Bertsekas 2012, Dynamic Programming and Optimal Control, volume 1, section 3.1, with a
discount factor: solving the undiscounted problem of √γ A and √γ B.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.probe._common import check_positive, finish
from rlx.types import Array, Box, Env, EnvSpec, Key, Step

# A cart on a rail: position and velocity, pushed for a fifth of a second at a time.
A = np.array([[1.0, 0.2], [0.0, 1.0]])
B = np.array([[0.02], [0.2]])
Q = np.diag([1.0, 0.1])
R = np.array([[0.1]])
SIGMA = 0.05
"""Standard deviation of the noise in each coordinate and step."""


@struct.dataclass
class LQRState:
    """The state x, and for how long the episode has run."""

    x: Array
    time: Array


class LQRSolution(NamedTuple):
    """V(x) = −xᵀPx − c, and the policy u = −Kx; all float64."""

    value_matrix: np.ndarray
    """P, symmetric, `[2, 2]`."""
    gain: np.ndarray
    """K, `[1, 2]`."""
    offset: float
    """c ≥ 0, what noise costs: γ/(1−γ) σ² tr P, and more if the policy is noisy."""

    def value(self, x: np.ndarray) -> np.ndarray:
        """V(x) for `x [..., 2]`; returns `[...]`."""
        return -np.einsum("...i,ij,...j", x, self.value_matrix, x) - self.offset


def lqr(time_limit: int | None = 50) -> Env:
    """The probe: x starts uniformly in [-1, 1]²; actions are not bounded.

    The horizon is endless: a time limit only truncates.

    Args:
      time_limit: steps until truncation; None for none.

    Raises:
      ValueError: `time_limit` is less than 1.
    """
    check_positive("time_limit", time_limit)
    a, b, q, r = (jnp.asarray(matrix, jnp.float32) for matrix in (A, B, Q, R))

    def reset(key: Key) -> tuple[LQRState, Array]:
        x = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return LQRState(x=x, time=jnp.int32(0)), x

    def step(state: LQRState, action: Array, key: Key) -> tuple[LQRState, Step]:
        reward = -(state.x @ q @ state.x + action @ r @ action)
        noise = SIGMA * jax.random.normal(key, (2,))
        x = a @ state.x + b @ action + noise
        state = LQRState(x=x, time=state.time + 1)
        return state, finish(x, reward, jnp.bool_(False), state.time, time_limit)

    spec = EnvSpec("probe/lqr", Box((2,)), Box((1,)), time_limit)
    return Env(reset, step, spec)


def lqr_solution(gamma: float) -> LQRSolution:
    """The best policy and its value, by the discounted Riccati equation.

        P = Q + γAᵀPA − γ²AᵀPB (R + γBᵀPB)⁻¹ BᵀPA,   K = γ(R + γBᵀPB)⁻¹ BᵀPA

    Args:
      gamma: γ in [0, 1).
    """
    value_matrix = Q
    for _ in range(100_000):
        gain = gamma * np.linalg.solve(
            R + gamma * B.T @ value_matrix @ B, B.T @ value_matrix @ A
        )
        updated = _bellman(value_matrix, gain, gamma)
        if np.allclose(updated, value_matrix, rtol=1e-14, atol=1e-14):
            break
        value_matrix = updated
    return lqr_evaluate(gain, gamma)


def lqr_evaluate(
    gain: np.ndarray, gamma: float, action_std: float = 0.0
) -> LQRSolution:
    """The value of the policy u = −Kx + N(0, s²), by the discounted Lyapunov equation.

        P = Q + KᵀRK + γ(A − BK)ᵀP(A − BK)
        c = [s² tr(R + γBᵀPB) + γσ² tr P] / (1 − γ)

    Args:
      gain: K, `[1, 2]`.
      gamma: γ in [0, 1).
      action_std: s ≥ 0.

    Raises:
      ValueError: the policy is so unstable that its value is not finite.
    """
    closed = np.sqrt(gamma) * (A - B @ gain)
    if np.abs(np.linalg.eigvals(closed)).max() >= 1:
        raise ValueError(f"gain {gain.tolist()} has no finite value at gamma={gamma}")
    # vec(P) = (I − M ⊗ M)⁻¹ vec(Q + KᵀRK) with M = √γ (A − BK)ᵀ.
    cost = Q + gain.T @ R @ gain
    system = np.eye(4) - np.kron(closed.T, closed.T)
    value_matrix = np.linalg.solve(system, cost.ravel()).reshape(2, 2)
    noisy_action = action_std**2 * np.trace(R + gamma * B.T @ value_matrix @ B)
    noisy_state = gamma * SIGMA**2 * np.trace(value_matrix)
    offset = float((noisy_action + noisy_state) / (1 - gamma))
    return LQRSolution(value_matrix, gain, offset)


def _bellman(value_matrix: np.ndarray, gain: np.ndarray, gamma: float) -> np.ndarray:
    closed = A - B @ gain
    return Q + gain.T @ R @ gain + gamma * closed.T @ value_matrix @ closed
