"""Planar runners and the swimmer: all they need is in joint positions and velocities.

Observations, rewards, termination and reset noise are those of Gymnasium's v5
environments of the same names (`gymnasium/envs/mujoco/*_v5.py`, Farama Foundation),
whose documentation describes each element.
"""

from __future__ import annotations

from typing import Any

from envs.mujoco import noise
from envs.mujoco.task import Context, Outcome, Physics, Task, joints, within

_RUNNER = {
    "forward_reward_weight": 1.0,
    "ctrl_cost_weight": 1e-3,
    "reset_noise_scale": 5e-3,
    "exclude_current_positions_from_observation": True,
}
_HEALTH = {"healthy_reward": 1.0, "terminate_when_unhealthy": True}


def _root_x(c: Context, p: Physics) -> Any:
    return p.qpos[..., :1]


def _root_xy(c: Context, p: Physics) -> Any:
    return p.qpos[..., :2]


# ------------------------------------------------------------ hopper and walker2d


def _walker_observe(c: Context, p: Physics) -> Any:
    return joints(c, p.qpos, c.xp.clip(p.qvel, -10, 10), skip=1)


def _walker_healthy(c: Context, p: Physics) -> Any:
    height = within(p.qpos[..., 1], c.option.healthy_z_range)
    return height & within(p.qpos[..., 2], c.option.healthy_angle_range)


def _hopper_healthy(c: Context, p: Physics) -> Any:
    state = c.xp.concatenate([p.qpos[..., 2:], p.qvel], axis=-1)
    bounded = within(state, c.option.healthy_state_range).all(axis=-1)
    return bounded & _walker_healthy(c, p)


def _walk(c: Context, before: Any, p: Physics, action: Any, healthy: Any) -> Outcome:
    """Forward velocity, a bonus while healthy, less the cost of control."""
    o = c.option
    x = p.qpos[..., 0]
    velocity = (x - before[..., 0]) / c.dt
    forward = o.forward_reward_weight * velocity
    survive = healthy * o.healthy_reward
    control = o.ctrl_cost_weight * c.xp.square(action).sum(axis=-1)
    info = {
        "x_position": x,
        "z_distance_from_origin": p.qpos[..., 1] - c.qpos[1],
        "x_velocity": velocity,
        "reward_forward": forward,
        "reward_ctrl": -control,
        "reward_survive": survive,
    }
    terminated = ~healthy & bool(o.terminate_when_unhealthy)
    return Outcome(forward + survive - control, terminated, info)


def _hopper_outcome(c: Context, before: Any, p: Physics, action: Any) -> Outcome:
    return _walk(c, before, p, action, _hopper_healthy(c, p))


def _walker_outcome(c: Context, before: Any, p: Physics, action: Any) -> Outcome:
    return _walk(c, before, p, action, _walker_healthy(c, p))


_WALK_INFO = (
    "x_position",
    "z_distance_from_origin",
    "x_velocity",
    "reward_forward",
    "reward_ctrl",
    "reward_survive",
)

HOPPER = Task(
    name="hopper",
    model_file="hopper.xml",
    frame_skip=4,
    time_limit=1000,
    options={
        **_RUNNER,
        **_HEALTH,
        "healthy_state_range": (-100.0, 100.0),
        "healthy_z_range": (0.7, float("inf")),
        "healthy_angle_range": (-0.2, 0.2),
    },
    draw=noise.uniform,
    start=noise.start,
    observe=_walker_observe,
    position=_root_x,
    outcome=_hopper_outcome,
    info=_WALK_INFO,
    camera={"distance": 3.0, "elevation": -12.0, "height": 0.75},
)

WALKER2D = Task(
    name="walker2d",
    model_file="walker2d_v5.xml",
    frame_skip=4,
    time_limit=1000,
    options={
        **_RUNNER,
        **_HEALTH,
        "healthy_z_range": (0.8, 2.0),
        "healthy_angle_range": (-1.0, 1.0),
    },
    draw=noise.uniform,
    start=noise.start,
    observe=_walker_observe,
    position=_root_x,
    outcome=_walker_outcome,
    info=_WALK_INFO,
    camera={"distance": 3.0, "elevation": -12.0, "height": 0.75},
)


# -------------------------------------------------------- half cheetah and swimmer


def _run(c: Context, velocity: Any, action: Any) -> Outcome:
    """Forward velocity less the cost of control; the episode never terminates."""
    forward = c.option.forward_reward_weight * velocity
    control = c.option.ctrl_cost_weight * c.xp.square(action).sum(axis=-1)
    never = c.xp.zeros(velocity.shape, bool)
    info = {"reward_forward": forward, "reward_ctrl": -control}
    return Outcome(forward - control, never, info)


def _cheetah_observe(c: Context, p: Physics) -> Any:
    return joints(c, p.qpos, p.qvel, skip=1)


def _cheetah_outcome(c: Context, before: Any, p: Physics, action: Any) -> Outcome:
    x = p.qpos[..., 0]
    velocity = (x - before[..., 0]) / c.dt
    outcome = _run(c, velocity, action)
    info = {"x_position": x, "x_velocity": velocity, **outcome.info}
    return outcome._replace(info=info)


HALF_CHEETAH = Task(
    name="half_cheetah",
    model_file="half_cheetah.xml",
    frame_skip=5,
    time_limit=1000,
    options={**_RUNNER, "ctrl_cost_weight": 0.1, "reset_noise_scale": 0.1},
    draw=noise.normal,
    start=noise.start,
    observe=_cheetah_observe,
    position=_root_x,
    outcome=_cheetah_outcome,
    info=("x_position", "x_velocity", "reward_forward", "reward_ctrl"),
    camera={"distance": 3.2, "elevation": -14.0, "height": 0.45},
)


def _swimmer_observe(c: Context, p: Physics) -> Any:
    return joints(c, p.qpos, p.qvel, skip=2)


def _swimmer_outcome(c: Context, before: Any, p: Physics, action: Any) -> Outcome:
    place = p.qpos[..., :2]
    velocity = (place - before) / c.dt
    outcome = _run(c, velocity[..., 0], action)
    info = {
        "x_position": place[..., 0],
        "y_position": place[..., 1],
        "distance_from_origin": c.xp.linalg.norm(place, axis=-1),
        "x_velocity": velocity[..., 0],
        "y_velocity": velocity[..., 1],
        **outcome.info,
    }
    return outcome._replace(info=info)


SWIMMER = Task(
    name="swimmer",
    model_file="swimmer.xml",
    frame_skip=4,
    time_limit=1000,
    options={**_RUNNER, "ctrl_cost_weight": 1e-4, "reset_noise_scale": 0.1},
    draw=noise.uniform,
    start=noise.start,
    observe=_swimmer_observe,
    position=_root_xy,
    outcome=_swimmer_outcome,
    info=(
        "x_position",
        "y_position",
        "distance_from_origin",
        "x_velocity",
        "y_velocity",
        "reward_forward",
        "reward_ctrl",
    ),
    camera={"distance": 5.0, "elevation": -55.0},
)

TASKS = (HOPPER, WALKER2D, HALF_CHEETAH, SWIMMER)
