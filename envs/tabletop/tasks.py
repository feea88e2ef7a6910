"""The tasks: where things stand, what is seen, what counts.

All of them have one grammar. A fixture stands on the table at a place drawn at each
reset, and has one joint (button, drawer, door), which begins at `start` and should come
to `goal`. The reward is that of Meta-World's second version in its form and scale,

    r = 2 · reach + 8 · progress,  10 where the task is solved,

with `closeness` for both terms: of the fingertips to the place from which to act, and
of the joint to its goal (Yu et al. 2019, https://arxiv.org/abs/1910.10897, and the
rewards that later releases gave its tasks). Unlike there, margins are constants and do
not depend on how the episode began, and no term asks for closed jaws.

Where the fingers must get behind a handle, the way there leads over it: the fingertips
should be `clearance` above their target until they are within 3 cm of it in the plane.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from envs.mujoco.task import Context, Outcome, Physics, Task, nowhere
from envs.tabletop.reward import closeness

MODELS = pathlib.Path(__file__).with_name("models")
ARM_JOINTS = 6
FIELDS = ("site_xpos", "actuator_length", "actuator_velocity")
JAW_TRAVEL = 0.03
REACH_MARGIN = 0.3
"""Metres from the target at which a tenth of the reward for reaching is left."""
COLUMN = 0.015
"""Metres from the target, in the plane, up to which the hand may be as low as it."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What one task is made of."""

    model: str
    place: tuple[tuple[float, float], ...]
    """Least and greatest offset of the fixture along x, y (and z) from the model's."""
    site: str = "target"
    """Where the fingertips should be."""
    reach_within: float = 0.02
    """Metres from the site that are near enough."""
    clearance: float = 0.0
    """Metres above the site at which the hand should come."""
    start: float = 0.0
    """Where the joint begins."""
    goal: float = 1.0
    """Where it should come to: metres, or radians."""
    tolerance: float = 0.1
    """Error of the joint that counts as solved."""


LAYOUTS = {
    "reach": Layout("goal.xml", ((-0.1, 0.1), (-0.2, 0.2), (-0.1, 0.1))),
    "button_press": Layout(
        "button.xml", ((-0.03, 0.03), (-0.15, 0.15)), goal=0.05, tolerance=0.01
    ),
    "drawer_close": Layout(
        "drawer.xml",
        ((-0.02, 0.02), (-0.12, 0.12)),
        start=0.16,
        goal=0.0,
        tolerance=0.02,
    ),
    "drawer_open": Layout(
        "drawer.xml",
        ((-0.02, 0.02), (-0.12, 0.12)),
        site="behind",
        clearance=0.08,
        goal=0.15,
        tolerance=0.02,
    ),
    "door_open": Layout(
        "door.xml",
        ((-0.02, 0.02), (-0.06, 0.1)),
        site="behind",
        clearance=0.08,
        goal=1.05,
        tolerance=0.1,
    ),
}


def _draw(places: int, c: Context, key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (places,), minval=-1.0)


def _start(layout: Layout, c: Context, draws: Any) -> tuple[Any, Any]:
    """The arm at home, the fixture at its place, the joint where it begins."""
    xp, lead = c.xp, draws.shape[:-1]
    low, high = xp.asarray(layout.place).T
    offset = 0.5 * (low + high) + 0.5 * (high - low) * draws
    arm = xp.broadcast_to(c.qpos[:ARM_JOINTS], (*lead, ARM_JOINTS))
    parts = [arm, offset]
    if _has_joint(layout):
        parts.append(xp.full((*lead, 1), layout.start))
    qpos = xp.concatenate(parts, axis=-1)
    return qpos, xp.zeros((*lead, c.model.nv))


def _has_joint(layout: Layout) -> bool:
    return len(layout.place) == 2


def _target(layout: Layout, c: Context, p: Physics) -> Any:
    """Where the fingertips should be, `[..., 3]`."""
    return p.site_xpos[..., c.model.site(layout.site).id, :]


def _joint(layout: Layout, c: Context, p: Physics) -> tuple[Any, Any]:
    """How much of the joint's way is done (1 at its goal), and its speed likewise."""
    if not _has_joint(layout):
        return c.xp.zeros_like(p.qpos[..., 0]), c.xp.zeros_like(p.qpos[..., 0])
    way = layout.goal - layout.start
    return (p.qpos[..., -1] - layout.start) / way, p.qvel[..., -1] / way


def _observe(layout: Layout, c: Context, p: Physics) -> Any:
    """`[..., 15]`: see `envs.tabletop`."""
    hand, target = p.actuator_length[..., :3], _target(layout, c, p)
    jaws = p.actuator_length[..., 3:] / JAW_TRAVEL
    moved, speed = _joint(layout, c, p)
    return c.xp.concatenate(
        [
            hand,
            jaws,
            p.actuator_velocity[..., :3],
            target,
            target - hand,
            moved[..., None],
            speed[..., None],
        ],
        axis=-1,
    )


def _distance(layout: Layout, c: Context, gap: Any) -> Any:
    """Metres to the target, by way of the place above it where there is one."""
    xp = c.xp
    if not layout.clearance:
        return xp.linalg.norm(gap, axis=-1)
    level = xp.linalg.norm(gap[..., :2], axis=-1)
    above = layout.clearance * xp.clip(level / COLUMN - 1.0, 0.0, 1.0)
    return xp.hypot(level, gap[..., 2] + above)


def _outcome(
    layout: Layout, c: Context, before: Any, p: Physics, action: Any
) -> Outcome:
    xp = c.xp
    gap = _target(layout, c, p) - p.actuator_length[..., :3]
    distance = _distance(layout, c, gap)
    reach = closeness(xp, distance, layout.reach_within, REACH_MARGIN)
    moved, _ = _joint(layout, c, p)
    if _has_joint(layout):
        way = abs(layout.goal - layout.start)
        error = way * xp.maximum(1.0 - moved, 0.0)
        progress = closeness(xp, error, layout.tolerance, way)
        solved = error <= layout.tolerance
        reward = 2.0 * reach + 8.0 * progress
    else:
        reward, solved = 10.0 * reach, distance <= layout.reach_within
    reward = xp.where(solved, 10.0, reward)
    info = {"success": 1.0 * solved, "reach": reach, "moved": moved}
    return Outcome(reward, xp.zeros(reward.shape, bool), info)


def _make(name: str, layout: Layout) -> Task:
    return Task(
        name=f"tabletop/{name}",
        model_file=str(MODELS / layout.model),
        frame_skip=8,
        time_limit=100,
        options={},
        draw=functools.partial(_draw, len(layout.place)),
        start=functools.partial(_start, layout),
        observe=functools.partial(_observe, layout),
        position=nowhere,
        outcome=functools.partial(_outcome, layout),
        info=("success", "reach", "moved"),
        fields=FIELDS,
        camera={
            "distance": 1.5,
            "azimuth": 48.0,
            "elevation": -28.0,
            "target": (0.4, 0.0, 0.2),
        },
    )


TASKS = {name: _make(name, layout) for name, layout in LAYOUTS.items()}
