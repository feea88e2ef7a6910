"""Scalar diffusions whose value functions are known in closed form.

Every maker returns a `Diffusion` with its `value`; the formulas satisfy
J_t + LJ + r - βJ = 0 and J(T, ·) = h, which the tests check by differentiation.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import random
from jax.scipy.stats import norm

from envs.diffusion.core import Diffusion, require, require_positive
from rlx.types import Array, Key


def _start_at(start: float):
    def initial(key: Key) -> Array:
        del key
        return jnp.full((1,), start)

    return initial


def _decayed(rate: float, duration: Array) -> Array:
    """∫_0^τ e^{-rate s} ds, continuous at rate = 0."""
    return -jnp.expm1(-rate * duration) / rate if rate else duration


def brownian_quadratic(start: float = 0.5, horizon: float = 1.0) -> Diffusion:
    """DX = dW with r = x², h = 0, β = 0: J = x²(T-t) + (T-t)²/2.

    Raises:
      ValueError: a parameter is not finite, or the horizon is not positive.
    """
    name = "brownian_quadratic"
    require(name, start=start, horizon=horizon)
    require_positive(name, horizon=horizon)

    def value(time: Array, state: Array) -> Array:
        left = horizon - time
        return state[0] ** 2 * left + left**2 / 2

    return Diffusion(
        name=name,
        dimension=1,
        drift=lambda t, x, a: jnp.zeros_like(x),
        volatility=lambda t, x, a: jnp.ones((1, 1), x.dtype),
        initial=_start_at(start),
        reward=lambda t, x, a: x[0] ** 2,
        horizon=horizon,
        exact=lambda t, x, a, dt, dw: x + dw,
        value=value,
    )


def ornstein_uhlenbeck(
    reversion: float = 1.0,
    noise: float = 0.5,
    running_cost: float = 1.0,
    terminal_cost: float = 0.5,
    discount_rate: float = 0.1,
    horizon: float = 1.0,
    start: float = 1.0,
) -> Diffusion:
    """DX = -κX dt + σ dW with r = -q x², h = -g x²: J = -(p(t) x² + c(t)).

    With a = 2κ + β and τ = T - t: p = q/a + (g - q/a) e^{-aτ} and c = σ² ∫ e^{-β(τ-s)}
    p(s) ds. An infinite horizon (needs β > 0) has p = q/a and c = σ² p / β. The start
    is Gaussian around `start` with the stationary variance, so that x² and 1 are told
    apart from the first step on.

    Args:
      reversion: κ, per unit of time; negative is an unstable process.
      noise: σ.
      running_cost: q.
      terminal_cost: g.
      discount_rate: β.
      horizon: T; may be infinite.
      start: mean of X_0.

    Raises:
      ValueError: a parameter is not finite, or the value would be infinite.
    """
    name = "ornstein_uhlenbeck"
    require(
        name,
        reversion=reversion,
        noise=noise,
        running_cost=running_cost,
        terminal_cost=terminal_cost,
        discount_rate=discount_rate,
        start=start,
    )
    require_positive(name, horizon=horizon)
    a = 2 * reversion + discount_rate
    if math.isinf(horizon) and (discount_rate <= 0 or a <= 0):
        raise ValueError(
            f"{name}: an infinite horizon needs discount_rate > 0 and "
            f"2 * reversion + discount_rate > 0, got {discount_rate} and {a}"
        )
    if not a:
        raise ValueError(f"{name}: 2 * reversion + discount_rate must not be 0")
    spread = noise / math.sqrt(2 * reversion) if reversion > 0 else noise

    def initial(key: Key) -> Array:
        return start + spread * random.normal(key, (1,))

    def value(time: Array, state: Array) -> Array:
        limit = running_cost / a
        if math.isinf(horizon):
            return -limit * (state[0] ** 2 + noise**2 / discount_rate)
        left = jnp.asarray(horizon - time)
        growth = terminal_cost - limit
        p = limit + growth * jnp.exp(-a * left)
        c = limit * _decayed(discount_rate, left)
        c = c + growth * jnp.exp(-discount_rate * left) * _decayed(2 * reversion, left)
        return -(p * state[0] ** 2 + noise**2 * c)

    def exact(time, state, action, duration, dw):
        scale = jnp.sqrt(_decayed(2 * reversion, duration) / duration)
        return state * jnp.exp(-reversion * duration) + noise * scale * dw

    return Diffusion(
        name=name,
        dimension=1,
        drift=lambda t, x, u: -reversion * x,
        volatility=lambda t, x, u: jnp.full((1, 1), noise, x.dtype),
        initial=initial,
        reward=lambda t, x, u: -running_cost * x[0] ** 2,
        terminal=lambda x: -terminal_cost * x[0] ** 2,
        horizon=horizon,
        discount_rate=discount_rate,
        exact=exact,
        value=value,
    )


def black_scholes(
    spot: Array, left: Array, strike: float, rate: float, volatility: float | Array
) -> Array:
    """Price of a European call, S N(d₁) - K e^{-rτ} N(d₂); the payoff at τ = 0.

    Args:
      spot: S, any shape.
      left: τ, time to maturity, same shape or a scalar.
      strike: K.
      rate: r, per unit of time.
      volatility: may be traced and differentiated.
    """
    # The floor keeps both value and gradient finite where the payoff is selected.
    safe = jnp.maximum(left, 1e-12)
    width = volatility * jnp.sqrt(safe)
    d1 = (jnp.log(spot / strike) + (rate + volatility**2 / 2) * safe) / width
    price = spot * norm.cdf(d1) - strike * jnp.exp(-rate * safe) * norm.cdf(d1 - width)
    return jnp.where(left > 1e-12, price, jnp.maximum(spot - strike, 0.0))


def call_option(
    strike: float = 1.0,
    rate: float = 0.01,
    volatility: float = 0.3,
    horizon: float = 1.0,
    start: float = 1.0,
) -> Diffusion:
    """A European call on geometric Brownian motion, dS = rS dt + σS dW, β = r.

    The value is the Black-Scholes price. The exact step is pathwise exact.

    Raises:
      ValueError: a parameter is not finite, or not positive where it must be.
    """
    name = "call_option"
    require(name, strike=strike, rate=rate, volatility=volatility, start=start)
    require(name, horizon=horizon)
    require_positive(
        name, strike=strike, volatility=volatility, start=start, horizon=horizon
    )

    def exact(time, state, action, duration, dw):
        growth = (rate - volatility**2 / 2) * duration
        return state * jnp.exp(growth + volatility * dw)

    return Diffusion(
        name=name,
        dimension=1,
        drift=lambda t, x, a: rate * x,
        volatility=lambda t, x, a: volatility * x[:, None],
        initial=_start_at(start),
        terminal=lambda x: jnp.maximum(x[0] - strike, 0.0),
        horizon=horizon,
        discount_rate=rate,
        exact=exact,
        value=lambda t, x: black_scholes(x[0], horizon - t, strike, rate, volatility),
    )
