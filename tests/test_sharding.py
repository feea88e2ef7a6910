"""Runs over devices, processes and groups: the same numbers everywhere."""

from __future__ import annotations

import pathlib
import socket
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import checkpoint, sharding, train
from rlx.record import RunFolder
from tests import fitting
from tests.fit_process import problem, settings

STEPS = 10 * 16


def fit(name: str, **options: Any) -> train.Result:
    method, source = problem(name)
    return train.fit(method, source, settings=settings(), **options)


def dumped(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


# ------------------------------------------------------------------- devices, processes


@pytest.mark.parametrize(
    ("name", "runs"),
    [("toy", 8), ("toy", 11), pytest.param("ppo", 8, marks=pytest.mark.slow)],
)
def test_eight_devices_give_the_numbers_of_one(
    name: str, runs: int, tmp_path: pathlib.Path
):
    # Eleven runs take six of the devices, two each; the twelfth is thrown away.
    options = {"num_steps": STEPS, "seeds": [*range(runs)]}
    process = fitting.start(
        {
            **options,
            "problem": name,
            "save_to": str(tmp_path / "run"),
            "dump": str(tmp_path / "state.npz"),
        },
        devices=8,
    )
    one = fit(name, **options)
    (said,) = fitting.finish(process)
    assert "finished on 8 devices" in said
    fitting.assert_same(fitting.leaves(one.state), dumped(tmp_path / "state.npz"))
    with RunFolder.open(tmp_path / "run") as folder:
        # A mean that nothing else depends on may be rounded in another way.
        fitting.assert_close_rows(one.rows, folder.rows())
    assert {len(row["return"]) for row in one.rows} == {runs}
    # A run of eight devices goes on with one.
    resumed = fit(name, **options, save_to=tmp_path / "run", resume=True)
    fitting.assert_same(one.state, resumed.state)


def together(options: dict[str, Any], devices: int) -> list[str]:
    """Two processes, joined, that fit one sweep."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return fitting.finish(
        *(
            fitting.start(
                {
                    **options,
                    "port": port,
                    "process": index,
                    "stop_at": options.get("stop_at") if index == 1 else None,
                },
                devices=devices,
            )
            for index in range(2)
        )
    )


@pytest.mark.parametrize("runs", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_two_processes_train_one_sweep(runs: int, tmp_path: pathlib.Path):
    run = tmp_path / "run"
    options = {
        "problem": "toy",
        "num_steps": STEPS,
        "seeds": [*range(runs)],
        "save_to": str(run),
    }
    # Only the second process is told to stop; both do, at the same step.
    outputs = together({**options, "stop_at": 16}, devices=2)
    assert all("interrupted: stopped by SIGTERM at step 16" in o for o in outputs)
    assert checkpoint.steps(run / "checkpoints") == [16]
    dump = str(tmp_path / "state.npz")
    outputs = together({**options, "resume": True, "dump": dump}, devices=2)
    assert all("finished on 4 devices, rows: 4" in o for o in outputs)
    alone = fit("toy", num_steps=STEPS, seeds=runs)
    fitting.assert_same(fitting.leaves(alone.state), dumped(tmp_path / "state.npz"))
    with RunFolder.open(run) as folder:
        fitting.assert_same_rows(alone.rows, folder.rows())


# ----------------------------------------------------------------------- choosing forms


def test_devices_share_the_runs_evenly(monkeypatch):
    device = jax.devices()[0]
    monkeypatch.setattr(sharding.jax, "devices", lambda: [device] * 8)
    for runs, size in ((8, 8), (16, 8), (12, 6), (7, 7), (9, 5), (11, 6), (1, 1)):
        assert sharding.mesh_for(runs).size == size
        # No device has more to do than with all of them at work.
        assert -(-runs // size) == -(-runs // 8)
    monkeypatch.setattr(sharding.jax, "process_count", lambda: 2)
    for runs in (1, 12, 16):
        assert sharding.mesh_for(runs).size == 8


def accelerator(monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    stats = {"bytes_limit": limit} if limit else None
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    monkeypatch.setattr(sharding.jax, "devices", lambda: [device])


def test_groups_halve_until_they_fit(monkeypatch):
    accelerator(monkeypatch, 1000)
    asked = []

    def memory_of(size: int) -> int:
        asked.append(size)
        return 100 + 50 * size

    # Under 900 bytes may be used: 16 runs need 900, 8 need 500.
    assert sharding.largest_group(memory_of, 500) == 8
    assert asked == [500, 250, 125, 63, 32, 16, 8]
    assert sharding.largest_group(lambda size: 10**6, 500) == 1
    assert sharding.largest_group(lambda size: None, 500) == 500


def test_without_a_known_limit_all_runs_go_together(monkeypatch):
    accelerator(monkeypatch, None)
    assert sharding.largest_group(lambda size: 10**12, 64) == 64


def test_on_a_cpu_runs_follow_one_another():
    def unasked(size: int) -> int:
        raise AssertionError("nothing needs compiling to know")

    assert sharding.largest_group(unasked, 64) == 1


@pytest.mark.parametrize("group", [1, 2, 3, 5, 7])
def test_every_group_gives_every_run(group: int):
    mesh = sharding.mesh_for(5)

    def function(run: Any, offset: jax.Array) -> Any:
        return {"sum": run["x"].sum() + offset, "count": run["n"] + 1}

    runs = {"x": jnp.arange(10.0).reshape(5, 2), "n": jnp.arange(5)}
    mapped = jax.jit(sharding.over_runs(function, mesh, group))
    found = mapped(runs, jnp.float32(0.5))
    np.testing.assert_array_equal(found["sum"], [1.5, 5.5, 9.5, 13.5, 17.5])
    np.testing.assert_array_equal(found["count"], [1, 2, 3, 4, 5])


def test_one_after_another_a_cond_stays_a_cond():
    # Vmapped, both branches would run for every run.
    ran = []

    def function(run: jax.Array) -> jax.Array:
        def rare() -> jax.Array:
            jax.debug.callback(lambda: ran.append(1))
            return jnp.float32(1)

        return jax.lax.cond(run == 2, rare, lambda: jnp.float32(0))

    mapped = jax.jit(sharding.over_runs(function, sharding.mesh_for(4), 1))
    np.testing.assert_array_equal(mapped(jnp.arange(4)), [0, 0, 1, 0])
    jax.effects_barrier()
    assert len(ran) == 1


def test_alone_there_is_nothing_to_agree_upon():
    assert sharding.agree(3.25) == 3.25
    gathered = sharding.gather({"x": jnp.arange(3)})
    assert isinstance(gathered["x"], np.ndarray)
