"""Physics alone: control steps per second, native engine against its peers.

    python -m experiments.benchmarks.physics [--quick] [--tasks hopper ant] [--mjx]

Every repetition times all contestants one after another, and ratios are taken within a
repetition; the medians are what counts, since the machine's speed drifts. All take
uniform actions and begin episodes anew where they ended:

- `native`: `envs.mujoco`, `vmap`ped inside `jit` and `scan`, with fresh resets drawn at
  every step, as a rollout does;
- `sync`, `asynchronous`: Gymnasium's vector environments (one process per environment
  for the latter, so fewer of them);
- `batch`: `mujoco.batch` stepping the very states that native visited, from Python: the
  limit set by physics alone;
- `mjx` (optional; compiles for minutes): MJX-JAX, no resets.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs import mujoco as tasks
from envs.mujoco import bits, catalogue, model
from envs.mujoco.physics import head_size
from rlx.types import Box, Env

RESULTS = pathlib.Path(__file__).parent / "results" / "physics.json"
PACKAGES = ("jax", "jaxlib", "mujoco", "mujoco-mjx", "gymnasium", "numpy")
GYMNASIUM = {
    "ant": "Ant-v5",
    "half_cheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "humanoid": "Humanoid-v5",
    "inverted_double_pendulum": "InvertedDoublePendulum-v5",
    "inverted_pendulum": "InvertedPendulum-v5",
    "pusher": "Pusher-v5",
    "reacher": "Reacher-v5",
    "swimmer": "Swimmer-v5",
    "walker2d": "Walker2d-v5",
}


class Contestant(NamedTuple):
    """One of those that are timed."""

    run: Callable[[], object]
    """Takes `steps` environment steps."""
    steps: int
    close: Callable[[], object] = int  # does nothing

    def __call__(self) -> int:
        """Run once; return the steps taken."""
        self.run()
        return self.steps


def native(env: Env, num_envs: int, length: int) -> tuple[Contestant, Any]:
    """Return the native engine, and `(rows, actions)` of a stretch of its steps."""

    def body(state: Any, key: jax.Array) -> tuple[Any, Any]:
        for_action, for_step, for_reset = jax.random.split(key, 3)
        action = _uniform(env, for_action, num_envs)
        keys = jax.random.split(for_step, num_envs)
        after, step = jax.vmap(env.step)(state, action, keys)
        fresh, _ = jax.vmap(env.reset)(jax.random.split(for_reset, num_envs))
        over = step.terminated | step.truncated

        def pick(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(over.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return jax.tree.map(pick, fresh, after), (state.physics, action, step.reward)

    def run(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        state, (_, _, reward) = jax.lax.scan(body, state, jax.random.split(key, length))
        return state, reward.sum()

    first, second = jax.random.split(jax.random.key(0))
    state, _ = jax.vmap(env.reset)(jax.random.split(first, num_envs))
    compiled = jax.jit(run)
    state, _ = jax.block_until_ready(compiled(state, second))  # away from the start
    record = jax.jit(lambda s, k: jax.lax.scan(body, s, jax.random.split(k, length)))
    _, (physics, action, _) = record(state, second)

    visited = bits.unpack(np.asarray(physics)), np.asarray(action)
    timed = functools.partial(_wait_for, compiled, state, second)
    return Contestant(timed, num_envs * length), visited


def _wait_for(function: Callable[..., Any], *arguments: Any) -> None:
    jax.block_until_ready(function(*arguments))


def _uniform(env: Env, key: jax.Array, num_envs: int) -> jax.Array:
    space = env.spec.action
    assert isinstance(space, Box)
    low, high = jnp.array(space.minimum), jnp.array(space.maximum)
    unit = jax.random.uniform(key, (num_envs, *space.shape))
    return low[None] + (high - low)[None] * unit


def batch(name: str, rows: np.ndarray, actions: np.ndarray) -> Contestant:
    """Return `mujoco.batch` alone on recorded states `[T, B, n]` and actions."""
    task = catalogue.lookup(name)
    mujoco = model.import_mujoco()
    simulations = mujoco.batch.Batch(model.load(task.model_file), rows.shape[1])
    simulations.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
    control = simulations.bind("ctrl")
    width = head_size(simulations.model)

    def run() -> None:
        for row, action in zip(rows, actions, strict=True):
            simulations.state[:, :width] = row[:, :width]
            control[:] = action
            simulations.step(nstep=task.frame_skip)

    return Contestant(run, rows.shape[0] * rows.shape[1])


def gymnasium_vector(name: str, mode: str, num_envs: int, length: int) -> Contestant:
    """Return Gymnasium's vector environment of `mode` `"sync"` or `"async"`."""
    import gymnasium

    with warnings.catch_warnings():
        # JAX warns of forks; these children never call it.
        warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)
        envs = gymnasium.make_vec(GYMNASIUM[name], num_envs, vectorization_mode=mode)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(length)]

    def run() -> None:
        for action in actions:
            envs.step(action)

    return Contestant(run, num_envs * length, envs.close)


