"""The table of tasks."""

from __future__ import annotations

from envs.mujoco import legged, pendulum, planar, reaching
from envs.mujoco.naming import check_choice
from envs.mujoco.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for module in (planar, legged, reaching, pendulum)
    for task in module.TASKS
}


def lookup(name: str) -> Task:
    """Return the task called `name`.

    Raises:
      ValueError: no such task; names the nearest.
    """
    check_choice("MuJoCo task", name, TASKS)
    return TASKS[name]
