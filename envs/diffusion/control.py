"""Scalar control problems under Gaussian policies, with their exact values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import random

from envs.diffusion.core import Diffusion, require, require_positive
from rlx.types import Array, Key

_LOG_2PI = math.log(2 * math.pi)


def gaussian_policy(
    mean: Callable[[Array, Array], Array], variance: Callable[[Array], Array]
) -> Callable[[Array, Array, Key], tuple[Array, Array]]:
    """The policy u ~ N(mean(t, x), variance(t)) of one action, any leading axes.

    Args:
      mean: `(time, state [..., d]) -> [..., 1]`.
      variance: `(time) -> []`.
    """

    def policy(time: Array, state: Array, key: Key) -> tuple[Array, Array]:
        centre = mean(time, state)
        spread = variance(time)
        noise = random.normal(key, centre.shape, centre.dtype)
        action = centre + jnp.sqrt(spread) * noise
        log_prob = -0.5 * (noise[..., 0] ** 2 + jnp.log(spread) + _LOG_2PI)
        return action, log_prob

    return policy


class MeanVariancePolicy(NamedTuple):
    """u ~ N(-φ₁(x - w), e^{φ₂ + φ₃(T-t)}), money held in the risky asset."""

    gain: float
    """φ₁."""
    log_variance: float
    """φ₂."""
    growth: float
    """φ₃, per unit of time."""


def mean_variance_optimum(
    sharpe: float, volatility: float, temperature: float
) -> MeanVariancePolicy:
    """The optimal exploratory policy: φ₁ = ρ/σ, variance λ e^{ρ²(T-t)} / (2σ²)."""
    variance = temperature / (2 * volatility**2)
    return MeanVariancePolicy(sharpe / volatility, math.log(variance), sharpe**2)


class Market(NamedTuple):
    """A riskless and a risky asset, and what the investor wants."""

    mean_return: float = 0.3
    """μ, of the risky asset, per year."""
    interest: float = 0.02
    """r, per year."""
    volatility: float = 0.2
    """σ, per square root of a year."""
    target: float = 1.4
    """z, the expected wealth asked for."""
    multiplier: float = 1.6
    """w, the Lagrange multiplier of the target."""
    temperature: float = 0.1
    """λ, the price of entropy."""
    start: float = 1.0
    """x_0, discounted wealth."""
    horizon: float = 1.0
    """T, years."""

    @property
    def sharpe(self) -> float:
        """ρ = (μ - r) / σ."""
        return (self.mean_return - self.interest) / self.volatility


def mean_variance(
    market: Market | None = None, policy: MeanVariancePolicy | None = None
) -> Diffusion:
    """Mean-variance portfolio choice with entropy, as reward = minus cost.

    Discounted wealth dx = σu(ρ dt + dW); cost (x_T - w)² - (w - z)² + λ ∫ log π dt
    (Wang & Zhou 2020, https://arxiv.org/abs/1904.11392). With k = σ²φ₁² - 2ρσφ₁ a
    Gaussian policy costs e^{kτ}(x-w)² + σ² e^{φ₂} (e^{(φ₃+k)τ} - 1)/(φ₃+k)
    - λ[(ln(2πe) + φ₂)τ/2 + φ₃τ²/4] - (w-z)².

    Args:
      market: numbers of the problem.
      policy: what is evaluated; the optimum when not given.

    Raises:
      ValueError: a number is not finite, or not positive where it must be.
    """
    name = "mean_variance"
    market = market or Market()
    require(name, **market._asdict())
    require_positive(
        name,
        volatility=market.volatility,
        horizon=market.horizon,
        temperature=market.temperature,
    )
    sigma, rho, w = market.volatility, market.sharpe, market.multiplier
    if policy is None:
        policy = mean_variance_optimum(rho, sigma, market.temperature)
    require(name, **policy._asdict())
    gain, log_variance, growth = policy
    k = sigma**2 * gain**2 - 2 * rho * sigma * gain
    bonus = (w - market.target) ** 2

    def value(time: Array, state: Array) -> Array:
        left = market.horizon - time
        rate = growth + k
        # (e^{yτ} - 1)/y has the limit τ, which the optimum reaches (up to rounding).
        factor = jnp.expm1(rate * left) / rate if abs(rate) > 1e-12 else left
        entropy = (1 + _LOG_2PI + log_variance) * left / 2 + growth * left**2 / 4
        cost = jnp.exp(k * left) * (state[0] - w) ** 2 - bonus
        cost = cost + sigma**2 * math.exp(log_variance) * factor
        return market.temperature * entropy - cost

    return Diffusion(
        name=name,
        dimension=1,
        action_dimension=1,
        drift=lambda t, x, u: sigma * rho * u,
        volatility=lambda t, x, u: sigma * u[:, None],
        initial=lambda key: jnp.zeros((1,)) + market.start,  # full's type is weak
        terminal=lambda x: bonus - (x[0] - w) ** 2,
        horizon=market.horizon,
        temperature=market.temperature,
        policy=gaussian_policy(
            lambda t, x: -gain * (x - w),
            lambda t: jnp.exp(log_variance + growth * (market.horizon - t)),
        ),
        value=value,
    )


class ErgodicSolution(NamedTuple):
    """J = θ₀x²/2 + θ₁x up to a constant, and the average reward V."""

    quadratic: float
    """θ₀."""
    linear: float
    """θ₁."""
    average: float
    """V, per unit of time; with γ times the entropy where temperature is not 0."""


def ergodic_value(
    slope: float, offset: float, variance: float, temperature: float = 0.0
) -> ErgodicSolution:
    """Exact value of u ~ N(f₁x + f₂, v) in `ergodic_lq`; needs f₁² < 2."""
    if not slope**2 < 2:
        raise ValueError(f"ergodic_lq: the policy needs slope² < 2, got slope={slope}")
    quadratic = -(1 + slope + slope**2) / (1 - slope**2 / 2)
    linear = quadratic * slope * offset - (offset + 2 * slope * offset + 1 + 2 * slope)
    average = quadratic * (offset**2 + variance) / 2 - (offset**2 + variance)
    average -= 2 * offset
    if temperature:
        average += temperature * (1 + _LOG_2PI + math.log(variance)) / 2
    return ErgodicSolution(quadratic, linear, average)


def ergodic_optimum(temperature: float = 0.1) -> tuple[float, float, float]:
    """(slope, offset, variance) of the best Gaussian policy of `ergodic_lq`.

    From the ergodic HJB equation with J = k₂x²/2 + k₁x: k₂ = (1-√7)/2 and
    π* = N(-(x + 2)/(2-k₂), γ/(2-k₂)).
    """
    curvature = 2 - (1 - math.sqrt(7)) / 2
    return -1 / curvature, -2 / curvature, temperature / curvature


def ergodic_lq(
    slope: float | None = None,
    offset: float | None = None,
    variance: float | None = None,
    temperature: float = 0.1,
) -> Diffusion:
    """DX = -X dt + a dW, r = -(x² + xa + a² + x + 2a), average reward, X_0 = 0.

    The ergodic example of Jia & Zhou, "Policy Gradient and Actor-Critic Learning in
    Continuous Time and Space", JMLR 23 (2022), https://arxiv.org/abs/2111.11232.
    `value` is θ₀x²/2 + θ₁x, the differential value.

    Args:
      slope: f₁ of the policy N(f₁x + f₂, v); the optimum's where not given.
      offset: f₂.
      variance: v.
      temperature: γ.

    Raises:
      ValueError: a number is not finite, or slope² >= 2 (the variance explodes).
    """
    name = "ergodic_lq"
    best = ergodic_optimum(temperature)
    slope, offset, variance = (
        b if x is None else x
        for x, b in zip((slope, offset, variance), best, strict=True)
    )
    require(name, slope=slope, offset=offset, variance=variance)
    require_positive(name, variance=variance)
    solution = ergodic_value(slope, offset, variance, temperature)

    def reward(time: Array, state: Array, action: Array) -> Array:
        x, u = state[0], action[0]
        return -(x**2 + x * u + u**2 + x + 2 * u)

    return Diffusion(
        name=name,
        dimension=1,
        action_dimension=1,
        drift=lambda t, x, u: -x,
        volatility=lambda t, x, u: u[:, None],
        initial=lambda key: jnp.zeros((1,)),
        reward=reward,
        temperature=temperature,
        policy=gaussian_policy(
            lambda t, x: slope * x + offset, lambda t: jnp.asarray(variance)
        ),
        value=lambda t, x: solution.quadratic * x[0] ** 2 / 2 + solution.linear * x[0],
    )
