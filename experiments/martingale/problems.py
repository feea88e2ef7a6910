"""The problems of the page: a diffusion, a value family, its exact parameters."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from envs import diffusion as df
from experiments.martingale.solvers import Family, no_offset
from rlx.types import Array


class Problem(NamedTuple):
    """What is evaluated, with which family, and how long a simulation lasts."""

    diffusion: df.Diffusion
    family: Family
    duration: float
    truth: tuple[float, ...] | None = None
    """θ*, where the family holds the value."""
    start: tuple[float, ...] = (1.0,)
    """x at which values are compared, at time 0."""


def brownian() -> Problem:
    """J = θ₁ x²(T-t) + θ₂ (T-t)², truth (1, ½)."""

    def features(time: Array, state: Array) -> Array:
        left = 1.0 - time
        return jnp.stack([state[0] ** 2 * left, left**2])

    family = Family(features, no_offset)
    return Problem(df.brownian_quadratic(), family, 1.0, (1.0, 0.5), (0.5,))


def _polynomial(weights: int, basis, horizon: float):
    """Products of `basis(x)` with (T-t), (T-t)², ...: all zero at the horizon."""

    def features(time: Array, state: Array) -> Array:
        left = horizon - time
        powers = jnp.stack([left ** (i + 1) for i in range(weights)])
        return jnp.outer(basis(state), powers).reshape(-1)

    return features


def ou(weights: int = 3) -> Problem:
    """Linear-quadratic, finite horizon; {x², 1} times (T-t)^1..weights."""
    diffusion = df.ornstein_uhlenbeck()

    def basis(state: Array) -> Array:
        return jnp.stack([state[0] ** 2, jnp.ones((), state.dtype)])

    family = Family(
        _polynomial(weights, basis, 1.0), lambda t, x: diffusion.terminal(x)
    )
    return Problem(diffusion, family, 1.0)


def ou_exact() -> Problem:
    """The same with the value's own two functions of time as basis: truth (1, 1)."""
    diffusion = df.ornstein_uhlenbeck()

    def features(time: Array, state: Array) -> Array:
        constant = diffusion.value(time, jnp.zeros_like(state))
        square = diffusion.value(time, state) - constant
        return jnp.stack([square - diffusion.terminal(state), constant])

    family = Family(features, lambda t, x: diffusion.terminal(x))
    return Problem(diffusion, family, 1.0, (1.0, 1.0))


def ou_infinite() -> Problem:
    """Discounted, infinite horizon: J = -(θ₁x² + θ₂), cut where e^{-βt} < 1e-5."""
    diffusion = df.ornstein_uhlenbeck(horizon=math.inf, discount_rate=1.0)

    def features(time: Array, state: Array) -> Array:
        del time
        return -jnp.stack([state[0] ** 2, jnp.ones((), state.dtype)])

    square = 1.0 / 3.0
    truth = (square, 0.25 * square)
    return Problem(diffusion, Family(features, no_offset), 12.0, truth)


def mean_variance(mean_return: float = 0.3) -> Problem:
    """Portfolio with entropy, optimal policy; the value's own two functions as basis.

    The truth is (1, 1). A mean return of 0.3 is the published market, of Sharpe ratio
    1.4, whose optimal wealth has very heavy tails; 0.1 is one of Sharpe ratio 0.4.
    """
    market = df.Market(mean_return=mean_return)
    diffusion = df.mean_variance(market)
    centre = jnp.full((1,), market.multiplier)

    def features(time: Array, state: Array) -> Array:
        constant = diffusion.value(time, centre)
        square = diffusion.value(time, state) - constant
        bonus = diffusion.terminal(centre)
        return jnp.stack([square - diffusion.terminal(state) + bonus, constant - bonus])

    family = Family(features, lambda t, x: diffusion.terminal(x))
    return Problem(diffusion, family, 1.0, (1.0, 1.0))


def lq_control(dimension: int = 2) -> Problem:
    """Controlled LQ under its optimal exploratory policy; quadratics in x times T-t."""
    d = dimension
    problem = df.LinearQuadratic(
        dynamics=-0.2 * np.eye(d) + 0.3 * np.eye(d, k=1),
        control=np.eye(d)[:, -1:],
        noise=0.4 * np.eye(d),
        state_cost=np.eye(d),
        action_cost=np.eye(1),
        terminal_cost=0.5 * np.eye(d),
        discount_rate=0.1,
        temperature=0.1,
    )
    diffusion = df.linear_quadratic(problem)
    rows, columns = np.triu_indices(d)

    def basis(state: Array) -> Array:
        ones = jnp.ones((1,), state.dtype)
        return jnp.concatenate([state[rows] * state[columns], ones])

    family = Family(_polynomial(3, basis, 1.0), lambda t, x: diffusion.terminal(x))
    return Problem(diffusion, family, 1.0, start=(1.0,) * d)


def option(assumed_volatility: float = 0.25, true_volatility: float = 0.3) -> Problem:
    """A call; the family is a wrong Black-Scholes price plus corrections near it."""
    diffusion = df.call_option(volatility=true_volatility)

    def offset(time: Array, state: Array) -> Array:
        return df.black_scholes(state[0], 1.0 - time, 1.0, 0.01, assumed_volatility)

    def features(time: Array, state: Array) -> Array:
        # Vega times a polynomial: S φ(d₁) √τ, the direction in which volatility acts.
        left = jnp.maximum(1.0 - time, 1e-12)
        width = assumed_volatility * jnp.sqrt(left)
        money = jnp.log(state[0])
        d1 = (money + (0.01 + assumed_volatility**2 / 2) * left) / width
        vega = state[0] * jnp.exp(-(d1**2) / 2) * jnp.sqrt(left)
        return vega * jnp.stack([jnp.ones(()), money, money**2, left, money**2 * left])

    return Problem(diffusion, Family(features, offset), 1.0)


def basket() -> Problem:
    """A call on the geometric mean of three stocks, priced from a wrong volatility."""
    diffusion = df.geometric_basket()
    plain = option(0.2).family

    def geometric(state: Array) -> Array:
        return jnp.exp(jnp.mean(jnp.log(state)))[None]

    def features(time: Array, state: Array) -> Array:
        # A mean of logarithms drifts less than a stock: the direction S N(d₁) τ.
        mean, left = geometric(state), jnp.maximum(1.0 - time, 1e-12)
        d1 = (jnp.log(mean[0]) + 0.03 * left) / (0.2 * jnp.sqrt(left))
        drift = mean * norm.cdf(d1) * left
        return jnp.concatenate([plain.features(time, mean), drift])

    family = Family(features, lambda t, x: plain.offset(t, geometric(x)))
    return Problem(diffusion, family, 1.0, start=(1.0, 1.0, 1.0))
