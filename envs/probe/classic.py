"""Pendulum-v1 and CartPole-v1 in pure JAX.

Semantics of Gymnasium 1.x (https://gymnasium.farama.org), compared with it step by
step in the tests; computed in float32, where Gymnasium uses float64.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.probe._common import check_positive, finish
from rlx.types import Array, Box, Discrete, Env, EnvSpec, Key, Step

MAX_SPEED = 8.0
MAX_TORQUE = 2.0
PENDULUM_DT = 0.05

CARTPOLE_DT = 0.02
GRAVITY = 9.8
POLE_MASS = 0.1
TOTAL_MASS = 1.1
HALF_POLE = 0.5
FORCE = 10.0
POSITION_LIMIT = 2.4
ANGLE_LIMIT = 12 * 2 * math.pi / 360


@struct.dataclass
class PendulumState:
    """The physics and the clock."""

    angle: Array
    """θ in radians, 0 upright, not wrapped."""
    velocity: Array
    """ω in radians per second."""
    time: Array


def pendulum(time_limit: int | None = 200) -> Env:
    """Pendulum-v1: swing up a pendulum (m = l = 1, g = 10) with too weak a motor.

        ω' = clip(ω + (15 sin θ + 3u)·0.05, ±8)     θ' = θ + 0.05ω'
        reward = −(wrap(θ)² + 0.1ω² + 0.001u²) of the state before the step

    Two things are scaled to order 1 against Gymnasium: the action is in [-1, 1], with
    the torque u = 2·clip(a, ±1), and the observation is [cos θ, sin θ, ω/8].

    Args:
      time_limit: steps until truncation; None for none. Nothing terminates.

    Raises:
      ValueError: `time_limit` is less than 1.
    """
    check_positive("time_limit", time_limit)

    def observe(state: PendulumState) -> Array:
        return jnp.stack(
            [jnp.cos(state.angle), jnp.sin(state.angle), state.velocity / MAX_SPEED]
        )

    def reset(key: Key) -> tuple[PendulumState, Array]:
        limit = jnp.array([jnp.pi, 1.0])
        angle, velocity = jax.random.uniform(key, (2,), minval=-limit, maxval=limit)
        state = PendulumState(angle=angle, velocity=velocity, time=jnp.int32(0))
        return state, observe(state)

    def step(
        state: PendulumState, action: Array, key: Key
    ) -> tuple[PendulumState, Step]:
        del key
        torque = MAX_TORQUE * jnp.clip(action[0], -1.0, 1.0)
        wrapped = (state.angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
        cost = wrapped**2 + 0.1 * state.velocity**2 + 0.001 * torque**2
        acceleration = 15.0 * jnp.sin(state.angle) + 3.0 * torque
        velocity = state.velocity + acceleration * PENDULUM_DT
        velocity = jnp.clip(velocity, -MAX_SPEED, MAX_SPEED)
        angle = state.angle + velocity * PENDULUM_DT
        state = PendulumState(angle=angle, velocity=velocity, time=state.time + 1)
        never = jnp.bool_(False)
        return state, finish(observe(state), -cost, never, state.time, time_limit)

    spec = EnvSpec(
        "probe/pendulum",
        Box((3,), -1.0, 1.0),
        Box((1,), -1.0, 1.0),
        time_limit,
        1 / PENDULUM_DT,
    )
    return Env(reset, step, spec, _draw_pendulum)


def _draw_pendulum(state: PendulumState, **size: int) -> np.ndarray:
    from envs.probe import draw

    return draw.pendulum(state, **size)


@struct.dataclass
class CartPoleState:
    """The physics and the clock."""

    physics: Array
    """`[4]`: cart position (m) and velocity, pole angle (rad) and velocity."""
    time: Array


def cartpole(time_limit: int | None = 500) -> Env:
    """CartPole-v1: keep a pole upright by pushing its cart left (0) or right (1).

    Reward 1 for every step, the one that fails included. Terminates when the cart is
    more than 2.4 m from the middle or the pole leans more than 12 degrees. Barto,
    Sutton & Anderson 1983, https://doi.org/10.1109/TSMC.1983.6313077, without friction
    and with the explicit Euler steps that Gymnasium takes.

    Args:
      time_limit: steps until truncation; None for none.

    Raises:
      ValueError: `time_limit` is less than 1.
    """
    check_positive("time_limit", time_limit)

    def reset(key: Key) -> tuple[CartPoleState, Array]:
        physics = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return CartPoleState(physics=physics, time=jnp.int32(0)), physics

    def step(
        state: CartPoleState, action: Array, key: Key
    ) -> tuple[CartPoleState, Step]:
        del key
        physics = state.physics + CARTPOLE_DT * _cartpole_rate(state.physics, action)
        state = CartPoleState(physics=physics, time=state.time + 1)
        failed = jnp.abs(physics[0]) > POSITION_LIMIT
        failed |= jnp.abs(physics[2]) > ANGLE_LIMIT
        one = jnp.float32(1)
        return state, finish(physics, one, failed, state.time, time_limit)

    bounds = (2 * POSITION_LIMIT, math.inf, 2 * ANGLE_LIMIT, math.inf)
    spec = EnvSpec(
        "probe/cartpole",
        Box((4,), tuple(-bound for bound in bounds), bounds),
        Discrete(2),
        time_limit,
        1 / CARTPOLE_DT,
    )
    return Env(reset, step, spec, _draw_cartpole)


def _draw_cartpole(state: CartPoleState, **size: int) -> np.ndarray:
    from envs.probe import draw

    return draw.cartpole(state, **size)


def _cartpole_rate(physics: Array, action: Array) -> Array:
    """d/dt of (position, velocity, angle, angular velocity)."""
    _, velocity, angle, spin = physics
    force = jnp.where(action == 1, FORCE, -FORCE)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    push = (force + POLE_MASS * HALF_POLE * spin**2 * sine) / TOTAL_MASS
    inertia = HALF_POLE * (4 / 3 - POLE_MASS * cosine**2 / TOTAL_MASS)
    spin_rate = (GRAVITY * sine - cosine * push) / inertia
    velocity_rate = push - POLE_MASS * HALF_POLE * spin_rate * cosine / TOTAL_MASS
    return jnp.stack([velocity, velocity_rate, spin, spin_rate])
