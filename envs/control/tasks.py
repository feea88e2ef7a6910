"""Walker and cheetah: observations, rewards and starts of the suite.

Tassa et al. 2018 (DeepMind Control Suite), https://arxiv.org/abs/1801.00690, with the
constants of dm_control's `walker.py`, `cheetah.py` and `rewards.py`. Rewards lie in
[0, 1]; an episode never terminates and is cut after 1000 steps.
"""

from __future__ import annotations

import math
from typing import Any

import jax

from envs.control import models, planar
from envs.mujoco.task import Context, Outcome, Physics, Task, nowhere

STAND_HEIGHT = 1.2
"""Metres: of the walker's torso."""
SPEEDS = {"walker_stand": 0.0, "walker_walk": 1.0, "walker_run": 8.0}
"""Metres per second that the walker's tasks ask for."""
CHEETAH_SPEED = 10.0


def above(c: Context, x: Any, low: float, margin: float, edge: float) -> Any:
    """1 from `low` upwards, falling linearly to `edge` at `low − margin`, to 0 below.

    The suite's `tolerance` of the bounds (low, ∞) with a linear sigmoid. Elementwise.
    """
    distance = c.xp.maximum(low - x, 0) / margin
    return c.xp.maximum(1 - (1 - edge) * distance, 0)


def near(c: Context, x: Any, low: float, margin: float) -> Any:
    """1 from `low` upwards, below a Gaussian that is 0.1 at `low − margin`.

    The suite's `tolerance` of the bounds (low, ∞) with its default sigmoid.
    Elementwise.
    """
    distance = c.xp.maximum(low - x, 0) / margin
    return c.xp.exp(math.log(0.1) * distance**2)


# ------------------------------------------------------------------------- starts


def _draw(c: Context, key: jax.Array) -> jax.Array:
    """Return `[nq]` draws from [0, 1)."""
    return jax.random.uniform(key, (c.model.nq,))


def _limited(c: Context, draws: Any) -> Any:
    """Joint positions drawn uniformly within their limits; 0 where there are none."""
    low, high = c.model.jnt_range.T.astype(draws.dtype)  # 0, 0 without limits
    return low + (high - low) * draws


def _walker_start(c: Context, draws: Any) -> tuple[Any, Any]:
    """Any pose at any pitch, at rest, the torso's frame at its height."""
    root = c.model.jnt_bodyid == 1
    hinge = planar.plane_of(c.model).turns.any(axis=1)
    pitch = (root & hinge).astype(draws.dtype) * (2 * draws - 1) * math.pi
    return _limited(c, draws) + pitch, 0 * draws


def _cheetah_start(c: Context, draws: Any) -> tuple[Any, Any]:
    """Any pose, upright; it then falls for 200 steps of the physics."""
    return _limited(c, draws), 0 * draws


# ------------------------------------------------------------------------- walker


def _height(c: Context, p: Physics) -> Any:
    return models.WALKER.height + p.qpos[..., models.WALKER.slides.index("z")]


def _walker_observe(c: Context, p: Physics) -> Any:
    """Two components of each body's x axis, the torso's height, all velocities."""
    pitch = planar.pitches(c, p)
    axes = c.xp.stack([c.xp.cos(pitch), c.xp.sin(pitch)], axis=-1)
    axes = axes.reshape(*pitch.shape[:-1], -1)
    return c.xp.concatenate([axes, _height(c, p)[..., None], p.qvel], axis=-1)


def _walker_outcome(c: Context, before: Any, p: Physics, action: Any) -> Outcome:
    """Three parts standing and one upright, times moving where that is asked."""
    height, speed = _height(c, p), planar.speed(c, p)
    upright = c.xp.cos(planar.pitches(c, p)[..., 0])
    standing = near(c, height, STAND_HEIGHT, margin=STAND_HEIGHT / 2)
    reward = (3 * standing + (1 + upright) / 2) / 4
    wanted = c.option.move_speed
    if wanted:
        moving = above(c, speed, wanted, margin=wanted / 2, edge=0.5)
        reward = reward * (5 * moving + 1) / 6
    info = {"height": height, "upright": upright, "speed": speed}
    return Outcome(reward, _never(c, reward), info)


def _walker(name: str) -> Task:
    return Task(
        name=f"control/{name}",
        model_file=models.mjcf(models.WALKER),
        frame_skip=10,
        time_limit=1000,
        options={"move_speed": SPEEDS[name]},
        draw=_draw,
        start=_walker_start,
        observe=_walker_observe,
        position=nowhere,
        outcome=_walker_outcome,
        info=("height", "upright", "speed"),
        camera={"distance": 3.6, "elevation": -12.0, "height": 0.85},
    )


# ------------------------------------------------------------------------ cheetah


def _cheetah_observe(c: Context, p: Physics) -> Any:
    """Joint positions but for the horizontal one, and velocities."""
    return c.xp.concatenate([p.qpos[..., 1:], p.qvel], axis=-1)


def _cheetah_outcome(c: Context, before: Any, p: Physics, action: Any) -> Outcome:
    speed = planar.speed(c, p)
    wanted = c.option.move_speed
    reward = above(c, speed, wanted, margin=wanted, edge=0.0)
    return Outcome(reward, _never(c, reward), {"speed": speed})


_CHEETAH = Task(
    name="control/cheetah_run",
    model_file=models.mjcf(models.CHEETAH),
    frame_skip=1,
    time_limit=1000,
    options={"move_speed": CHEETAH_SPEED},
    draw=_draw,
    start=_cheetah_start,
    settle=200,
    observe=_cheetah_observe,
    position=nowhere,
    outcome=_cheetah_outcome,
    info=("speed",),
    camera={"distance": 3.2, "elevation": -14.0, "height": 0.5},
)


def _never(c: Context, reward: Any) -> Any:
    return c.xp.zeros(reward.shape, bool)


TASKS = {
    task.name.removeprefix("control/"): task
    for task in (*(_walker(name) for name in SPEEDS), _CHEETAH)
}
