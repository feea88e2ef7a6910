"""Seeds per second: one compiled program against a NumPy loop, in one run."""

from __future__ import annotations

import functools
import time as clock
from typing import Any

import jax
import numpy as np

from envs import diffusion as df
from experiments.martingale import problems
from experiments.martingale.solvers import clstd, linearise
from experiments.martingale.studies import mesh_of
from rlx.types import Array, Key


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(num_steps: int, num_paths: int, keys: Array) -> Array:
    problem = problems.ou_exact()

    def one(key: Key) -> Array:
        paths = df.simulate(
            problem.diffusion, key, mesh_of(problem, num_steps), num_paths
        )
        return clstd(linearise(problem.diffusion, problem.family, paths))

    return jax.lax.map(one, keys)


def numpy_seed(seed: int, num_steps: int, num_paths: int, solve: bool = True) -> Any:
    """The same estimate in plain NumPy: a loop over time, vectorised over paths."""
    generator = np.random.default_rng(seed)
    beta, kappa, sigma, q, g = 0.1, 1.0, 0.5, 1.0, 0.5
    a, dt = 2 * kappa + beta, 1.0 / num_steps
    limit = q / a

    def basis(t: float, x: np.ndarray) -> np.ndarray:
        left = 1.0 - t
        p = limit + (g - limit) * np.exp(-a * left)
        c = limit * (1 - np.exp(-beta * left)) / beta
        c += (g - limit) * np.exp(-beta * left) * (1 - np.exp(-2 * left)) / 2
        constant = np.full_like(x, -(sigma**2) * c)
        return np.stack([-(p - g) * x**2, constant], -1)

    x = 1.0 + sigma / np.sqrt(2 * kappa) * generator.standard_normal(num_paths)
    matrix, vector = np.zeros((2, 2)), np.zeros(2)
    for i in range(num_steps):
        noise = np.sqrt(dt) * generator.standard_normal(num_paths)
        following = x - kappa * x * dt + sigma * noise
        discount, later = np.exp(-beta * i * dt), np.exp(-beta * (i + 1) * dt)
        now, then = basis(i * dt, x), basis((i + 1) * dt, following)
        if i == num_steps - 1:
            then = np.zeros_like(then)
        slope = discount * now - later * then
        moment = discount * (-q * x**2 * dt) + discount * g * x**2
        moment -= later * g * following**2
        matrix += now.T @ slope
        vector += now.T @ moment
        x = following
    return np.linalg.solve(matrix, vector) if solve else (matrix, vector)


def python_seed(seed: int, num_steps: int, num_paths: int) -> np.ndarray:
    """The same once more with a Python loop over paths and steps."""
    sums = [numpy_seed(seed + i, num_steps, 1, solve=False) for i in range(num_paths)]
    matrix, vector = (sum(x) for x in zip(*sums, strict=True))
    return np.linalg.solve(matrix, vector)


def speed_table(
    seeds: int, num_paths: int, num_steps: int, loops: int
) -> dict[str, Any]:
    """Wall time of `seeds` estimates; NumPy's from `loops` of them, in the same run."""
    keys = jax.random.split(jax.random.key(9), seeds)
    begin = clock.perf_counter()
    found = np.asarray(_compiled(num_steps, num_paths, keys))
    first = clock.perf_counter() - begin
    begin = clock.perf_counter()
    np.asarray(_compiled(num_steps, num_paths, keys))
    second = clock.perf_counter() - begin
    begin = clock.perf_counter()
    looped = np.stack([numpy_seed(i, num_steps, num_paths) for i in range(loops)])
    numpy_seconds = clock.perf_counter() - begin
    begin = clock.perf_counter()
    python_seed(0, num_steps, 100)
    python_seconds = (clock.perf_counter() - begin) * num_paths / 100
    with jax.enable_x64(False):
        keys = jax.random.split(jax.random.key(9), seeds)
        np.asarray(_compiled(num_steps, num_paths, keys))
        begin = clock.perf_counter()
        single = np.asarray(_compiled(num_steps, num_paths, keys))
        single_seconds = clock.perf_counter() - begin
    return {
        "seeds": seeds,
        "paths": num_paths,
        "steps": num_steps,
        "numpy_seeds": loops,
        "seconds_with_compilation": first,
        "seconds": second,
        "seeds_per_second": seeds / second,
        "path_steps_per_second": seeds * num_paths * num_steps / second,
        "numpy_seeds_per_second": loops / numpy_seconds,
        "ratio": (seeds / second) / (loops / numpy_seconds),
        "seconds_float32": single_seconds,
        "float32_params": single.mean(0).tolist(),
        "ratio_float32": (seeds / single_seconds) / (loops / numpy_seconds),
        "python_seeds_per_second": 1.0 / python_seconds,
        "ratio_python": (seeds / second) * python_seconds,
        "params": found.mean(0).tolist(),
        "params_error": (found.std(0, ddof=1) / np.sqrt(seeds)).tolist(),
        "numpy_params": looped.mean(0).tolist(),
        "numpy_params_error": (looped.std(0, ddof=1) / np.sqrt(loops)).tolist(),
    }
