"""Ant and humanoid: tasks that observe contact forces.

Observations, rewards, termination and reset noise are those of Gymnasium's `Ant-v5` and
`Humanoid-v5` (`gymnasium/envs/mujoco`, Farama Foundation).
"""

from __future__ import annotations

from typing import Any

from envs.mujoco import noise
from envs.mujoco.task import Context, Outcome, Physics, Task, joints, within

_INFO = (
    "x_position",
    "y_position",
    "distance_from_origin",
    "x_velocity",
    "y_velocity",
    "reward_forward",
    "reward_ctrl",
    "reward_contact",
    "reward_survive",
)


def _bodies(field: Any) -> Any:
    """Flatten `[..., bodies, n]` without the world body, whose values are constant."""
    return field[..., 1:, :].reshape(*field.shape[:-2], -1)


def _march(
    c: Context, p: Physics, velocity: Any, control: Any, contact: Any, healthy: Any
) -> Outcome:
    """Forward velocity and a bonus while healthy, less control and contact costs."""
    o = c.option
    forward = o.forward_reward_weight * velocity[..., 0]
    survive = healthy * o.healthy_reward
    info = {
        "x_position": p.qpos[..., 0],
        "y_position": p.qpos[..., 1],
        "distance_from_origin": c.xp.linalg.norm(p.qpos[..., :2], axis=-1),
        "x_velocity": velocity[..., 0],
        "y_velocity": velocity[..., 1],
        "reward_forward": forward,
        "reward_ctrl": -control,
        "reward_contact": -contact,
        "reward_survive": survive,
    }
    terminated = ~healthy & bool(o.terminate_when_unhealthy)
    return Outcome(forward + survive - (control + contact), terminated, info)


# ------------------------------------------------------------------------------ ant


def _ant_forces(c: Context, p: Physics) -> Any:
    return c.xp.clip(p.cfrc_ext, *c.option.contact_force_range)


def _ant_observe(c: Context, p: Physics) -> Any:
    state = joints(c, p.qpos, p.qvel, skip=2)
    if not c.option.include_cfrc_ext_in_observation:
        return state
    return c.xp.concatenate([state, _bodies(_ant_forces(c, p))], axis=-1)


def _ant_position(c: Context, p: Physics) -> Any:
    return p.xpos[..., c.model.body(c.option.main_body).id, :2]


def _ant_after_reset(c: Context, qpos: Any, qvel: Any) -> Physics | None:
    """Contact forces are zero before the first step; the torso is where qpos says."""
    if c.model.body(c.option.main_body).id != 1:
        return None
    lead = qpos.shape[:-1]
    forces = c.xp.zeros((*lead, c.model.nbody, 6))
    # Only the torso's place is read.
    xpos = c.xp.broadcast_to(qpos[..., None, :3], (*lead, c.model.nbody, 3))
    return Physics(qpos=qpos, qvel=qvel, xpos=xpos, cfrc_ext=forces)


def _ant_outcome(c: Context, before: Any, p: Physics, action: Any) -> Outcome:
    o = c.option
    low, high = o.healthy_z_range
    height = p.qpos[..., 2]
    finite = c.xp.isfinite(p.qpos).all(axis=-1) & c.xp.isfinite(p.qvel).all(axis=-1)
    healthy = finite & (low <= height) & (height <= high)
    velocity = (_ant_position(c, p) - before) / c.dt
    control = o.ctrl_cost_weight * c.xp.square(action).sum(axis=-1)
    contact = c.xp.square(_ant_forces(c, p)).sum(axis=(-2, -1))
    return _march(c, p, velocity, control, o.contact_cost_weight * contact, healthy)


ANT = Task(
    name="ant",
    model_file="ant.xml",
    frame_skip=5,
    time_limit=1000,
    options={
        "forward_reward_weight": 1.0,
        "ctrl_cost_weight": 0.5,
        "contact_cost_weight": 5e-4,
        "healthy_reward": 1.0,
        "main_body": 1,
        "terminate_when_unhealthy": True,
        "healthy_z_range": (0.2, 1.0),
        "contact_force_range": (-1.0, 1.0),
        "reset_noise_scale": 0.1,
        "exclude_current_positions_from_observation": True,
        "include_cfrc_ext_in_observation": True,
    },
    draw=noise.normal,
    start=noise.start,
    observe=_ant_observe,
    position=_ant_position,
    outcome=_ant_outcome,
    info=_INFO,
    fields=("xpos", "cfrc_ext"),
    after_reset=_ant_after_reset,
    contact_forces=True,
    camera={"distance": 4.0, "elevation": -28.0, "height": 0.4},
)


# ------------------------------------------------------------------------- humanoid


def _humanoid_observe(c: Context, p: Physics) -> Any:
    o = c.option
    parts = [joints(c, p.qpos, p.qvel, skip=2)]
    if o.include_cinert_in_observation:
        parts.append(_bodies(p.cinert))
    if o.include_cvel_in_observation:
        parts.append(_bodies(p.cvel))
    if o.include_qfrc_actuator_in_observation:
        parts.append(p.qfrc_actuator[..., 6:])
    if o.include_cfrc_ext_in_observation:
        parts.append(_bodies(p.cfrc_ext))
    return c.xp.concatenate(parts, axis=-1)


def _centre_of_mass(c: Context, p: Physics) -> Any:
    mass = c.model.body_mass
    total = c.xp.einsum("b,...bj->...j", mass, p.xipos[..., :2])
    return total / mass.sum()


def _humanoid_outcome(c: Context, before: Any, p: Physics, action: Any) -> Outcome:
    o = c.option
    velocity = (_centre_of_mass(c, p) - before) / c.dt
    healthy = within(p.qpos[..., 2], o.healthy_z_range)
    control = o.ctrl_cost_weight * c.xp.square(p.ctrl).sum(axis=-1)
    contact = o.contact_cost_weight * c.xp.square(p.cfrc_ext).sum(axis=(-2, -1))
    contact = c.xp.clip(contact, *o.contact_cost_range)
    return _march(c, p, velocity, control, contact, healthy)


HUMANOID = Task(
    name="humanoid",
    model_file="humanoid.xml",
    frame_skip=5,
    time_limit=1000,
    options={
        "forward_reward_weight": 1.25,
        "ctrl_cost_weight": 0.1,
        "contact_cost_weight": 5e-7,
        "contact_cost_range": (-float("inf"), 10.0),
        "healthy_reward": 5.0,
        "terminate_when_unhealthy": True,
        "healthy_z_range": (1.0, 2.0),
        "reset_noise_scale": 1e-2,
        "exclude_current_positions_from_observation": True,
        "include_cinert_in_observation": True,
        "include_cvel_in_observation": True,
        "include_qfrc_actuator_in_observation": True,
        "include_cfrc_ext_in_observation": True,
    },
    draw=noise.uniform,
    start=noise.start,
    observe=_humanoid_observe,
    position=_centre_of_mass,
    outcome=_humanoid_outcome,
    info=_INFO,
    fields=("ctrl", "xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"),
    contact_forces=True,
    camera={"distance": 3.6, "azimuth": 130.0, "height": 0.9},
)

TASKS = (ANT, HUMANOID)
