"""A-PARL against what drops half of the gradient, where every number is known.

    python -m experiments.parl.exact

Writes `results/exact.json` and `results/exact.png`: a minute or two on one core. The
runs of one arm are vmapped over seeds. With `--plot` only the figure is drawn again.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parl import learning, worlds
from experiments.parl import linear_quadratic as lq
from experiments.records import describe, origin
from rlx.ops import bilevel

RESULTS = Path(__file__).parent / "results"
QUICK = {"xla_backend_optimization_level": 0}
"""For what runs once: compiles in a quarter of the time."""
ARMS = ("full", "truncated", "buffer")
EXACT_STEPS = {"garnet": 1000, "lure": 300, "linear_quadratic": 1000}
BUFFER_STEPS = 50
"""Of exact refits: each is a whole fit."""
RATES = {"garnet": 0.2, "lure": 1.0, "linear_quadratic": 0.02}
SAMPLED_PLAN = {"garnet": (0.2, 10, 100), "lure": (1.0, 10, 100)}
"""Step size, pairs per step, steps."""
SPREAD = {"garnet": 1.0, "lure": 2.0, "linear_quadratic": 0.5}
"""Standard deviation of the ν that the seeds start from."""


def problem(name: str) -> tuple:
    """Upper and lower objective, best policy, true return, number of parameters."""
    if name == "linear_quadratic":
        return lq.upper, lq.lower, lq.best_policy, lq.true_return, 2
    world = worlds.TABULAR[name]()
    known = worlds.segments(world)
    return (
        functools.partial(worlds.likelihood, world, known),
        functools.partial(worlds.lower, world),
        functools.partial(worlds.best_policy, world),
        functools.partial(worlds.true_return, world, known),
        world.features.shape[-1],
    )


def solvers(name: str) -> dict[str, float]:
    """Relative error of each solver's hypergradient against central differences."""
    upper, lower, best, _, count = problem(name)
    nu = jnp.linspace(0.9, -0.4, count)
    policy = jax.jit(best)(nu)
    curvature = jax.jit(jax.hessian(lower, 1), compiler_options=QUICK)(nu, policy)
    largest = np.linalg.eigvalsh(curvature.reshape((policy.size,) * 2)).max()

    @functools.partial(jax.jit, compiler_options=QUICK)
    def value(nu):
        return upper(nu, best(nu))

    size = 1e-5
    expected = [
        (value(nu + step) - value(nu - step)) / (2 * size)
        for step in size * np.eye(count)
    ]
    descend = bilevel.gradient_step(lower, 1 / largest)
    menu = {"dense": bilevel.dense()}
    menu |= {f"cg({n})": bilevel.conjugate_gradient(n) for n in (2, 5)}
    menu |= {f"neumann({n})": bilevel.neumann(n, 1 / largest) for n in (10, 100)}

    @functools.partial(jax.jit, compiler_options=QUICK)
    def gradients(nu):
        found = {
            label: bilevel.implicit(upper, lower, nu, policy, solver).total()
            for label, solver in menu.items()
        }
        for steps in (10, 100):
            unrolled, _ = bilevel.unroll(upper, descend, nu, 0.9 * policy, steps)
            found[f"unroll({steps})"] = unrolled.total()
        return found | {"truncated": jax.grad(upper)(nu, policy)}

    found = gradients(nu)
    if name in worlds.TABULAR:
        world = worlds.TABULAR[name]()
        found["closed_form"] = sum(
            worlds.closed_form(world, worlds.segments(world), np.asarray(nu))
        )
    size = np.linalg.norm(expected)
    return {
        label: float(np.linalg.norm(gradient - np.asarray(expected)) / size)
        for label, gradient in found.items()
    }


