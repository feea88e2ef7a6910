"""Stochastic approximation through the method itself: `rlx.methods.martingale`."""

from __future__ import annotations

import functools
import time as clock
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from envs import diffusion as df
from experiments.martingale import problems
from experiments.martingale.studies import mesh_of, start_value, true_start_value
from rlx import loop
from rlx.data.paths import paths as paths_source
from rlx.data.rollout import rollout
from rlx.methods import martingale
from rlx.networks.features import linear_family
from rlx.networks.mlp import mlp
from rlx.types import Array, EnvSpec, Key, Network

# Learning rates of Δt-free updates are of order one; the mean-square error's curvature
# grows like 1/Δt, and so its rate must shrink like Δt.
SETTINGS: dict[str, dict[str, Any]] = {
    "MSTDE": {"algorithm": "mean_square_td", "learning_rate": 0.006},
    "ML": {"algorithm": "ml", "learning_rate": 0.01},
    "CTD(0)": {"algorithm": "ctd", "learning_rate": 1.0},
    "CTD(0.5)": {"algorithm": "ctd", "learning_rate": 2.0, "lambda_": 0.5},
    "CTD(1)": {"algorithm": "ctd", "learning_rate": 2.0, "lambda_": 1.0},
    "CGTD": {"algorithm": "cgtd", "learning_rate": 2.0, "auxiliary_rate": 0.1},
    "CGTD2": {"algorithm": "cgtd2", "learning_rate": 0.1, "auxiliary_rate": 0.1},
    "CTDC": {"algorithm": "ctdc", "learning_rate": 1.0, "auxiliary_rate": 0.01},
    "CLSTD(0)": {"algorithm": "clstd"},
    "GMM": {"algorithm": "gmm", "weighting": "outer"},
}


def family_network(problem: problems.Problem) -> Network:
    """The problem's family as a function of the observation (t, x)."""
    family = problem.family
    size = jax.eval_shape(
        family.features, jnp.zeros(()), jnp.zeros((problem.diffusion.dimension,))
    ).shape[0]

    def along(function):
        def apply(observation: Array) -> Array:
            flat = observation.reshape(-1, observation.shape[-1])
            out = jax.vmap(lambda o: function(o[0], o[1:]))(flat)
            return out.reshape(observation.shape[:-1] + out.shape[1:])

        return apply

    return linear_family(along(family.features), size, along(family.offset))


