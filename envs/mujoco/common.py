"""What every engine says about a task in the same words."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from envs.mujoco.task import Context, Task
from rlx.types import Box, EnvSpec


def spec(
    task: Task, context: Context, observation_size: int, time_limit: int | None
) -> EnvSpec:
    """Return the spec of `task`, whose actions are the model's controls."""
    limits = context.model.actuator_ctrlrange.astype(np.float32)
    low, high = (tuple(float(x) for x in limits[:, i]) for i in (0, 1))
    return EnvSpec(
        name=task.name,
        observation=Box((observation_size,)),
        action=Box((context.model.nu,), low, high),
        time_limit=time_limit,
        control_frequency=1.0 / context.dt,
    )


def check_action(task: Task, context: Context, action: Any) -> None:
    """Raise a ValueError unless `action` is one environment's action."""
    size = context.model.nu
    if jnp.shape(action) != (size,):
        raise ValueError(
            f"{task.name!r} takes actions of shape ({size},), got "
            f"{jnp.shape(action)}; use jax.vmap for a batch of environments."
        )


def picture(task: Task, model: Any, qpos: np.ndarray, **options: Any) -> np.ndarray:
    """Draw joint positions `[nq]` as `uint8[H, W, 3]`, without GPU or display."""
    from envs.mujoco import draw, scene

    camera = scene.Camera(**task.camera)
    return draw.render(model, qpos, **{"camera": camera, **options})
