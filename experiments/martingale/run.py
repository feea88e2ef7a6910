"""Makes the numbers of the page: `python -m experiments.martingale.run [NAME ...]`.

Each study writes `results/NAME.json`; without names all of them run, about a quarter
of an hour on two cores. `python -m experiments.martingale.page` then draws and writes.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import time as clock
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import diffusion as df
from experiments.martingale import (
    control,
    option,
    problems,
    robustness,
    speed,
    stochastic,
    studies,
)
from rlx import system

RESULTS = pathlib.Path(__file__).parent / "results"


def accuracy() -> dict[str, Any]:
    """Bias and spread per estimator and mesh, for every problem with a closed form."""
    linear_names = ("MSTDE", "ML", "CLSTD(0)", "CLSTD(1)")
    plan = {
        "brownian": (problems.brownian(), (10, 40, 160, 320), 60, 4096),
        "linear_quadratic": (problems.ou_exact(), (16, 64, 256), 100, 2048),
        "linear_quadratic_misspecified": (problems.ou(1), (256,), 40, 2048),
        "infinite_horizon": (problems.ou_infinite(), (240, 2400), 20, 512),
        "control_2d": (problems.lq_control(), (25, 200), 20, 2048),
        "mean_variance": (problems.mean_variance(0.1), (50, 200), 40, 8192),
        "mean_variance_published": (problems.mean_variance(), (200,), 20, 16384),
        "option": (problems.option(), (50, 200), 20, 4096),
        "basket_3d": (problems.basket(), (50, 200), 20, 4096),
    }
    result = {}
    for name, (problem, counts, seeds, paths) in plan.items():
        names = tuple(studies.SOLVERS) if name == "brownian" else linear_names
        result[name] = studies.accuracy(problem, counts, seeds, paths, names=names)
    return result


def order() -> list[dict[str, Any]]:
    """Mesh order by regression, on refined Brownian paths."""
    names = ("ML", "CLSTD(0)", "CLSTD(1)")
    halving, coarse = (16, 32, 64, 128, 256), (2, 4, 8, 16)
    plan = (
        (problems.brownian(), halving, 1000, "exact", "left", 1),
        (problems.ou_exact(), halving, 1000, "euler", "left", 1),
        (problems.ou_exact(), halving, 1000, "euler", "trapezoid", 1),
        (problems.ou_exact(), coarse, 4000, "exact", "trapezoid", 2),
    )
    rows = []
    for problem, counts, paths, scheme, quadrature, theory in plan:
        found = studies.mesh_order(
            problem, counts, 100, paths, scheme, quadrature, names
        )
        name = problem.diffusion.name
        rows += [row | {"problem": name, "theory": theory} for row in found]
    return rows


def quadratic_variation() -> dict[str, Any]:
    """Δt times the mean-square TD error at the truth, against half the variation."""
    problem = problems.brownian()
    rows = []
    truth = jnp.array(problem.truth)
    for count in (10, 40, 160, 640):
        time = studies.mesh_of(problem, count)
        paths = df.simulate(problem.diffusion, jax.random.key(11), time, 20000, "exact")
        system = studies.linearise(problem.diffusion, problem.family, paths)
        increment = system.at_zero - system.slope @ truth
        measured = 0.5 * jnp.mean(jnp.sum(increment**2, 0))
        slope = 2 * paths.state[:-1, :, 0] * (1 - time[:-1, None])
        variation = 0.5 * jnp.mean(jnp.sum(slope**2, 0)) / count
        rows.append(
            {"steps": count, "loss": float(measured), "variation": float(variation)}
        )
    # ½ E ∫ (2 x (1-t))² dt with E x² = x₀² + t, x₀ = ½.
    exact = 2 * (0.25 / 3 + 1 / 12)
    limit = {"theta1": 0.0, "theta2": 0.75 * 0.25 + 0.25}
    return {"rows": rows, "exact": exact, "mstde_limit": limit}


def volatility() -> list[dict[str, Any]]:
    """Learning the volatility, and pricing when the assumed one is wrong."""
    meshes = option.volatility_table((0.3,), (25, 50, 100, 200), 20, 4096)
    misjudged = option.volatility_table((0.1, 0.2, 0.4, 0.5), (200,), 8, 4096)
    return meshes + misjudged


def approximation() -> list[dict[str, Any]]:
    """Every algorithm of the method, by stochastic approximation."""
    return stochastic.approximation_table(
        problems.brownian(), num_steps=160, num_paths=16, iterations=1000, seeds=10
    )


STUDIES: dict[str, Callable[[], Any]] = {
    "accuracy": accuracy,
    "order": order,
    "quadratic_variation": quadratic_variation,
    "volatility": volatility,
    "approximation": approximation,
    "ergodic": lambda: stochastic.ergodic_online(8_000_000, 16),
    "pendulum": lambda: robustness.step_size_table(
        (0.1, 0.05, 0.02, 0.01, 0.005), 20, 512
    ),
    "neural": lambda: stochastic.neural(5, 1500, 32),
    "control": lambda: control.control_table(6000, 128, 8),
    "speed": lambda: speed.speed_table(1000, 1000, 100, 50),
}


def plain(value: Any) -> Any:
    """NumPy and JAX numbers as Python's, so that JSON can hold them."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic | jax.Array):
        value = np.asarray(value).item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def main() -> None:
    """Runs the named studies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(STUDIES))
    names = parser.parse_args().names or list(STUDIES)
    unknown = set(names) - set(STUDIES)
    if unknown:
        parser.error(f"unknown study {sorted(unknown)}: choose among {list(STUDIES)}")
    jax.config.update("jax_enable_x64", True)
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        begin, cpu = clock.perf_counter(), clock.process_time()
        found = plain(STUDIES[name]())
        record = {
            "study": name,
            "wall_seconds": clock.perf_counter() - begin,
            "cpu_seconds": clock.process_time() - cpu,
            "command": f"python -m experiments.martingale.run {name}",
            "environment": system.describe(),
            "result": found,
        }
        text = json.dumps(record, indent=1)
        (RESULTS / f"{name}.json").write_text(text + "\n")
        print(f"{name}: {record['wall_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
