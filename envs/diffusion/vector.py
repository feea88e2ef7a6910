"""Diffusions in several dimensions: linear-quadratic control, baskets, a pendulum."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import random

from envs.diffusion.core import Diffusion, require, require_positive
from envs.diffusion.scalar import black_scholes
from rlx.types import Array, Key

_TABLE_STEPS = 1000


class LinearQuadratic(NamedTuple):
    """dX = (AX + Bu) dt + Σ dW, cost ∫ xᵀQx + uᵀRu dt + x_TᵀGx_T."""

    dynamics: np.ndarray
    """A `[d, d]`."""
    control: np.ndarray
    """B `[d, k]`."""
    noise: np.ndarray
    """Σ `[d, n]`."""
    state_cost: np.ndarray
    """Q `[d, d]`, symmetric."""
    action_cost: np.ndarray
    """R `[k, k]`, symmetric and positive definite."""
    terminal_cost: np.ndarray
    """G `[d, d]`, symmetric."""
    discount_rate: float = 0.0
    """β."""
    horizon: float = 1.0
    """T; may be infinite if β > 0."""
    temperature: float = 0.0
    """γ: the optimal policy has covariance γ R⁻¹ / 2."""
    start: float = 1.0
    """X_0 ~ N(start, 0.25) in every coordinate."""


class _Table(NamedTuple):
    """P(τ), c(τ) and their derivatives on a uniform grid of the time left τ."""

    matrix: np.ndarray
    matrix_slope: np.ndarray
    constant: np.ndarray
    constant_slope: np.ndarray
    spacing: float


def _slopes(problem: LinearQuadratic, gain: np.ndarray | None, entropy_cost: float):
    """dP/dτ and dc/dτ: Lyapunov's equation for a given gain, Riccati's without one."""
    p = problem
    inverse = np.linalg.inv(p.action_cost)

    def slopes(matrix: np.ndarray, constant: float) -> tuple[np.ndarray, float]:
        k = inverse @ p.control.T @ matrix if gain is None else gain
        closed = p.dynamics - p.control @ k
        slope = p.state_cost + k.T @ p.action_cost @ k + closed.T @ matrix
        slope = slope + matrix @ closed - p.discount_rate * matrix
        gained = np.trace(p.noise.T @ matrix @ p.noise) + entropy_cost
        return slope, gained - p.discount_rate * constant

    return slopes


def _tabulate(problem: LinearQuadratic, slopes) -> _Table:
    h = problem.horizon / _TABLE_STEPS
    matrix, constant = np.array(problem.terminal_cost, float), 0.0
    rows = []
    for _ in range(_TABLE_STEPS + 1):
        k1, c1 = slopes(matrix, constant)
        rows.append((matrix, k1, constant, c1))
        k2, c2 = slopes(matrix + h / 2 * k1, constant + h / 2 * c1)
        k3, c3 = slopes(matrix + h / 2 * k2, constant + h / 2 * c2)
        k4, c4 = slopes(matrix + h * k3, constant + h * c3)
        matrix = matrix + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        constant = constant + h / 6 * (c1 + 2 * c2 + 2 * c3 + c4)
        if not np.all(np.isfinite(matrix)):
            raise ValueError(
                "linear_quadratic: the Riccati equation explodes before the horizon: "
                "shorten it or check that the costs are positive semi-definite"
            )
    columns = [np.stack(x) for x in zip(*rows, strict=True)]
    return _Table(columns[0], columns[1], columns[2], columns[3], h)


def _interpolate(table: _Table, left: Array) -> tuple[Array, Array]:
    """P(τ) and c(τ) by cubic Hermite interpolation: error O(h⁴)."""
    position = jnp.clip(left / table.spacing, 0.0, _TABLE_STEPS)
    index = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, _TABLE_STEPS - 1)
    s = position - index
    weights = (
        (1 + 2 * s) * (1 - s) ** 2,
        s * (1 - s) ** 2 * table.spacing,
        s**2 * (3 - 2 * s),
        s**2 * (s - 1) * table.spacing,
    )

    def blend(values: np.ndarray, slopes: np.ndarray) -> Array:
        value, slope = jnp.asarray(values), jnp.asarray(slopes)
        parts = (value[index], slope[index], value[index + 1], slope[index + 1])
        return jnp.sum(
            jnp.stack([w * part for w, part in zip(weights, parts, strict=True)]), 0
        )

    return (
        blend(table.matrix, table.matrix_slope),
        blend(table.constant, table.constant_slope),
    )


def _stationary(problem: LinearQuadratic, gain, slopes) -> tuple[np.ndarray, float]:
    """P and c of an infinite horizon, from the algebraic equations."""
    p = problem
    shifted = p.dynamics - p.discount_rate / 2 * np.eye(len(p.dynamics))
    if gain is None:
        matrix = _riccati(shifted, p)
    else:
        closed = shifted - p.control @ gain
        if np.linalg.eigvals(closed).real.max() >= 0:
            raise ValueError("linear_quadratic: the value of this gain is infinite")
        cost = p.state_cost + gain.T @ p.action_cost @ gain
        eye = np.eye(len(closed))
        operator = np.kron(closed.T, eye) + np.kron(eye, closed.T)
        matrix = np.linalg.solve(operator, -cost.reshape(-1)).reshape(cost.shape)
    return matrix, slopes(matrix, 0.0)[1] / p.discount_rate


def _riccati(shifted: np.ndarray, problem: LinearQuadratic) -> np.ndarray:
    """The stabilising solution of Riccati's equation, from the Hamiltonian matrix."""
    p = problem
    gain = p.control @ np.linalg.inv(p.action_cost) @ p.control.T
    hamiltonian = np.block([[shifted, -gain], [-p.state_cost, -shifted.T]])
    eigenvalues, vectors = np.linalg.eig(hamiltonian)
    d = len(shifted)
    stable = vectors[:, np.argsort(eigenvalues.real)[:d]]
    if np.sort(eigenvalues.real)[d - 1] >= 0:
        raise ValueError("linear_quadratic: no policy has a finite value")
    return np.real(stable[d:] @ np.linalg.inv(stable[:d]))


