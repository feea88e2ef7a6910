"""MuJoCo tasks with Gymnasium-v5 semantics, as pure functions.

`make("hopper")` gives an `Env` whose `reset` and `step` work inside `jit`, `scan` and
nested `vmap`. One definition of each task (`task.py`; `planar.py`, `legged.py`,
`reaching.py`, `pendulum.py`) serves every engine: `native` runs MuJoCo's C code on the
CPU, `mjx` and `warp` (`mjx.py`) run inside the compiled program. Importing this package
imports neither mujoco nor gymnasium.
"""

from __future__ import annotations

from typing import Any

import jax

from envs.mujoco.task import Task
from rlx.types import Env

_ENGINES = ("mjx", "native", "warp")
_SETTINGS = {
    "threads": ("native",),
    "solver_iterations": ("mjx", "warp"),
    "max_envs": ("warp",),
}
"""Whose option each is."""
_DEFAULT_LIMIT = -1


def names() -> list[str]:
    """Return the names that `make` knows, sorted."""
    from envs.mujoco.catalogue import TASKS

    return sorted(TASKS)


def make(
    name: str | Task,
    *,
    engine: str | None = None,
    time_limit: int | None = _DEFAULT_LIMIT,
    deterministic: bool = False,
    threads: int | None = None,
    solver_iterations: int | None = None,
    max_envs: int | None = None,
    **options: Any,
) -> Env:
    """Return the MuJoCo task `name` as an `Env`.

    Args:
      name: one of `names()`, for instance `"hopper"`, or a `Task` of one's own.
      engine: None follows the device: `"native"` on a CPU, `"mjx"` on an accelerator.
        `"native"`: MuJoCo's C code on the CPU, float64, behind one callback for the
        whole batch of environments; equal to Gymnasium to the bit.
        `"mjx"`: MuJoCo in JAX, float32, with derivatives; compiles for half a minute
        and more. Humanoid's solver is missing there.
        `"warp"`: MuJoCo's CUDA kernels (`pip install 'rlx[warp]'`), not deterministic.
      time_limit: steps after which an episode is truncated; Gymnasium's registered
        limit of the task by default, None for never.
      deterministic: refuse an engine whose results differ from run to run.
      threads: native only: physics threads of one call; by default the CPU cores over
        the number of local JAX devices, at least one. The numbers do not depend on it.
      solver_iterations: mjx and warp only: iterations of the constraint solver, where
        the model's own limit (20 to 100) is not wanted; 1 makes `jax.grad` work.
      max_envs: warp only: environments stepped at once, 8192 by default. More of them
        can overflow the contact buffer, which gives NaN.
      **options: the task's own options under Gymnasium's names, such as
        `forward_reward_weight`, `terminate_when_unhealthy`, `reset_noise_scale`.

    Raises:
      ValueError: an unknown name, engine or option (the nearest is suggested), an
        option of another engine, a task that the engine cannot run, a deterministic
        warp, or a number below one.
      ImportError: mujoco or gymnasium (whose model files are used) is missing, or the
        engine's library; the message says how to install it.
    """
    from envs.mujoco import catalogue
    from envs.mujoco.naming import check_choice

    task = name if isinstance(name, Task) else catalogue.lookup(name)
    if engine is None:
        engine = "native" if jax.default_backend() == "cpu" else "mjx"
    check_choice("MuJoCo engine", engine, _ENGINES)
    if time_limit == _DEFAULT_LIMIT:
        time_limit = task.time_limit
    if time_limit is not None and time_limit < 1:
        raise ValueError(f"time_limit must be at least 1 or None, got {time_limit}.")
    settings = _check_settings(
        engine,
        threads=threads,
        solver_iterations=solver_iterations,
        max_envs=max_envs,
    )
    if deterministic and engine == "warp":
        raise ValueError(
            "MuJoCo Warp adds forces in the order in which GPU threads finish: it is "
            "not deterministic. Use engine='mjx' or deterministic=False."
        )
    resolved = task.resolve(options)
    if engine == "native":
        from envs.mujoco import native

        return native.make(task, resolved, time_limit, threads)
    from envs.mujoco import mjx

    return mjx.make(task, resolved, time_limit, mjx.Settings(engine=engine, **settings))


def _check_settings(engine: str, **settings: int | None) -> dict[str, int]:
    """Return the settings that were given, all of them the engine's own.

    Raises:
      ValueError: one is another engine's, or below one.
    """
    given = {label: value for label, value in settings.items() if value is not None}
    for label, value in given.items():
        if value < 1:
            raise ValueError(f"{label} must be at least 1 or None, got {value}.")
        if engine not in _SETTINGS[label]:
            raise ValueError(
                f"{label} is an option of engine {' or '.join(_SETTINGS[label])}, "
                f"not of {engine!r}."
            )
    return given
