"""Tasks of the DeepMind Control suite: `envs.make("control/walker_walk")`.

Walker and cheetah of Tassa et al. 2018, https://arxiv.org/abs/1801.00690, on the
engines of `envs.mujoco`: from the same state and action the native engine gives
dm_control's own numbers. The robots are built from tables (`models.py`); dm_control is
not needed. `playground/WalkerWalk` is MuJoCo Playground's version of such a task.

Apart from dm_control: starts are drawn by JAX, the solver starts an episode from zero,
and the first of the 200 steps in which a cheetah comes to rest sees the drawn pose.
"""

from __future__ import annotations

from typing import Any

from envs import mujoco
from rlx.types import Env


def names() -> list[str]:
    """Return the names that `make` knows, sorted."""
    from envs.control.tasks import TASKS

    return sorted(TASKS)


def make(name: str, **options: Any) -> Env:
    """Return the task `name` as an `Env` whose actions are in [-1, 1].

    Args:
      name: one of `names()`, for instance `"walker_walk"`.
      **options: those of `envs.mujoco.make`, such as `engine`, `time_limit` (1000 by
        default) and `threads`, and the task's own, `move_speed` in metres per second.

    Raises:
      ValueError: an unknown name or option, or a value that `envs.mujoco.make` refuses.
      ImportError: mujoco is missing, or the engine's library.
    """
    from envs.control.tasks import TASKS
    from envs.mujoco.naming import check_choice

    check_choice("task of the control suite", name, TASKS)
    return mujoco.make(TASKS[name], **options)
