"""Reacher and pusher: an arm and a target.

Observations, rewards and reset noise are those of Gymnasium's `Reacher-v5` and
`Pusher-v5` (`gymnasium/envs/mujoco`, Farama Foundation). Neither terminates.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from envs.mujoco.task import Context, Outcome, Physics, Task, nowhere


def _body(c: Context, p: Physics, name: str) -> Any:
    return p.xpos[..., c.model.body(name).id, :]


def _distance(c: Context, p: Physics, one: str, other: str) -> Any:
    return c.xp.linalg.norm(_body(c, p, one) - _body(c, p, other), axis=-1)


def _effort(c: Context, action: Any) -> Any:
    return -c.xp.square(action).sum(axis=-1) * c.option.reward_control_weight


# -------------------------------------------------------------------------- reacher


def _reacher_reset(c: Context, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Arm near zero; goal uniform in the disc of radius 0.2."""
    for_qpos, for_qvel, for_radius, for_angle = jax.random.split(key, 4)
    qpos = jax.random.uniform(for_qpos, (c.model.nq,), minval=-0.1, maxval=0.1)
    qvel = jax.random.uniform(for_qvel, (c.model.nv,), minval=-0.005, maxval=0.005)
    radius = 0.2 * jnp.sqrt(jax.random.uniform(for_radius))
    angle = jax.random.uniform(for_angle, maxval=2 * jnp.pi)
    goal = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    qpos = c.qpos.astype("float32") + qpos
    return qpos.at[-2:].set(goal), qvel.at[-2:].set(0.0)


def _reacher_observe(c: Context, p: Physics) -> Any:
    angles = p.qpos[..., :2]
    gap = _body(c, p, "fingertip") - _body(c, p, "target")
    return c.xp.concatenate(
        [
            c.xp.cos(angles),
            c.xp.sin(angles),
            p.qpos[..., 2:],
            p.qvel[..., :2],
            gap[..., :2],
        ],
        axis=-1,
    )


def _reacher_outcome(c: Context, before: Any, p: Physics, action: Any) -> Outcome:
    near = -_distance(c, p, "fingertip", "target") * c.option.reward_dist_weight
    effort = _effort(c, action)
    never = c.xp.zeros(near.shape, bool)
    return Outcome(near + effort, never, {"reward_dist": near, "reward_ctrl": effort})


REACHER = Task(
    name="reacher",
    model_file="reacher.xml",
    frame_skip=2,
    time_limit=50,
    options={"reward_dist_weight": 1.0, "reward_control_weight": 1.0},
    reset=_reacher_reset,
    observe=_reacher_observe,
    position=nowhere,
    outcome=_reacher_outcome,
    info=("reward_dist", "reward_ctrl"),
    fields=("xpos",),
    camera={"distance": 1.0, "elevation": -65.0, "target": (0.0, 0.0, 0.0)},
)


# --------------------------------------------------------------------------- pusher


def _pusher_reset(c: Context, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Arm at its initial pose; object uniform in a box, not within 0.17 of the goal."""
    for_object, for_qvel = jax.random.split(key)
    low, high = jnp.array([-0.3, -0.2]), jnp.array([0.0, 0.2])

    def draw(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rest, this = jax.random.split(carry[0])
        return rest, jax.random.uniform(this, (2,), minval=low, maxval=high)

    def too_near(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.linalg.norm(carry[1]) <= 0.17

    # The start value is at the goal, so that at least one draw is made.
    _, place = jax.lax.while_loop(too_near, draw, (for_object, jnp.zeros(2)))
    qpos = jnp.asarray(c.qpos, jnp.float32)
    qpos = qpos.at[-4:-2].set(place).at[-2:].set(0.0)
    qvel = jax.random.uniform(for_qvel, (c.model.nv,), minval=-0.005, maxval=0.005)
    return qpos, qvel.at[-4:].set(0.0)


def _pusher_observe(c: Context, p: Physics) -> Any:
    places = [_body(c, p, name) for name in ("tips_arm", "object", "goal")]
    return c.xp.concatenate([p.qpos[..., :7], p.qvel[..., :7], *places], axis=-1)


def _pusher_outcome(c: Context, before: Any, p: Physics, action: Any) -> Outcome:
    near = -_distance(c, p, "object", "tips_arm") * c.option.reward_near_weight
    home = -_distance(c, p, "object", "goal") * c.option.reward_dist_weight
    effort = _effort(c, action)
    never = c.xp.zeros(near.shape, bool)
    info = {"reward_dist": home, "reward_ctrl": effort, "reward_near": near}
    return Outcome(home + effort + near, never, info)


PUSHER = Task(
    name="pusher",
    model_file="pusher_v5.xml",
    frame_skip=5,
    time_limit=100,
    options={
        "reward_near_weight": 0.5,
        "reward_dist_weight": 1.0,
        "reward_control_weight": 0.1,
    },
    reset=_pusher_reset,
    observe=_pusher_observe,
    position=nowhere,
    outcome=_pusher_outcome,
    info=("reward_dist", "reward_ctrl", "reward_near"),
    fields=("xpos",),
    camera={
        "distance": 2.4,
        "azimuth": 115.0,
        "elevation": -48.0,
        "target": (0.4, -0.35, -0.15),
    },
)

TASKS = (REACHER, PUSHER)
