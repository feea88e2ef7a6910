"""Where the time of training goes on Hopper, and the limit that physics sets.

    python -m experiments.benchmarks.parts [--quick]

Within one process and one compiled program each, alternately:

- `training`: whole iterations, as `train.fit` compiles them;
- `rollout`: the source of data alone, with the current policy;
- `update`: preparation and gradient steps alone, on one batch;
- `policy`: acting alone, on recorded observations;
- `engine`: `envs.mujoco` in `jit`, uniform actions, fresh resets;
- `physics`: bare `mujoco.batch` on the states that `engine` visited: no training can be
  faster, however little it computes.

The host's part (evaluation, checkpoints, records) is read from a run of `train.fit`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import physics, race
from experiments.benchmarks.contestants import rlx_training, serve
from experiments.benchmarks.race import Entry
from experiments.benchmarks.training import HOPPER
from rlx import learner, loop, sharding, train
from rlx.types import DataSource, Method

Call = Callable[[], int]


def contestants(method: Method, source: DataSource) -> dict[str, Call]:
    """The parts, each compiled alone, after a few iterations of training."""
    steps = source.steps_per_batch

    def iterate(state: Any) -> Any:
        return loop.step(method, source, state)[0]

    step = jax.jit(iterate)
    state = jax.jit(lambda key: loop.init(method, source, key))(jax.random.key(0))
    for _ in range(5):
        state = step(state)
    key = jax.random.key(1)

    def collect(state: Any, key: Any) -> Any:
        policy = learner.policy(method, state.learner)
        return source.next(state.source, policy, key)

    def act(state: Any, observation: Any, key: Any) -> Any:
        policy = learner.policy(method, state.learner)
        keys = jax.random.split(key, observation.shape[0])

        def one(carry: Any, inputs: Any) -> Any:
            action, carry, _ = policy.act(inputs[0], carry, inputs[1])
            return carry, action

        return jax.lax.scan(one, policy.init_carry(), (observation, keys))[1]

    rollout = jax.jit(collect)
    _, batch, _ = rollout(state, key)
    update = jax.jit(lambda state, b, k: learner.update(method, state.learner, b, k))
    policy = jax.jit(act)

    def of(function: Callable[..., Any], *arguments: Any) -> Call:
        def call() -> int:
            jax.block_until_ready(function(*arguments))
            return steps

        return call

    return {
        "training": of(step, state),
        "rollout": of(rollout, state, key),
        "update": of(update, state, batch, key),
        "policy": of(policy, state, batch.observation, key),
    }


def time_parts(options: argparse.Namespace) -> dict[str, Any]:
    """Speeds of all parts, and their shares of the time of training."""
    setting = argparse.Namespace(env="hopper", normalize=1, **HOPPER)
    method, source = rlx_training.build(setting)
    parts = contestants(method, source)
    env = source.env
    assert env is not None
    parts["engine"], visited = physics.native(env, source.num_envs, HOPPER["length"])
    parts["physics"] = physics.batch("hopper", *visited)
    for part in parts.values():
        part()

    def timer(part: Call) -> Callable[[float], race.Answer]:
        return lambda seconds: serve.timed(part, seconds)

    answers = race.alternate(
        {label: timer(part) for label, part in parts.items()},
        seconds=options.seconds,
        repeats=options.repeats,
    )
    # A part's share of the time of training is training's speed over its own.
    pairs = [("training", label) for label in parts if label != "training"]
    result = race.compare(answers, pairs)
    result["share"] = {
        label.removeprefix("training/"): ratio
        for label, ratio in result["ratio"].items()
    }
    return {**result, "host": _host(method, source, options.fit_steps)}


def _host(method: Method, source: DataSource, num_steps: int) -> dict[str, Any]:
    """What a fit with a run folder spends outside the compiled training."""
    with tempfile.TemporaryDirectory() as folder:
        settings = train.Settings(evaluations=10)
        started = time.perf_counter()
        result = train.fit(
            method,
            source,
            num_steps=num_steps,
            save_to=f"{folder}/run",
            settings=settings,
        )
        whole = time.perf_counter() - started
    rows = result.rows
    compiling = rows[0]["time"]["compile_s"]
    evaluating = sum(row["time"]["evaluation_s"] for row in rows)
    training = sum(
        (after["step"] - before["step"]) / after["time"]["steps_per_second"]
        for before, after in zip(rows, rows[1:], strict=False)
    )
    running = whole - compiling
    return {
        "steps": num_steps,
        "evaluations": len(rows),
        "mean_episode_length_at_the_end": np.mean(rows[-1]["episode_length"]),
        "compile_seconds": round(compiling, 2),
        "share_training": round(training / running, 3),
        "share_evaluation": round(evaluating / running, 3),
        "share_records_and_checkpoints": round(
            (running - training - evaluating) / running, 3
        ),
    }


def limit(options: argparse.Namespace) -> dict[str, Any]:
    """Training of 1 and 8 seeds against physics alone, with all cores for each."""
    setting = {"env": "hopper", **HOPPER, "normalize": 1}
    cores = sharding.available_cores()
    entries = {
        "training 1 seed": Entry("rlx_training", setting),
        "training 8 seeds": Entry(
            "rlx_training", {**setting, "seeds": 8, "devices": cores}
        ),
        "engine": Entry("physics_alone", {"num_envs": 40, "layer": "native"}),
        "physics": Entry("physics_alone", {"num_envs": 40, "layer": "batch"}),
    }
    pairs = [
        (label, base)
        for label in ("training 1 seed", "training 8 seeds")
        for base in ("physics", "engine")
    ]
    return race.race(entries, pairs, seconds=options.seconds, repeats=options.repeats)


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each timing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fit-steps", type=int, default=200_000)
    parser.add_argument("--quick", action="store_true", help="rough, in a minute")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.repeats, options.fit_steps = 2.0, 2, 40_000
    content = {
        "seconds": options.seconds,
        "setting": HOPPER,
        "limit": limit(options),
        "parts": time_parts(options),
    }
    print(json.dumps(content, indent=1))
    if not options.quick:
        race.save("parts", content, sys.argv[1:])


if __name__ == "__main__":
    main()