def spec_of(problem: problems.Problem, num_steps: int) -> EnvSpec:
    """The observation's and action's shapes, and Δt."""
    return df.make(problem.diffusion, problem.duration / num_steps).spec


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _averaged(problem, settings, num_steps, num_paths, iterations, keys):
    time = mesh_of(problem, num_steps)

    def sample(key: Key):
        paths = df.simulate(problem.diffusion, key, time, num_paths)
        return df.transitions(problem.diffusion, paths)

    config = martingale.Config(
        discount_rate=problem.diffusion.discount_rate, **dict(settings)
    )
    method = martingale.make(
        spec_of(problem, num_steps), config, family_network(problem)
    )
    source = paths_source(sample, num_paths, num_steps)
    solved = config.algorithm in martingale.SOLVED

    def one(key: Key) -> Array:
        def body(state, _):
            state, _ = loop.step(method, source, state)
            return state, state.learner.params["value"]

        state = loop.init(method, source, key)
        _, trajectory = jax.lax.scan(body, state, None, length=iterations)
        # The solvers average by themselves; iterates of the others jitter.
        return trajectory[-1] if solved else trajectory[iterations // 2 :].mean(0)

    return jax.vmap(one)(keys)


def approximation_table(
    problem: problems.Problem,
    num_steps: int,
    num_paths: int,
    iterations: int,
    seeds: int,
    settings: Mapping[str, Mapping[str, Any]] = SETTINGS,
) -> list[dict[str, Any]]:
    """All algorithms of the method on fresh paths, averaged over the last half."""
    keys = jax.random.split(jax.random.key(3), seeds)
    rows = []
    true = true_start_value(problem)
    for name, chosen in settings.items():
        frozen = tuple(sorted(chosen.items()))
        begin = clock.perf_counter()
        found = _averaged(problem, frozen, num_steps, num_paths, iterations, keys)
        found = np.asarray(found)
        values = np.asarray(jax.vmap(lambda x: start_value(problem, x))(found))
        rows.append(
            {
                "estimator": name,
                "settings": dict(chosen),
                "steps": num_steps,
                "iterations": iterations,
                "paths": num_paths,
                "seeds": seeds,
                "params": found.mean(0).tolist(),
                "params_spread": found.std(0, ddof=1).tolist(),
                "truth": problem.truth,
                "value": values.mean(),
                "true_value": true,
                "value_standard_error": values.std(ddof=1) / np.sqrt(seeds),
                "relative_error": abs(values.mean() - true) / abs(true),
                "seconds": clock.perf_counter() - begin,
            }
        )
    return rows


def ergodic_family() -> Network:
    """J = θ₀x²/2 + θ₁x."""

    def features(observation: Array) -> Array:
        x = observation[..., 0]
        return jnp.stack([x**2 / 2, x], -1)

    return linear_family(features, 2)


def ergodic_online(
    steps: int, seeds: int, step_size: float = 0.01, learning_rate: float = 0.001
) -> dict[str, Any]:
    """On-line CTD(0) with the average reward, one step at a time, on the ergodic LQ.

    The published ergodic example (Δt = 0.01, learning rate 0.001); one environment,
    batches of one step, parameters averaged over the last half. A constant rate leaves
    a bias in proportion to it, because successive steps are correlated.
    """
    slope, offset, variance = df.ergodic_optimum(0.1)
    diffusion = df.ergodic_lq()
    env = df.make(diffusion, step_size, duration=1e7)
    true = df.ergodic_value(slope, offset, variance)

    def policy(observation: Array, key: Key | None):
        return diffusion.policy(0.0, observation, key)[0], {}

    config = martingale.Config(
        discount_rate=0.0, average_reward=True, learning_rate=learning_rate
    )
    method = martingale.make(env.spec, config, ergodic_family(), policy=policy)
    source = rollout(env, num_envs=1, length=1)

    def one(key: Key):
        def body(state, _):
            state, total = state
            state, _ = loop.step(method, source, state)
            total = jax.tree.map(jnp.add, total, state.learner.params)
            return (state, total), None

        def block(carry, _):
            state, _ = carry
            zero = jax.tree.map(jnp.zeros_like, state.learner.params)
            carry, _ = jax.lax.scan(body, (state, zero), None, length=steps // 50)
            return carry, jax.tree.map(lambda x: x / (steps // 50), carry[1])

        state = loop.init(method, source, key)
        zero = jax.tree.map(jnp.zeros_like, state.learner.params)
        return jax.lax.scan(block, (state, zero), None, length=50)[1]

    begin = clock.perf_counter()
    trail = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(4), seeds))
    values = np.asarray(trail["value"])  # [seed, block, 2]
    average = np.asarray(trail["average_reward"])
    seconds = clock.perf_counter() - begin
    return {
        "steps": steps,
        "seeds": seeds,
        "step_size": step_size,
        "learning_rate": learning_rate,
        "seconds": seconds,
        "truth": {"theta0": true.quadratic, "theta1": true.linear, "V": true.average},
        "theta0": values[:, 25:, 0].mean(1).tolist(),
        "theta1": values[:, 25:, 1].mean(1).tolist(),
        "V": average[:, 25:].mean(1).tolist(),
        "trail": {
            "theta0": values[..., 0].mean(0).tolist(),
            "theta1": values[..., 1].mean(0).tolist(),
            "V": average.mean(0).tolist(),
        },
    }


def neural(dimension: int, iterations: int, num_paths: int = 64) -> dict[str, Any]:
    """A neural value function on LQ control: ML and CTD(0) against exact quadratics."""
    problem = problems.lq_control(dimension)
    num_steps = 40
    time = mesh_of(problem, num_steps)
    size = 1 + dimension
    network = mlp(size, (64, 64, 1), activation="silu")
    value = Network(
        network.init,
        lambda params, observation: network.apply(params, observation)[..., 0],
    )

    def sample(key: Key):
        return df.transitions(
            problem.diffusion, df.simulate(problem.diffusion, key, time, num_paths)
        )

    test = df.simulate(problem.diffusion, jax.random.key(99), time, 2000)
    inputs = df.transitions(problem.diffusion, test).observation
    flat = inputs.reshape(-1, size)
    true = jax.vmap(lambda o: problem.diffusion.value(o[0], o[1:]))(flat)

    def error(params: Any) -> Array:
        gap = value.apply(params, flat) - true
        return jnp.sqrt(jnp.mean(gap**2) / jnp.mean(true**2))

    results = {"dimension": dimension, "iterations": iterations, "paths": num_paths}
    for name, algorithm in (("ML", "ml"), ("CTD(0)", "ctd")):
        config = martingale.Config(algorithm=algorithm, discount_rate=0.1)
        method = martingale.make(spec_of(problem, num_steps), config, value)
        schedule = optax.cosine_decay_schedule(3e-3, iterations)
        method = method._replace(optimizer=optax.adam(schedule))
        source = paths_source(sample, num_paths, num_steps)

        def block(state, _, method=method, source=source):
            state, _ = loop.run(method, source, state, iterations // 20)
            return state, error(state.learner.params["value"])

        def train(key, method=method, source=source, block=block):
            state = loop.init(method, source, key)
            return jax.lax.scan(block, state, None, length=20)[1]

        begin = clock.perf_counter()
        errors = np.asarray(
            jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(5), 2))
        )
        results[name] = {
            "errors": errors.mean(0).tolist(),
            "final": errors[:, -1].tolist(),
            "seconds": clock.perf_counter() - begin,
        }
    return results