def linear_quadratic(
    problem: LinearQuadratic, gain: np.ndarray | None = None
) -> Diffusion:
    """Linear dynamics, quadratic cost, policy u ~ N(-Kx, γR⁻¹/2); reward = -cost.

    The value is -(xᵀP(T-t)x + c(T-t)): Lyapunov's equation for a given K, Riccati's for
    the optimum; integrated by Runge-Kutta and interpolated (exact to about 1e-10), or
    solved algebraically when the horizon is infinite.

    Args:
      problem: the matrices.
      gain: K `[k, d]`; the optimal (time-dependent) gain when not given.

    Raises:
      ValueError: entries not finite, an infinite value, or no discount at T = ∞.
    """
    name = "linear_quadratic"
    finite = math.isfinite(problem.horizon)
    matrices = {k: v for k, v in problem._asdict().items() if k != "horizon"}
    require(name, **matrices)
    require_positive(name, horizon=problem.horizon)
    if not finite and problem.discount_rate <= 0:
        raise ValueError(f"{name}: an infinite horizon needs discount_rate > 0")
    d, k = problem.control.shape
    gamma = problem.temperature
    inverse = np.linalg.inv(problem.action_cost)
    scale = np.linalg.cholesky(gamma * inverse / 2) if gamma else np.zeros((k, k))
    # log det of the scale, and log π of a standard normal, make up the entropy.
    log_scale = float(np.log(np.diag(scale)).sum()) if gamma else 0.0
    entropy = k * (1 + math.log(2 * math.pi)) / 2 + log_scale
    entropy_cost = gamma * (k / 2 - entropy) if gamma else 0.0
    slopes = _slopes(problem, gain, entropy_cost)
    if gain is not None:
        require(name, gain=gain)
    if finite:
        table = _tabulate(problem, slopes)
    else:
        matrix, constant = _stationary(problem, gain, slopes)

    def value_matrices(time: Array) -> tuple[Array, Array]:
        if finite:
            return _interpolate(table, problem.horizon - time)
        return jnp.asarray(matrix), jnp.asarray(constant)

    def value(time: Array, state: Array) -> Array:
        quadratic, left_over = value_matrices(time)
        return -(state @ (quadratic @ state) + left_over)

    def policy(time: Array, state: Array, key: Key) -> tuple[Array, Array]:
        if gain is None:
            feedback = (
                jnp.asarray(inverse @ problem.control.T) @ value_matrices(time)[0]
            )
        else:
            feedback = jnp.asarray(gain)
        mean = -jnp.einsum("kd,...d->...k", feedback.astype(state.dtype), state)
        if not gamma:
            return mean, jnp.zeros(mean.shape[:-1], mean.dtype)
        noise = random.normal(key, mean.shape, mean.dtype)
        action = mean + jnp.einsum(
            "ij,...j->...i", jnp.asarray(scale, mean.dtype), noise
        )
        log_prob = -0.5 * jnp.sum(noise**2 + math.log(2 * math.pi), -1) - log_scale
        return action, log_prob

    a, b, sigma, q, r, g = (np.asarray(x, float) for x in problem[:6])
    return Diffusion(
        name=name,
        dimension=d,
        action_dimension=k,
        noise_dimension=problem.noise.shape[1],
        drift=lambda t, x, u: jnp.asarray(a, x.dtype) @ x + jnp.asarray(b, x.dtype) @ u,
        volatility=lambda t, x, u: jnp.asarray(sigma, x.dtype),
        initial=lambda key: problem.start + 0.5 * random.normal(key, (d,)),
        reward=lambda t, x, u: (
            -(x @ (jnp.asarray(q, x.dtype) @ x)) - u @ (jnp.asarray(r, x.dtype) @ u)
        ),
        terminal=lambda x: -(x @ (jnp.asarray(g, x.dtype) @ x)),
        horizon=problem.horizon,
        discount_rate=problem.discount_rate,
        temperature=gamma,
        policy=policy,
        value=value,
    )