def mjx(name: str, num_envs: int, length: int) -> Contestant:
    """Return MJX-JAX stepping the same model."""
    from mujoco import mjx as library

    task = catalogue.lookup(name)
    plain = model.load(task.model_file)
    device_model = library.put_model(plain, impl="jax")
    data = library.make_data(plain, impl="jax")
    data = jax.tree.map(lambda x: jnp.stack([x] * num_envs), data)

    def body(data: Any, action: jax.Array) -> tuple[Any, None]:
        data = data.replace(ctrl=action)
        step = jax.vmap(lambda d: library.step(device_model, d))
        return jax.lax.fori_loop(0, task.frame_skip, lambda _, d: step(d), data), None

    shape = (length, num_envs, plain.nu)
    actions = jax.random.uniform(jax.random.key(0), shape, minval=-1.0)
    options = {}
    if jax.default_backend() == "cpu":
        options = {"xla_cpu_use_fusion_emitters": False}
    run = jax.jit(lambda d: jax.lax.scan(body, d, actions)[0], compiler_options=options)
    return Contestant(functools.partial(_wait_for, run, data), num_envs * length)


def compare(name: str, num_envs: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time all contestants on one task, interleaved; return one row of the result."""
    length = 20 if arguments.quick else 100
    contestants: dict[str, Contestant] = {}
    contestants["native"], visited = native(tasks.make(name), num_envs, length)
    contestants["batch"] = batch(name, *visited)
    contestants["sync"] = gymnasium_vector(name, "sync", num_envs, max(5, length // 10))
    few = min(num_envs, arguments.processes)
    contestants["asynchronous"] = gymnasium_vector(name, "async", few, length)
    if arguments.mjx:
        contestants["mjx"] = mjx(name, num_envs, max(2, length // 20))
    for contestant in contestants.values():
        contestant()  # compile, and warm up
    speeds: dict[str, list[float]] = {label: [] for label in contestants}
    for _ in range(arguments.repeats):
        for label, contestant in contestants.items():
            start = time.perf_counter()
            steps = contestant()
            speeds[label].append(steps / (time.perf_counter() - start))
    for contestant in contestants.values():
        contestant.close()
    ratios = {
        f"native/{label}": [a / b for a, b in zip(speeds["native"], other, strict=True)]
        for label, other in speeds.items()
        if label != "native"
    }
    return {
        "task": name,
        "num_envs": num_envs,
        "processes_of_asynchronous": few,
        "steps_per_second": {k: round(statistics.median(v)) for k, v in speeds.items()},
        "ratio": {k: round(statistics.median(v), 3) for k, v in ratios.items()},
        "ratio_range": {
            k: [round(min(v), 3), round(max(v), 3)] for k, v in ratios.items()
        },
    }


def machine() -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "load_before": [round(x, 2) for x in os.getloadavg()],
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["hopper", "half_cheetah", "ant"])
    parser.add_argument("--num-envs", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--processes", type=int, default=16, help="of async Gymnasium")
    parser.add_argument("--mjx", action="store_true", help="add MJX-JAX")
    parser.add_argument("--quick", action="store_true", help="a minute, rough numbers")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.num_envs, arguments.repeats = arguments.num_envs[:1], 3
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    words = ["python", "-m", "experiments.benchmarks.physics", *sys.argv[1:]]
    rows: list[dict[str, Any]] = []
    result = {"command": " ".join(words), "machine": machine(), "rows": rows}
    for name in arguments.tasks:
        for num_envs in arguments.num_envs:
            rows.append(compare(name, num_envs, arguments))
            print(json.dumps(rows[-1]), flush=True)
            arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
