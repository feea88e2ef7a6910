"""What `draw` draws: a placed camera, and a model's geoms in world axes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from envs.mujoco import shapes
from envs.mujoco.model import import_mujoco

_DEFAULT_RGBA = (0.5, 0.5, 0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Camera:
    """A camera that follows the model.

    It looks at `target`, or where that is None at the centre of mass of the tree below
    body `body`, from `distance` metres away; `height`, where given, replaces that
    centre's own height, so that a hop is seen as one. Angles are in degrees, as in
    MuJoCo's free camera: azimuth 90 looks along +y, a negative elevation looks down.
    `floor` is the height of a ground drawn where the model has none.
    """

    distance: float = 4.0
    azimuth: float = 90.0
    elevation: float = -15.0
    target: tuple[float, float, float] | None = None
    body: int = 1
    height: float | None = None
    field_of_view: float = 40.0
    floor: float | None = None


class View(NamedTuple):
    """A placed camera: `axes` rows are right, down and forward in world axes."""

    eye: np.ndarray
    axes: np.ndarray
    focal: float
    """Pixels per unit of slope."""
    width: int
    height: int

    def rays(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return directions `[R, C, 3]`, of length one along the forward axis."""
        x = ((columns - self.width / 2) / self.focal).astype(np.float32)
        y = ((rows - self.height / 2) / self.focal).astype(np.float32)
        right, down, forward = self.axes
        return forward + x[None, :, None] * right + y[:, None, None] * down


class Geom(NamedTuple):
    """A shape in world axes; `radius` bounds it from its position."""

    shape: shapes.Shape
    size: np.ndarray
    position: np.ndarray
    rotation: np.ndarray
    colour: np.ndarray
    radius: float


def place(camera: Camera, data: Any, width: int, height: int) -> View:
    """Return the camera's place beside the model in `data` (a forwarded MjData)."""
    target = np.array(camera.target or data.subtree_com[camera.body])
    if camera.height is not None:
        target[2] = camera.height
    azimuth, elevation = np.deg2rad([camera.azimuth, camera.elevation])
    forward = np.array(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    axes = np.stack([right, np.cross(forward, right), forward])
    focal = height / (2 * np.tan(np.deg2rad(camera.field_of_view) / 2))
    eye = (target - camera.distance * forward).astype(np.float32)
    return View(eye, axes.astype(np.float32), float(focal), width, height)


def geoms_of(model: Any, data: Any) -> tuple[list[Geom], list[Geom]]:
    """Return the planes and the other geoms that MuJoCo shows by default."""
    planes: list[Geom] = []
    geoms: list[Geom] = []
    for i in range(model.ngeom):
        rgba = model.geom_rgba[i]
        if model.geom_matid[i] >= 0 and np.allclose(rgba, _DEFAULT_RGBA):
            rgba = model.mat_rgba[model.geom_matid[i]]
        if rgba[3] < 0.05 or model.geom_group[i] > 2:
            continue
        kind = int(model.geom_type[i])
        shape, size = _shape(kind), model.geom_size[i]
        position, rotation = data.geom_xpos[i], data.geom_xmat[i].reshape(3, 3)
        if shape is None:  # meshes and the like: the box around them
            centre, size = model.geom_aabb[i].reshape(2, 3)
            shape, position = shapes.box, position + rotation @ centre
        geom = Geom(
            shape,
            size.astype(np.float32),
            position.astype(np.float32),
            rotation.astype(np.float32),
            rgba[:3].astype(np.float32),
            float(model.geom_rbound[i]),
        )
        is_plane = kind == import_mujoco().mjtGeom.mjGEOM_PLANE.value
        (planes if is_plane else geoms).append(geom)
    return planes, geoms


def floor(height: float) -> Geom:
    """Return a level plane."""
    zero, identity = np.zeros(3, np.float32), np.eye(3, dtype=np.float32)
    return Geom(shapes.box, zero, zero + [0, 0, height], identity, zero, 0.0)


@functools.cache
def _shape(kind: int) -> shapes.Shape | None:
    geom = import_mujoco().mjtGeom
    return {
        geom.mjGEOM_SPHERE.value: shapes.sphere,
        geom.mjGEOM_CAPSULE.value: shapes.capsule,
        geom.mjGEOM_ELLIPSOID.value: shapes.ellipsoid,
        geom.mjGEOM_CYLINDER.value: shapes.cylinder,
        geom.mjGEOM_BOX.value: shapes.box,
        geom.mjGEOM_PLANE.value: shapes.box,  # never intersected as a shape
    }.get(kind)


def light(view: View) -> np.ndarray:
    """Return the direction towards the light: high, left of and behind the camera."""
    right, _, forward = view.axes
    level = np.array([forward[0], forward[1], 0])
    towards = np.array([0, 0, 1]) - 0.35 * right - 0.35 * level
    return (towards / np.linalg.norm(towards)).astype(np.float32)


def hit(geom: Geom, origin: np.ndarray, direction: np.ndarray) -> shapes.Hit:
    """Intersect rays in world axes: `t [P]` and unit normals `[P, 3]`."""
    with np.errstate(all="ignore"):
        t, normal = geom.shape(
            (origin - geom.position) @ geom.rotation,
            direction @ geom.rotation,
            geom.size,
        )
        normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    return t, normal @ geom.rotation.T


def plane_depth(plane: Geom, eye: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Return `t` where rays meet the plane from its front, else infinity."""
    normal = plane.rotation[:, 2]
    slope = rays @ normal
    above = (plane.position - eye) @ normal
    facing = (slope < -1e-6) & (above < 0)
    return np.where(facing, above / np.where(facing, slope, 1), np.inf)


def bounds(view: View, centre: np.ndarray, radius: float) -> np.ndarray | None:
    """Return the pixels `[left, top, right, bottom)` that a sphere can cover."""
    limits = np.array([view.width, view.height] * 2)
    x, y, z = view.axes @ (centre - view.eye)
    if z <= -radius:
        return None  # behind the camera
    if z <= radius + 0.01:
        return limits * [0, 0, 1, 1]  # around it
    reach = radius * view.focal / (z - radius) + 1
    u, v = view.width / 2 + x / z * view.focal, view.height / 2 + y / z * view.focal
    box = np.array([u - reach, v - reach, u + reach + 1, v + reach + 1])
    box = np.clip(box, 0, limits).astype(int)
    return box if (box[:2] < box[2:]).all() else None