def learn(name: str, arm: str, seeds: int, sampled: bool) -> dict[str, Any]:
    """Runs one arm on all seeds and measures every ν that it went through."""
    upper, lower, best, true_return, count = problem(name)
    keys = jax.random.split(jax.random.key(1), seeds)
    start = SPREAD[name] * jax.random.normal(jax.random.key(0), (seeds, count))
    weight = 1.0 if arm == "full" else 0.0

    def run(start, key):
        if name == "linear_quadratic":
            world = known = None
        else:
            world = worlds.TABULAR[name]()
            known = worlds.segments(world)
        if sampled and arm == "buffer":
            plan = SAMPLED_PLAN[name]
            path = learning.buffer_sampled(world, known, start, key, plan)
        elif sampled:
            plan = SAMPLED_PLAN[name]
            path = learning.ascend_sampled(world, known, start, key, weight, plan)
        elif arm == "buffer":
            path = learning.buffer(world, known, start, BUFFER_STEPS)
        else:
            steps = EXACT_STEPS[name]
            path = learning.ascend(
                upper, lower, best, start, weight, RATES[name], steps
            )
        # A fiftieth of the way between points; the last one is the end.
        kept = np.unique(np.linspace(0, len(path) - 1, 51).round().astype(int))
        policy = jax.vmap(best)(path[kept])
        value = jax.vmap(upper)(path[kept], policy)
        return path[kept], jax.vmap(true_return)(policy), value, jnp.asarray(kept)

    nu, returns, value, kept = jax.jit(jax.vmap(run))(start, keys)
    return {
        "steps": kept[0].tolist(),
        "nu": np.round(nu[:, -1], 4).tolist(),
        "true_return": np.round(returns, 4).tolist(),
        "objective": np.round(value, 5).tolist(),
        "final": describe(returns[:, -1]),
        "final_objective": describe(value[:, -1]),
    }


def bounds(name: str) -> dict[str, float]:
    """True return of the soft-best policy for the true reward, and of chance.

    The former is no bound: a reward of greater scale has a less random policy.
    """
    if name == "linear_quadratic":
        return {}
    world = worlds.TABULAR[name]()
    known = worlds.segments(world)
    none = 0.0 * world.features
    truth = world._replace(base=world.true_reward, features=none)
    zero = jnp.zeros(world.features.shape[-1])
    policies = {
        "oracle": worlds.best_policy(truth, zero),
        "uniform": jnp.zeros_like(world.base),
    }
    return {
        label: float(worlds.true_return(world, known, policy))
        for label, policy in policies.items()
    }


def landscape() -> dict[str, list[float]]:
    """G of the lure, and both gradient fields, over ν."""
    upper, _, best, _, _ = problem("lure")
    world = worlds.lure()
    known = worlds.segments(world)
    grid = np.linspace(-5, 4, 91)
    value = jax.jit(jax.vmap(lambda nu: upper(nu, best(nu))))(grid[:, None])
    terms = [worlds.closed_form(world, known, np.array([nu])) for nu in grid]
    direct, implicit = np.array(terms)[..., 0].T
    return {
        "nu": grid.round(3).tolist(),
        "objective": np.round(value, 5).tolist(),
        "direct": direct.round(5).tolist(),
        "full": (direct + implicit).round(5).tolist(),
    }


def measure(seeds: int) -> dict[str, Any]:
    """Everything on the page."""
    record: dict[str, Any] = {"seeds": seeds, "solvers": {}, "bounds": {}}
    record |= {"exact": {}, "sampled": {}, "plan": SAMPLED_PLAN, "rates": RATES}
    for name in EXACT_STEPS:
        record["solvers"][name] = solvers(name)
        record["bounds"][name] = bounds(name)
        print(name, record["solvers"][name], record["bounds"][name], flush=True)
    for kind, names in (("exact", EXACT_STEPS), ("sampled", SAMPLED_PLAN)):
        for name in names:
            arms = ARMS[:2] if name == "linear_quadratic" else ARMS
            record[kind][name] = {}
            for arm in arms:
                found = learn(name, arm, seeds, kind == "sampled")
                record[kind][name][arm] = found
                print(kind, name, arm, found["final"], found["nu"][:3], flush=True)
    record["landscape"] = landscape()
    return record


def main() -> None:
    """Measures, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--plot", action="store_true", help="draw, do not measure")
    arguments = parser.parse_args()
    path = RESULTS / "exact.json"
    if not arguments.plot:
        jax.config.update("jax_enable_x64", True)
        began = time.process_time()
        record = {**origin("parl.exact"), **measure(arguments.seeds)}
        record["cpu_seconds"] = round(time.process_time() - began, 1)
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(record) + "\n")
    from experiments.parl import figure

    figure.draw(json.loads(path.read_text()), RESULTS / "exact.png")


if __name__ == "__main__":
    main()
