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


def _append(c: Context, vector: Any, *values: Any) -> Any:
    """Return `[..., n]` with scalars `[...]` behind it."""
    tail = [c.xp.broadcast_to(x, vector.shape[:-1])[..., None] for x in values]
    return c.xp.concatenate([vector, *tail], axis=-1)


# -------------------------------------------------------------------------- reacher


def _reacher_draw(c: Context, key: jax.Array) -> jax.Array:
    """Return draws for positions and velocities, the goal's radius and its angle."""
    return jax.random.uniform(key, (c.model.nq + c.model.nv + 2,), minval=-1.0)


def _reacher_start(c: Context, draws: Any) -> tuple[Any, Any]:
    """Arm near zero; goal uniform in the disc of radius 0.2."""
    nq, nv = c.model.nq, c.model.nv
    radius = 0.2 * c.xp.sqrt(0.5 + 0.5 * draws[..., -2])
    angle = c.xp.pi * draws[..., -1]
    goal = [radius * c.xp.cos(angle), radius * c.xp.sin(angle)]
    qpos = c.qpos[:-2] + 0.1 * draws[..., : nq - 2]
    qvel = 0.005 * draws[..., nq : nq + nv - 2]
    return _append(c, qpos, *goal), _append(c, qvel, 0.0, 0.0)


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
    draw=_reacher_draw,
    start=_reacher_start,
    observe=_reacher_observe,
    position=nowhere,
    outcome=_reacher_outcome,
    info=("reward_dist", "reward_ctrl"),
    fields=("xpos",),
    camera={"distance": 1.0, "elevation": -65.0, "target": (0.0, 0.0, 0.0)},
)


# --------------------------------------------------------------------------- pusher


def _pusher_draw(c: Context, key: jax.Array) -> jax.Array:
    """Return draws for velocities and the object's place, far enough from the goal."""
    for_object, for_qvel = jax.random.split(key)

    def draw(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rest, this = jax.random.split(carry[0])
        return rest, jax.random.uniform(this, (2,), minval=-1.0)

    def too_near(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, y = _object_place(carry[1])
        return jnp.hypot(x, y) <= 0.17

    # The start value lies on the goal, so that at least one draw is made.
    _, place = jax.lax.while_loop(too_near, draw, (for_object, jnp.array([1.0, 0.0])))
    qvel = jax.random.uniform(for_qvel, (c.model.nv,), minval=-1.0)
    return jnp.concatenate([qvel, place])


def _object_place(draws: Any) -> tuple[Any, Any]:
    """Return x in [-0.3, 0) and y in [-0.2, 0.2): the object, seen from the goal."""
    return 0.15 * (draws[..., -2] - 1), 0.2 * draws[..., -1]


def _pusher_start(c: Context, draws: Any) -> tuple[Any, Any]:
    """Arm at its initial pose, object at its place, goal at the origin."""
    qpos = c.xp.broadcast_to(c.qpos[:-4], (*draws.shape[:-1], c.model.nq - 4))
    qpos = _append(c, qpos, *_object_place(draws), 0.0, 0.0)
    qvel = 0.005 * draws[..., : c.model.nv - 4]
    return qpos, _append(c, qvel, 0.0, 0.0, 0.0, 0.0)


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
    draw=_pusher_draw,
    start=_pusher_start,
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
