"""Option pricing with one unknown, the volatility of the Black-Scholes family."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import diffusion as df
from rlx.ops import martingale
from rlx.types import Array, Key

STARTS = {"ML": (0.25, 0.35), "CTD(0)": (0.25, 0.35), "MSTDE": (0.5, 0.6)}


def root(function, first: Array, second: Array, iterations: int = 6) -> Array:
    """A root by the secant method; stays within [0.02, 2]."""

    def body(state, _):
        x0, f0, x1 = state
        f1 = function(x1)
        slope = (f1 - f0) / jnp.where(x1 == x0, 1.0, x1 - x0)
        step = jnp.where(slope == 0, 0.0, f1 / jnp.where(slope == 0, 1.0, slope))
        return (x1, f1, jnp.clip(x1 - step, 0.02, 2.0)), None

    start = (jnp.asarray(first), function(jnp.asarray(first)), jnp.asarray(second))
    return jax.lax.scan(body, start, None, length=iterations)[0][2]


def conditions(paths: df.Paths, problem: df.Diffusion):
    """The functions of v whose roots are the estimates."""
    batch = df.transitions(problem, paths)
    last = jnp.zeros(batch.reward.shape, bool).at[-1].set(True)
    duration = batch.extras["duration"]
    steps = martingale.Steps(batch.reward, batch.discount, duration, last)
    beta = problem.discount_rate
    left = (problem.horizon - paths.time[:-1])[:, None]
    spot = paths.state[:-1, :, 0]
    left = jnp.broadcast_to(left, spot.shape)

    def value(v: Array) -> Array:
        return df.black_scholes(spot, left, 1.0, beta, v)

    def increments(v: Array) -> Array:
        now = value(v)
        later = jnp.concatenate([now[1:], jnp.zeros_like(now[:1])])
        return martingale.increments(now, later, steps, beta)

    def ml(v: Array) -> Array:
        residual = martingale.reverse_sum(increments(v), steps.cut)
        return jnp.sum(martingale.martingale_loss(residual, duration))

    def mean_square(v: Array) -> Array:
        return jnp.sum(martingale.mean_square_td_loss(increments(v), duration))

    def orthogonality(v: Array) -> Array:
        gradient = jax.jvp(value, (v,), (jnp.ones(()),))[1]
        return jnp.sum(gradient * increments(v))

    return {
        "ML": jax.grad(ml),
        "CTD(0)": orthogonality,
        "MSTDE": jax.grad(mean_square),
    }


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _estimates(volatility: float, num_steps: int, num_paths: int, keys: Array):
    problem = df.call_option(volatility=volatility)
    time = df.mesh(1.0, 1.0 / num_steps)

    def one(key: Key) -> Array:
        paths = df.simulate(problem, key, time, num_paths, "exact")
        functions = conditions(paths, problem)
        scale = volatility / 0.3
        return jnp.stack(
            [root(functions[k], a * scale, b * scale) for k, (a, b) in STARTS.items()]
        )

    return jax.lax.map(one, keys)


def price(volatility: float | np.ndarray) -> Any:
    """The Black-Scholes price at the money, one year."""
    return np.asarray(
        df.black_scholes(jnp.ones(()), jnp.ones(()), 1.0, 0.01, jnp.asarray(volatility))
    )


def volatility_table(
    volatilities: Sequence[float],
    counts: Sequence[int],
    seeds: int,
    num_paths: int,
    assumed: float = 0.3,
) -> list[dict[str, Any]]:
    """Volatility and price learned from paths, against a price from an assumed one."""
    rows = []
    keys = jax.random.split(jax.random.key(2), seeds)
    for volatility in volatilities:
        for count in counts:
            found = np.asarray(_estimates(volatility, count, num_paths, keys))
            for i, name in enumerate(STARTS):
                prices = price(found[:, i])
                true = float(price(volatility))
                rows.append(
                    {
                        "estimator": name,
                        "true_volatility": volatility,
                        "steps": count,
                        "volatility": found[:, i].mean(),
                        "volatility_spread": found[:, i].std(ddof=1),
                        "price": prices.mean(),
                        "true_price": true,
                        "relative_error": abs(prices.mean() - true) / true,
                        "plug_in_price": float(price(assumed)),
                        "plug_in_error": abs(float(price(assumed)) - true) / true,
                        "assumed_volatility": assumed,
                        "seeds": seeds,
                        "paths": num_paths,
                    }
                )
    return rows
