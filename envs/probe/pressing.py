"""A planar arm that presses a button: a table-top task without contact physics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.probe._common import check_positive, finish
from rlx.types import Array, Box, Env, EnvSpec, Key, Step

LINK = 0.5
"""Length of both links in metres."""
MAX_BUTTON_SPEED = 8.0
"""Radians per second that a joint tends to under a full action."""
BUTTON_DT = 0.05
NEAR = 0.05
"""Metres within which the tip presses."""
DEPTH = 0.25
"""How far the button must go in: five steps of pressing."""
RADII = (0.4, 0.9)


@struct.dataclass
class ButtonState:
    """The arm, the button and the clock."""

    angle: Array
    """`[2]` of the first link from the x axis, of the second from the first."""
    velocity: Array
    """`[2]` radians per second."""
    button: Array
    """`[2]` where it is, in metres."""
    depth: Array
    """How far it was pressed; it does not come back."""
    time: Array


def tip(angle: Array) -> Array:
    """Where the arm ends `[2]`, its base being (0, 0)."""
    along = jnp.cumsum(angle)
    return LINK * jnp.stack([jnp.sum(jnp.cos(along)), jnp.sum(jnp.sin(along))])


def button(time_limit: int | None = 100) -> Env:
    """Reach a button at a random place, and hold the tip on it until it is pressed.

        q̇' = q̇ + 0.05 (8a − q̇)     q' = q + 0.05 q̇'
        reward = −|tip − button| + 2·[pressing] + 10·[pressed], of the state reached

    The tip presses within 5 cm of the button, which sinks by 0.05 a step and is pressed
    at 0.25. `info["success"]` says whether it is.

    Args:
      time_limit: steps until truncation; None for none. Nothing terminates.

    Raises:
      ValueError: `time_limit` is less than 1.
    """
    check_positive("time_limit", time_limit)

    def observe(state: ButtonState) -> Array:
        return jnp.concatenate(
            [
                jnp.cos(state.angle),
                jnp.sin(state.angle),
                state.velocity / MAX_BUTTON_SPEED,
                state.button,
                tip(state.angle) - state.button,
                state.depth[None] / DEPTH,
            ]
        )

    def reset(key: Key) -> tuple[ButtonState, Array]:
        angle_key, radius_key, bearing_key = jax.random.split(key, 3)
        bearing = jax.random.uniform(bearing_key, minval=-jnp.pi, maxval=jnp.pi)
        low, high = RADII
        radius = jax.random.uniform(radius_key, minval=low, maxval=high)
        state = ButtonState(
            angle=jax.random.uniform(angle_key, (2,), minval=-jnp.pi, maxval=jnp.pi),
            velocity=jnp.zeros(2),
            button=radius * jnp.stack([jnp.cos(bearing), jnp.sin(bearing)]),
            depth=jnp.zeros(()),
            time=jnp.int32(0),
        )
        return state, observe(state)

    def step(state: ButtonState, action: Array, key: Key) -> tuple[ButtonState, Step]:
        del key
        wanted = MAX_BUTTON_SPEED * jnp.clip(action, -1.0, 1.0)
        velocity = state.velocity + BUTTON_DT * (wanted - state.velocity)
        angle = state.angle + BUTTON_DT * velocity
        distance = jnp.linalg.norm(tip(angle) - state.button)
        pressing = distance < NEAR
        depth = jnp.minimum(state.depth + NEAR * pressing, DEPTH)
        # Five steps of 0.05 in float32 may end a rounding short of 0.25.
        pressed = depth > DEPTH - 0.5 * NEAR
        reward = -distance + 2.0 * pressing + 10.0 * pressed
        state = state.replace(
            angle=angle, velocity=velocity, depth=depth, time=state.time + 1
        )
        never = jnp.bool_(False)
        result = finish(observe(state), reward, never, state.time, time_limit)
        success = {"success": pressed.astype(jnp.float32)}
        return state, result.replace(info=success)

    spec = EnvSpec(
        "probe/button",
        Box((11,)),
        Box((2,), -1.0, 1.0),
        time_limit,
        1 / BUTTON_DT,
    )
    return Env(reset, step, spec, _draw)


def _draw(state: ButtonState, **size: int) -> np.ndarray:
    from envs.probe import draw

    return draw.button(state, **size)
