"""Bias, variance and mesh order of every estimator, over many seeds at once."""

from __future__ import annotations

import functools
import time as clock
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import diffusion as df
from experiments.martingale.problems import Problem
from experiments.martingale.solvers import (
    SOLVERS,
    Linear,
    linearise,
    relative_error,
)
from rlx.types import Array, Key

Row = dict[str, Any]


def mesh_of(problem: Problem, num_steps: int) -> Array:
    """The uniform mesh of `num_steps` over the problem's duration."""
    return df.mesh(problem.duration, problem.duration / num_steps)


def start_value(problem: Problem, params: Array) -> Array:
    """J^θ(0, x_0)."""
    now, state = jnp.zeros(()), jnp.asarray(problem.start)
    family = problem.family
    return family.offset(now, state) + family.features(now, state) @ params


def true_start_value(problem: Problem) -> float:
    """J(0, x_0) by the closed form."""
    return float(problem.diffusion.value(jnp.zeros(()), jnp.asarray(problem.start)))


def _solve_all(problem: Problem, paths: df.Paths, names: Sequence[str]):
    system: Linear = linearise(problem.diffusion, problem.family, paths)
    params = jnp.stack([SOLVERS[name](system) for name in names])
    errors = [
        relative_error(problem.diffusion, problem.family, theta, paths)
        for theta in params
    ]
    return params, jnp.stack(errors)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _seeds(problem, num_steps, num_paths, scheme, quadrature, names, keys):
    def one(key: Key):
        paths = df.simulate(
            problem.diffusion,
            key,
            mesh_of(problem, num_steps),
            num_paths,
            scheme,
            quadrature,
        )
        return _solve_all(problem, paths, names)

    return jax.lax.map(one, keys)


def accuracy(
    problem: Problem,
    counts: Sequence[int],
    seeds: int,
    num_paths: int,
    scheme: str = "euler",
    names: Sequence[str] = tuple(SOLVERS),
) -> list[Row]:
    """One row per mesh and estimator: bias and spread over seeds, errors of the value.

    Args:
      problem: what is evaluated.
      counts: numbers of steps.
      seeds: independent repetitions.
      num_paths: paths of each.
      scheme: of the simulation.
      names: keys of SOLVERS.
    """
    rows = []
    true = true_start_value(problem)
    keys = jax.random.split(jax.random.key(0), seeds)
    for count in counts:
        begin = clock.perf_counter()
        params, errors = jax.block_until_ready(
            _seeds(problem, count, num_paths, scheme, "left", tuple(names), keys)
        )
        seconds = clock.perf_counter() - begin
        values = jax.vmap(jax.vmap(lambda x: start_value(problem, x)))(params)
        for i, name in enumerate(names):
            start = np.asarray(values[:, i])
            theta = np.asarray(params[:, i])
            rows.append(
                {
                    "estimator": name,
                    "steps": count,
                    "params": theta.mean(0).tolist(),
                    "params_spread": theta.std(0, ddof=1).tolist(),
                    "value": start.mean(),
                    "true_value": true,
                    "value_standard_error": start.std(ddof=1) / np.sqrt(seeds),
                    "value_spread": start.std(ddof=1),
                    "relative_error": abs(start.mean() - true) / abs(true),
                    "path_error": float(np.mean(errors[:, i])),
                    "seconds_all_estimators": seconds,
                    "seeds": seeds,
                    "paths": num_paths,
                }
            )
    return rows


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _refined(problem, counts, num_paths, scheme, quadrature, names, keys):
    finest = counts[-1]
    spread = jnp.sqrt(problem.duration / finest)

    def one(key: Key) -> Array:
        shape = (finest, num_paths, problem.diffusion.noise_dimension)
        noise = spread * jax.random.normal(jax.random.fold_in(key, 1), shape)
        values = []
        for count in counts:
            paths = df.simulate(
                problem.diffusion,
                key,
                mesh_of(problem, count),
                num_paths,
                scheme,
                quadrature,
                df.coarsen(noise, finest // count),
            )
            system = linearise(problem.diffusion, problem.family, paths)
            params = jnp.stack([SOLVERS[name](system) for name in names])
            values.append(jax.vmap(lambda x: start_value(problem, x))(params))
        return jnp.stack(values)

    return jax.lax.map(one, keys)


def mesh_order(
    problem: Problem,
    counts: Sequence[int],
    seeds: int,
    num_paths: int,
    scheme: str,
    quadrature: str,
    names: Sequence[str],
) -> list[Row]:
    """Order p of the mesh bias, by regression, with a 95 % bootstrap interval.

    All meshes of a seed see one Brownian path. Successive meshes halve the step, so
    differences of their values at (0, x_0) shrink like Δt^p, whatever the limit is.
    """
    keys = jax.random.split(jax.random.key(1), seeds)
    values = np.asarray(
        _refined(
            problem, tuple(counts), num_paths, scheme, quadrature, tuple(names), keys
        )
    )  # [seed, mesh, estimator]
    steps = np.log(problem.duration / np.asarray(counts[:-1]))
    differences = np.diff(values, axis=1)
    generator = np.random.default_rng(0)
    rows = []
    for i, name in enumerate(names):
        change = differences[:, :, i]

        def slope(sample: np.ndarray) -> float:
            return np.polyfit(steps, np.log(np.abs(sample.mean(0))), 1)[0]

        drawn = [
            slope(change[generator.integers(0, seeds, seeds)]) for _ in range(1000)
        ]
        low, high = np.percentile(drawn, [2.5, 97.5])
        rows.append(
            {
                "estimator": name,
                "scheme": scheme,
                "quadrature": quadrature,
                "order": slope(change),
                "low": low,
                "high": high,
                "steps": list(counts),
                "differences": np.abs(change.mean(0)).tolist(),
                "seeds": seeds,
                "paths": num_paths,
            }
        )
    return rows


def convergent(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The finest mesh's rows of all estimators that the theory accepts."""
    finest = max(row["steps"] for row in rows)
    return [r for r in rows if r["steps"] == finest and r["estimator"] != "MSTDE"]
