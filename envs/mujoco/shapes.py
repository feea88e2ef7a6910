"""Where rays meet MuJoCo's primitive shapes.

Each function takes ray origins and directions in the shape's own frame, float arrays
that broadcast to `[P, 3]` (directions of any length), and MuJoCo's `size [3]`. It
returns the ray parameter `t [P]` of the first hit from outside, infinity where there
is none, and the outward normal `[P, 3]` there, not normalised, meaningless on a miss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

Hit: TypeAlias = tuple[np.ndarray, np.ndarray]
Shape: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], Hit]


def _first_root(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the smaller root of `a t² + 2 b t + c`, infinity if none is positive."""
    discriminant = b * b - a * c
    root = (-b - np.sqrt(np.maximum(discriminant, 0))) / np.where(a > 1e-12, a, 1)
    return np.where((discriminant > 0) & (a > 1e-12) & (root > 0), root, np.inf)


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", x, y)


def _at(origin: np.ndarray, direction: np.ndarray, t: np.ndarray) -> np.ndarray:
    return origin + np.where(np.isfinite(t), t, 0)[..., None] * direction


def ellipsoid(origin: np.ndarray, direction: np.ndarray, size: np.ndarray) -> Hit:
    """Radii `size`."""
    o, d = origin / size, direction / size
    t = _first_root(_dot(d, d), _dot(o, d), _dot(o, o) - 1)
    return t, _at(origin, direction, t) / size**2


def sphere(origin: np.ndarray, direction: np.ndarray, size: np.ndarray) -> Hit:
    """Radius `size[0]`."""
    return ellipsoid(origin, direction, np.full(3, size[0]))


def _side(origin: np.ndarray, direction: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return `t` of the curved side of a cylinder (radius, half-length)."""
    o, d = origin[..., :2], direction[..., :2]
    t = _first_root(_dot(d, d), _dot(o, d), _dot(o, o) - size[0] ** 2)
    inside = np.abs(_at(origin, direction, t)[..., 2]) <= size[1]
    return np.where(inside, t, np.inf)


def capsule(origin: np.ndarray, direction: np.ndarray, size: np.ndarray) -> Hit:
    """Radius `size[0]`, half-length of the cylindrical part `size[1]`, along z."""
    t = _side(origin, direction, size)
    for end in (-size[1], size[1]):
        o = origin - np.array([0, 0, end], origin.dtype)
        c = _dot(o, o) - size[0] ** 2
        cap = _first_root(_dot(direction, direction), _dot(o, direction), c)
        t = np.minimum(t, cap)
    normal = _at(origin, direction, t).copy()
    normal[..., 2] -= np.clip(normal[..., 2], -size[1], size[1])
    return t, normal


def cylinder(origin: np.ndarray, direction: np.ndarray, size: np.ndarray) -> Hit:
    """Radius `size[0]`, half-length `size[1]`, along z."""
    side = _side(origin, direction, size)
    z = np.where(np.abs(direction[..., 2]) > 1e-9, direction[..., 2], 1e-9)
    lid = (-np.sign(z) * size[1] - origin[..., 2]) / z
    point = _at(origin, direction, lid)
    within = (_dot(point[..., :2], point[..., :2]) <= size[0] ** 2) & (lid > 0)
    lid = np.where(within, lid, np.inf)
    t = np.minimum(side, lid)
    normal = _at(origin, direction, t).copy()
    on_lid = lid <= side
    normal[..., :2] *= ~on_lid[..., None]
    normal[..., 2] *= on_lid
    return t, normal


def box(origin: np.ndarray, direction: np.ndarray, size: np.ndarray) -> Hit:
    """Half-lengths `size`."""
    d = np.where(np.abs(direction) > 1e-9, direction, 1e-9)
    enter = (-np.sign(d) * size - origin) / d
    leave = (np.sign(d) * size - origin) / d
    t = enter.max(axis=-1)
    t = np.where((t <= leave.min(axis=-1)) & (t > 0), t, np.inf)
    face = enter.argmax(axis=-1)[..., None] == np.arange(3)
    return t, -np.sign(d) * face
