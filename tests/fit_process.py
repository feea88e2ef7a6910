"""A fit in a process of its own, for what one process cannot show.

    python -m tests.fit_process '{"problem": "toy", "seeds": [0, 1], "save_to": ...}'

Prints how it ended. `dump` names a file for every leaf of the final state.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import jax
import numpy as np

from rlx import sharding, train
from rlx.types import DataSource, Method, PyTree
from tests import toy


def problem(name: str) -> tuple[Method, DataSource]:
    """`toy`, or the name of an on-policy method for a small Hopper."""
    if name == "toy":
        return toy.method(), toy.source()
    import importlib

    import envs
    from rlx.data.rollout import rollout

    module = importlib.import_module(f"rlx.methods.{name}")
    env = envs.make("hopper")
    config = module.Config(hidden_sizes=(8,), num_epochs=2, num_minibatches=2)
    return module.make(env.spec, config), rollout(env, num_envs=4, length=4)


def settings(**fields: Any) -> train.Settings:
    """Two episodes of at most seven steps, three times."""
    return train.Settings(
        **{"evaluations": 3, "episodes": 2, "episode_steps": 7, **fields}
    )


def leaves(tree: PyTree) -> dict[str, np.ndarray]:
    """Every leaf by its path, on every process; keys as their data."""
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        flat[jax.tree_util.keystr(path)] = leaf
    return {name: np.asarray(leaf) for name, leaf in sharding.gather(flat).items()}


def stop_at(step: int, signum: int) -> Any:
    """An `on_progress` that sends this process a signal once, at `step`."""

    def on_progress(report: Any) -> None:
        if report["step"] == step:
            os.kill(os.getpid(), signum)

    return on_progress


def main(options: dict[str, Any]) -> None:
    """Fits, and says how it ended."""
    if "process" in options:
        address = f"localhost:{options['port']}"
        jax.distributed.initialize(address, 2, options["process"])
    method, source = problem(options["problem"])
    on_progress = None
    if options.get("stop_at"):
        on_progress = stop_at(options["stop_at"], signal.SIGTERM)
    try:
        result = train.fit(
            method,
            source,
            num_steps=options["num_steps"],
            seeds=options["seeds"],
            save_to=options.get("save_to"),
            resume=options.get("resume", False),
            settings=settings(),
            on_progress=on_progress,
        )
    except train.Interrupted as error:
        print("interrupted:", error)
        return
    dumped = leaves(result.state)
    if options.get("dump") and jax.process_index() == 0:
        np.savez(options["dump"], **dumped)
    print("finished on", jax.device_count(), "devices, rows:", len(result.rows))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
