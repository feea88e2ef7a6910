"""One pendulum seen at five step sizes: discounting by time against by step."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import diffusion as df
from experiments.martingale.solvers import Family, clstd, linearise, no_offset
from rlx.types import Array, Key

DURATION = 6.0
START = (0.5, 0.0)
STEP_DISCOUNT = 0.95
"""γ of the naive method, the same at every step size."""


def features(time: Array, state: Array) -> Array:
    """Even monomials of (θ, ω) up to degree 4: the value is even."""
    del time
    angle, speed = state
    powers = [(0, 0), (2, 0), (1, 1), (0, 2), (4, 0), (3, 1), (2, 2), (1, 3), (0, 4)]
    return jnp.stack([angle**i * speed**j for i, j in powers])


FINE = 0.005
"""Step of the simulation, the same for all: only the learner's mesh changes."""


def observed(paths: df.Paths, factor: int, discount_rate: float) -> df.Paths:
    """The same paths seen every `factor` steps, rewards accumulated in between."""
    num_steps = paths.reward.shape[0] // factor
    grouped = paths.reward.reshape(num_steps, factor, -1)
    weight = jnp.exp(-discount_rate * FINE * jnp.arange(factor)) / factor
    return paths.replace(
        time=paths.time[::factor],
        state=paths.state[::factor],
        action=paths.action[::factor],
        log_prob=paths.log_prob[::factor],
        reward=jnp.einsum("nfm,f->nm", grouped, weight),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _values(step_size: float, num_paths: int, keys: Array) -> Array:
    problem = df.pendulum()
    factor = round(step_size / FINE)
    time = df.mesh(DURATION, FINE)
    naive = problem._replace(discount_rate=-math.log(STEP_DISCOUNT) / step_size)
    at = features(jnp.zeros(()), jnp.asarray(START))

    def one(key: Key) -> Array:
        paths = df.simulate(problem, key, time, num_paths)
        family = Family(features, no_offset)
        # Power -1: unweighted steps, as discrete TD has them.
        found = [
            at
            @ clstd(
                linearise(p, family, observed(paths, factor, problem.discount_rate)),
                power=-1.0,
            )
            for p in (problem, naive)
        ]
        # The naive method takes the mean rate itself as the reward of a step.
        return jnp.stack([found[0], found[1] / step_size])

    return jax.lax.map(one, keys)


def monte_carlo(num_paths: int, step_size: float) -> tuple[float, float]:
    """The value at START and its standard error, by simulation."""
    problem = df.pendulum()._replace(initial=lambda key: jnp.asarray(START))
    time = df.mesh(12.0, step_size)
    paths = df.simulate(problem, jax.random.key(8), time, num_paths)
    weight = jnp.exp(-problem.discount_rate * time[:-1])[:, None]
    total = np.asarray(jnp.sum(weight * paths.reward, 0)) * step_size
    return float(total.mean()), float(total.std() / math.sqrt(num_paths))


def step_size_table(
    step_sizes: Sequence[float], seeds: int, num_paths: int
) -> dict[str, Any]:
    """Values at START by CLSTD(0) with β fixed and by LSTD with γ fixed per step."""
    keys = jax.random.split(jax.random.key(7), seeds)
    rows = []
    for step_size in step_sizes:
        found = np.asarray(_values(step_size, num_paths, keys))
        rows.append(
            {
                "step_size": step_size,
                "ctd": found[:, 0].mean(),
                "ctd_spread": found[:, 0].std(ddof=1),
                "naive": found[:, 1].mean(),
                "naive_spread": found[:, 1].std(ddof=1),
            }
        )
    mean, error = monte_carlo(20000, min(step_sizes))
    ctd = np.array([row["ctd"] for row in rows])
    naive = np.array([row["naive"] for row in rows])
    return {
        "rows": rows,
        "monte_carlo": mean,
        "monte_carlo_error": error,
        "ctd_variation": float(np.ptp(ctd) / abs(ctd.mean())),
        "naive_ratio": float(naive.min() / naive.max()),
        "step_discount": STEP_DISCOUNT,
        "seeds": seeds,
        "paths": num_paths,
    }
