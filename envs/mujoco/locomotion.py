"""Tasks that run, hop or swim: Gymnasium's v5 environments of the same names.

Observations, rewards, termination and reset noise follow gymnasium
(`gymnasium/envs/mujoco/*_v5.py`, Farama Foundation), whose documentation describes
each element.
"""

from __future__ import annotations

from typing import Any

import jax

from envs.mujoco.task import Context, Outcome, Physics, Task

_INFINITY = float("inf")


def _uniform_reset(c: Context, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Initial state plus uniform noise on positions and on velocities."""
    scale = c.option.reset_noise_scale
    for_qpos, for_qvel = jax.random.split(key)
    qpos = jax.random.uniform(for_qpos, (c.model.nq,), minval=-scale, maxval=scale)
    qvel = jax.random.uniform(for_qvel, (c.model.nv,), minval=-scale, maxval=scale)
    return c.qpos.astype("float32") + qpos, qvel


def _normal_reset(c: Context, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Initial state plus uniform noise on positions, normal noise on velocities."""
    scale = c.option.reset_noise_scale
    for_qpos, for_qvel = jax.random.split(key)
    qpos = jax.random.uniform(for_qpos, (c.model.nq,), minval=-scale, maxval=scale)
    qvel = scale * jax.random.normal(for_qvel, (c.model.nv,))
    return c.qpos.astype("float32") + qpos, qvel


def _within(value: Any, bounds: tuple[float, float]) -> Any:
    return (bounds[0] < value) & (value < bounds[1])


def _joints(c: Context, qpos: Any, qvel: Any, skip: int) -> Any:
    """Positions (without the first `skip`, unless asked for) and velocities."""
    if c.option.exclude_current_positions_from_observation:
        qpos = qpos[..., skip:]
    return c.xp.concatenate([qpos, qvel], axis=-1)


def _root_x(c: Context, p: Physics) -> Any:
    return p.qpos[..., :1]


# ------------------------------------------------------------ hopper and walker2d


def _walker_observe(c: Context, p: Physics) -> Any:
    return _joints(c, p.qpos, c.xp.clip(p.qvel, -10, 10), skip=1)


def _hopper_healthy(c: Context, p: Physics) -> Any:
    o = c.option
    state = c.xp.concatenate([p.qpos[..., 2:], p.qvel], axis=-1)
    return (
        _within(state, o.healthy_state_range).all(axis=-1)
        & _within(p.qpos[..., 1], o.healthy_z_range)
        & _within(p.qpos[..., 2], o.healthy_angle_range)
    )


def _walker_outcome(
    c: Context, before: Any, p: Physics, action: Any, healthy: Any
) -> Outcome:
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
    return _walker_outcome(c, before, p, action, _hopper_healthy(c, p))


HOPPER = Task(
    name="hopper",
    model_file="hopper.xml",
    frame_skip=4,
    time_limit=1000,
    options={
        "forward_reward_weight": 1.0,
        "ctrl_cost_weight": 1e-3,
        "healthy_reward": 1.0,
        "terminate_when_unhealthy": True,
        "healthy_state_range": (-100.0, 100.0),
        "healthy_z_range": (0.7, _INFINITY),
        "healthy_angle_range": (-0.2, 0.2),
        "reset_noise_scale": 5e-3,
        "exclude_current_positions_from_observation": True,
    },
    reset=_uniform_reset,
    observe=_walker_observe,
    position=_root_x,
    outcome=_hopper_outcome,
    info=(
        "x_position",
        "z_distance_from_origin",
        "x_velocity",
        "reward_forward",
        "reward_ctrl",
        "reward_survive",
    ),
)

TASKS = (HOPPER,)
