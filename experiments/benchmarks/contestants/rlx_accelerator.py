"""rlx: PPO or MDPO by `train.fit` on the device that JAX finds; all seeds together.

Prints one line of JSON: time of compilation, speed, memory, returns.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json

import numpy as np

from experiments.benchmarks.contestants.setting import add_accelerator_options


def main() -> None:
    """Trains and tells how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_accelerator_options(parser)
    parser.add_argument("--method", choices=("ppo", "mdpo"), default="ppo")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()

    import envs
    from rlx import system, train
    from rlx.data.rollout import rollout

    engine = {"engine": options.engine} if options.engine else {}
    env = envs.make(options.env, **engine)
    source = rollout(env, num_envs=options.num_envs, length=options.length)
    module = importlib.import_module(f"rlx.methods.{options.method}")
    config = dataclasses.replace(
        module.Config(),
        num_epochs=options.num_epochs,
        num_minibatches=options.num_minibatches,
    )
    count = train.gradient_steps(config, source, options.steps)
    config = dataclasses.replace(config, anneal_steps=count)
    result = train.fit(
        module.make(env.spec, config),
        source,
        num_steps=options.steps,
        seeds=range(options.seeds),
        settings=train.Settings(
            evaluations=options.evaluations, episodes=options.episodes
        ),
    )
    rows = result.rows
    speeds = [row["time"]["steps_per_second"] for row in rows[1:]]
    spans = np.diff([row["step"] for row in rows]) * options.seeds
    answer = {
        "compile_seconds": rows[0]["time"]["compile_s"],
        "steps_per_second": float(np.median(speeds)),
        "seconds_of_training": [0.0, *np.cumsum(spans / speeds).tolist()],
        "returns": result.returns.tolist(),
        "program_mib": rows[0].get("memory_mib"),
        "peak_mib": peak_mib(),
        "machine": system.describe(),
    }
    print(json.dumps(answer))


def peak_mib() -> float | None:
    """Most memory that this process had on the device; None where nobody says."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak / 2**20


if __name__ == "__main__":
    main()
