"""The inverted pendulum and the inverted double pendulum on a cart.

Observations, rewards, termination and reset noise are those of Gymnasium's
`InvertedPendulum-v5` and `InvertedDoublePendulum-v5` (`gymnasium/envs/mujoco`, Farama
Foundation).
"""

from __future__ import annotations

from typing import Any

from envs.mujoco import noise
from envs.mujoco.task import Context, Outcome, Physics, Task, nowhere


def _single_observe(c: Context, p: Physics) -> Any:
    return c.xp.concatenate([p.qpos, p.qvel], axis=-1)


def _single_outcome(c: Context, before: Any, p: Physics, action: Any) -> Outcome:
    finite = c.xp.isfinite(_single_observe(c, p)).all(axis=-1)
    terminated = ~finite | (c.xp.abs(p.qpos[..., 1]) > 0.2)
    survive = c.xp.where(terminated, 0.0, 1.0)
    return Outcome(survive, terminated, {"reward_survive": survive})


INVERTED_PENDULUM = Task(
    name="inverted_pendulum",
    model_file="inverted_pendulum.xml",
    frame_skip=2,
    time_limit=1000,
    options={"reset_noise_scale": 0.01},
    draw=noise.uniform,
    start=noise.start,
    observe=_single_observe,
    position=nowhere,
    outcome=_single_outcome,
    info=("reward_survive",),
    camera={"distance": 2.8, "target": (0.0, 0.0, 0.15), "floor": -0.5},
)


def _double_observe(c: Context, p: Physics) -> Any:
    angles = p.qpos[..., 1:]
    return c.xp.concatenate(
        [
            p.qpos[..., :1],
            c.xp.sin(angles),
            c.xp.cos(angles),
            c.xp.clip(p.qvel, -10, 10),
            c.xp.clip(p.qfrc_constraint[..., :1], -10, 10),
        ],
        axis=-1,
    )


def _double_outcome(c: Context, before: Any, p: Physics, action: Any) -> Outcome:
    x, y = p.site_xpos[..., 0, 0], p.site_xpos[..., 0, 2]
    lower, upper = p.qvel[..., 1], p.qvel[..., 2]
    terminated = y <= 1
    survive = c.option.healthy_reward * c.xp.where(terminated, 0.0, 1.0)
    distance = 0.01 * x**2 + (y - 2) ** 2
    velocity = 1e-3 * lower**2 + 5e-3 * upper**2
    info = {
        "reward_survive": survive,
        "distance_penalty": -distance,
        "velocity_penalty": -velocity,
    }
    return Outcome(survive - distance - velocity, terminated, info)


INVERTED_DOUBLE_PENDULUM = Task(
    name="inverted_double_pendulum",
    model_file="inverted_double_pendulum.xml",
    frame_skip=5,
    time_limit=1000,
    options={"healthy_reward": 10.0, "reset_noise_scale": 0.1},
    draw=noise.normal,
    start=noise.start,
    observe=_double_observe,
    position=nowhere,
    outcome=_double_outcome,
    info=("reward_survive", "distance_penalty", "velocity_penalty"),
    fields=("site_xpos", "qfrc_constraint"),
    camera={"distance": 4.0, "target": (0.0, 0.0, 0.5)},
)

TASKS = (INVERTED_PENDULUM, INVERTED_DOUBLE_PENDULUM)
