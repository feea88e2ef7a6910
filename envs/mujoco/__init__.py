"""MuJoCo tasks with Gymnasium-v5 semantics, as pure functions.

`make("hopper")` gives an `Env` whose `reset` and `step` work inside `jit`, `scan` and
nested `vmap`. One definition of each task (`task.py`; `planar.py`, `legged.py`,
`reaching.py`, `pendulum.py`) serves every engine; `native` runs MuJoCo's C code on the
CPU. Importing this package imports neither mujoco nor gymnasium.
"""

from __future__ import annotations

from typing import Any

from rlx.types import Env

_ENGINES = ("native",)
_DEFAULT_LIMIT = -1


def names() -> list[str]:
    """Return the names that `make` knows, sorted."""
    from envs.mujoco.catalogue import TASKS

    return sorted(TASKS)


def make(
    name: str,
    *,
    engine: str = "native",
    time_limit: int | None = _DEFAULT_LIMIT,
    threads: int | None = None,
    **options: Any,
) -> Env:
    """Return the MuJoCo task `name` as an `Env`.

    Args:
      name: one of `names()`, for instance `"hopper"`.
      engine: `"native"`: MuJoCo's C code on the CPU, float64, behind one callback for
        the whole batch of environments.
      time_limit: steps after which an episode is truncated; Gymnasium's registered
        limit of the task by default, None for never.
      threads: physics threads of one call; by default the CPU cores over the number of
        local JAX devices, at least one. The numbers do not depend on it.
      **options: the task's own options under Gymnasium's names, such as
        `forward_reward_weight`, `terminate_when_unhealthy`, `reset_noise_scale`.

    Raises:
      ValueError: an unknown name, engine or option (the nearest is suggested), or a
        limit or thread count below one.
      ImportError: mujoco or gymnasium (whose model files are used) is missing.
    """
    from envs.mujoco import catalogue, native
    from envs.mujoco.naming import check_choice

    task = catalogue.lookup(name)
    check_choice("MuJoCo engine", engine, _ENGINES)
    if time_limit == _DEFAULT_LIMIT:
        time_limit = task.time_limit
    for label, value in (("time_limit", time_limit), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{label} must be at least 1 or None, got {value}.")
    return native.make(task, task.resolve(options), time_limit, threads)
