"""Controllers that solve the tasks from what they observe, without memory.

A policy is a pure function of one observation, so that it runs under `jit`, `vmap` and
`scan`, and demonstrates from any state:

    act = scripted.policy("door_open")
    action = act(observation)              # [..., 15] -> [..., 4]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from envs.mujoco.naming import check_choice
from envs.tabletop.tasks import LAYOUTS, Layout
from rlx.types import Array

SPEED = 0.4
"""Metres per second of a full action."""
GAIN = 8.0
"""Speed per metre of error, 1/s."""
ALIGNED = 0.012
"""Metres beside the line of the push that are near enough."""
BEFORE = 0.05
"""Metres before the target, from where a push begins."""
ENOUGH = 0.97
"""Share of the joint's way after which a push stops."""
HANDLE = (-0.041, -0.24)
"""Where the fingers pull the door's handle, seen from its hinge when it is shut."""


class _Seen(NamedTuple):
    """An observation, in parts."""

    gap: Array
    """`[..., 3]` from the fingertips to the target."""
    moved: Array
    """`[...]` how much of its way the joint has done."""


def policy(name: str) -> Callable[[Array], Array]:
    """Return the controller of the task `name`: `observation [..., 15] -> [..., 4]`.

    Raises:
      ValueError: there is no such task; the nearest is suggested.
    """
    check_choice("table-top task", name, LAYOUTS)
    layout = LAYOUTS[name]

    def act(observation: Array) -> Array:
        seen = _Seen(observation[..., 10:13], observation[..., 13])
        if name == "reach":
            velocity = GAIN * seen.gap
        elif layout.clearance:
            velocity = _hook(seen, _direction(name, layout, seen.moved))
        else:
            velocity = _push(seen)
        motion = jnp.clip(velocity / SPEED, -1.0, 1.0)
        closed = jnp.ones_like(motion[..., :1])
        return jnp.concatenate([motion, closed], axis=-1)

    return act


def _push(seen: _Seen) -> Array:
    """Go to a place before the target, then on along x until the joint arrives."""
    aligned = jnp.linalg.norm(seen.gap[..., 1:], axis=-1) < ALIGNED
    back = GAIN * (seen.gap[..., 0] - BEFORE)
    forward = jnp.where(aligned, SPEED, back)
    forward = jnp.where(seen.moved < ENOUGH, forward, 0.0)
    return jnp.concatenate([forward[..., None], GAIN * seen.gap[..., 1:]], axis=-1)


def _hook(seen: _Seen, direction: Array) -> Array:
    """Go over the target, down behind the handle, and pull along `direction`."""
    level = jnp.linalg.norm(seen.gap[..., :2], axis=-1)
    over = level < ALIGNED
    hooked = (level < 0.04) & (jnp.abs(seen.gap[..., 2]) < 0.02)
    high = -seen.gap[..., 2] > 0.05
    across = jnp.where((high | over)[..., None], GAIN * seen.gap[..., :2], 0.0)
    height = jnp.where(over, 0.0, 0.08)
    up = GAIN * (seen.gap[..., 2] + height)
    approach = jnp.concatenate([across, up[..., None]], axis=-1)
    # While it pulls, the error across the direction is made good, not that along it.
    along = jnp.sum(seen.gap * direction, axis=-1, keepdims=True) * direction
    pull = SPEED * direction + GAIN * (seen.gap - along)
    return jnp.where(hooked[..., None], pull, approach)


def _direction(name: str, layout: Layout, moved: Array) -> Array:
    """Which way the handle goes, `[..., 3]` of length one."""
    zero = jnp.zeros_like(moved)
    if name == "drawer_open":
        return jnp.stack([zero - 1.0, zero, zero], axis=-1)
    # The door turns clockwise seen from above: d/dθ R(−θ) (x, y).
    angle = layout.goal * jnp.clip(moved, 0.0, 1.5)
    x, y = HANDLE
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    tangent = jnp.stack([-x * sine + y * cosine, -x * cosine - y * sine, zero], axis=-1)
    return tangent / jnp.hypot(x, y)