def geometric_basket(
    volatilities: tuple[float, ...] = (0.2, 0.3, 0.4),
    correlation: float = 0.3,
    strike: float = 1.0,
    rate: float = 0.01,
    horizon: float = 1.0,
) -> Diffusion:
    """A call on the geometric mean of d correlated stocks, all starting at 1.

    The geometric mean is log-normal, so the Black-Scholes formula prices it: volatility
    s = √(1ᵀC1)/d and a forward that grows at r - mean(σ²)/2 + s²/2.

    Raises:
      ValueError: numbers not finite or not positive, or a correlation matrix that is
        not positive definite.
    """
    name = "geometric_basket"
    vol = np.asarray(volatilities, float)
    d = len(vol)
    require(name, volatilities=vol, correlation=correlation, rate=rate, strike=strike)
    require_positive(name, volatility=vol.min(), strike=strike, horizon=horizon)
    if not -1 / max(d - 1, 1) < correlation < 1:
        raise ValueError(
            f"{name}: correlation={correlation} is impossible for {d} assets"
        )
    corr = np.full((d, d), correlation) + (1 - correlation) * np.eye(d)
    root = vol[:, None] * np.linalg.cholesky(corr)
    spread = math.sqrt((root @ root.T).sum()) / d
    growth = rate - (vol**2).mean() / 2 + spread**2 / 2

    def value(time: Array, state: Array) -> Array:
        left = horizon - time
        forward = jnp.exp(jnp.mean(jnp.log(state)) + (growth - rate) * left)
        # The mean's own drift folded into the spot leaves a plain Black-Scholes price.
        return black_scholes(forward, left, strike, rate, spread)

    def exact(time, state, action, duration, dw):
        drift = (rate - jnp.asarray(vol**2, state.dtype) / 2) * duration
        return state * jnp.exp(drift + jnp.asarray(root, state.dtype) @ dw)

    return Diffusion(
        name=name,
        dimension=d,
        noise_dimension=d,
        drift=lambda t, x, a: rate * x,
        volatility=lambda t, x, a: x[:, None] * jnp.asarray(root, x.dtype),
        initial=lambda key: jnp.ones((d,)),
        terminal=lambda x: jnp.maximum(jnp.exp(jnp.mean(jnp.log(x))) - strike, 0.0),
        horizon=horizon,
        discount_rate=rate,
        exact=exact,
        value=value,
    )


def pendulum(
    stiffness: float = 15.0,
    damping: float = 2.0,
    noise: float = 0.5,
    discount_rate: float = 1.0,
) -> Diffusion:
    """A noisy inverted pendulum held up by a fixed feedback; no closed form.

    State (θ, ω), θ = 0 upright: dω = (9.81 sin θ + u) dt + σ dW with the policy
    u = -stiffness sin θ - damping ω; r = cos θ - 1 - ω²/10; infinite horizon.

    Raises:
      ValueError: a number is not finite, or the discount rate is not positive.
    """
    name = "pendulum"
    require(name, stiffness=stiffness, damping=damping, noise=noise)
    require_positive(name, discount_rate=discount_rate)

    def drift(time: Array, state: Array, action: Array) -> Array:
        return jnp.stack([state[1], 9.81 * jnp.sin(state[0]) + action[0]])

    def policy(time: Array, state: Array, key: Key) -> tuple[Array, Array]:
        torque = -stiffness * jnp.sin(state[..., 0]) - damping * state[..., 1]
        return torque[..., None], jnp.zeros_like(torque)

    return Diffusion(
        name=name,
        dimension=2,
        action_dimension=1,
        drift=drift,
        volatility=lambda t, x, a: jnp.array([[0.0], [noise]], x.dtype),
        initial=lambda key: random.uniform(key, (2,), minval=-1.0, maxval=1.0),
        reward=lambda t, x, a: jnp.cos(x[0]) - 1 - x[1] ** 2 / 10,
        discount_rate=discount_rate,
        policy=policy,
    )
