"""Kinematics of planar robots, from joint positions and velocities alone.

The suite's rewards and observations describe the state that a step has reached, where
MuJoCo's derived fields describe the one before its last substep. In a plane they are
few sums: with θ_b the pitch of body b,

    x_com = x_root + Σ_b w_b,x cos θ_b + w_b,z sin θ_b + constant

The weights are constants of the model: masses times the offsets along its links.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from envs.mujoco.task import Context, Physics

_HINGE = 3  # mjtJoint


class Plane(NamedTuple):
    """What is constant in a planar model of B bodies, the world left out."""

    turns: np.ndarray
    """`[nv, B]`: joint positions times it are the bodies' pitches."""
    weight: np.ndarray
    """`[B, 2]` w, metres along x and z."""
    root_x: int
    """Which joint moves the root along x."""


@functools.lru_cache(maxsize=16)
def plane_of(model: Any) -> Plane:
    """Return the constants of a model of hinges about ±y, and slides at its root."""
    bodies = model.nbody
    turns = np.zeros((bodies, model.nv))
    reach = np.zeros((bodies, bodies, 2))  # of a body's frame, by whose pitch turns it
    weight = np.zeros((bodies, 2))
    level = [0, 2]
    for b in range(1, bodies):
        parent = model.body_parentid[b]
        first = model.body_jntadr[b]
        turns[b], reach[b] = turns[parent], reach[parent]
        reach[b, parent] += model.body_pos[b, level]
        for j in range(first, first + model.body_jntnum[b]):
            if model.jnt_type[j] == _HINGE:
                turns[b, model.jnt_dofadr[j]] = model.jnt_axis[j, 1]
                reach[b, parent] += model.jnt_pos[j, level]
                reach[b, b] -= model.jnt_pos[j, level]
        weight += model.body_mass[b] * reach[b]
        weight[b] += model.body_mass[b] * model.body_ipos[b, level]
    weight = weight[1:] / model.body_mass.sum()
    moves_x = np.flatnonzero((model.jnt_type != _HINGE) & (model.jnt_axis[:, 0] == 1))
    return Plane(turns[1:].T, weight, int(model.jnt_dofadr[moves_x[0]]))


def pitches(c: Context, p: Physics) -> Any:
    """Return `[..., B]` how far each body is turned from z towards x."""
    return p.qpos @ _cast(p, plane_of(c.model).turns)


def speed(c: Context, p: Physics) -> Any:
    """Return `[...]` the velocity of the centre of mass along x."""
    plane = plane_of(c.model)
    pitch = pitches(c, p)
    rate = p.qvel @ _cast(p, plane.turns)
    x, z = _cast(p, plane.weight).T
    moved = rate * (z * c.xp.cos(pitch) - x * c.xp.sin(pitch))
    return p.qvel[..., plane.root_x] + moved.sum(axis=-1)


def _cast(p: Physics, values: np.ndarray) -> np.ndarray:
    """Constants in the engine's precision: JAX's has none of 64 bits."""
    return values.astype(p.qpos.dtype)
