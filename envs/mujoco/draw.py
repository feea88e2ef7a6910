"""Draws MuJoCo models without a GPU, a display or OpenGL: ray casting in NumPy.

Every geom is intersected analytically with the rays of the pixels that it can cover,
at twice the resolution, and laid over a checkered ground with soft shadows. Planes are
drawn without end, meshes as their bounding boxes; a 480 x 360 frame of a robot takes
about a tenth of a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.mujoco import scene
from envs.mujoco.model import import_mujoco
from envs.mujoco.scene import Camera, Geom, View

_SKY = np.array([[0.93, 0.95, 0.97], [0.48, 0.65, 0.84]], "f4")  # horizon, zenith
_TILES = np.array([[0.78, 0.82, 0.86], [0.66, 0.71, 0.77]], "f4")
_SAMPLES = 2  # per pixel and axis, on robots


def render(
    model: Any,
    qpos: np.ndarray,
    *,
    width: int = 480,
    height: int = 360,
    camera: Camera | None = None,
) -> np.ndarray:
    """Return an image of `model` at joint positions `qpos`.

    Args:
      model: a `mujoco.MjModel`.
      qpos: `float64[nq]`; a state that is not finite is drawn as an empty scene.
      width: pixels.
      height: pixels.
      camera: where to look from.

    Returns:
      `uint8[height, width, 3]`.
    """
    if width < 1 or height < 1:
        raise ValueError(f"An image needs at least one pixel, got {width} x {height}.")
    mujoco = import_mujoco()
    data = mujoco.MjData(model)
    visible = np.isfinite(qpos).all()
    if visible:
        data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    camera = camera or Camera()
    view = scene.place(camera, data, width, height)
    planes, geoms = scene.geoms_of(model, data)
    if not planes and camera.floor is not None:
        planes = [scene.floor(camera.floor)]
    if not visible:
        geoms = []
    image = _backdrop(view, planes, geoms, camera.distance)
    _overlay(image, view, planes, geoms)
    return (255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8)


# ------------------------------------------------------------------ sky and ground


def _backdrop(
    view: View, planes: list[Geom], geoms: list[Geom], distance: float
) -> np.ndarray:
    """Return `float[H, W, 3]`: the sky, and the planes with their shadows."""
    rays = view.rays(np.arange(view.width) + 0.5, np.arange(view.height) + 0.5)
    up = rays[..., 2] / np.linalg.norm(rays, axis=-1)
    blend = np.clip(1.6 * up, 0, 1)[..., None]
    image = _SKY[0] + blend * (_SKY[1] - _SKY[0])
    for plane in planes:
        t = scene.plane_depth(plane, view.eye, rays)
        seen = np.isfinite(t)
        points = view.eye + np.where(seen, t, 0)[..., None] * rays
        colour = _tiles(plane, points, distance)
        colour *= 1 - 0.42 * _shadow(view, plane, points, seen, geoms)[..., None]
        # Far tiles fade into the horizon.
        clear = np.exp(-((np.where(seen, t, 0) / (7 * distance)) ** 2))[..., None]
        colour = _SKY[0] + clear * (colour - _SKY[0])
        image = np.where(seen[..., None], colour, image)
    return image


def _tiles(plane: Geom, points: np.ndarray, distance: float) -> np.ndarray:
    """Checkered colours `[H, W, 3]`, averaged over each pixel's footprint."""
    tile = 2.0 ** np.round(np.log2(distance / 5))
    blend = 1.0
    for axis in (0, 1):
        u = (points - plane.position) @ plane.rotation[:, axis] / tile
        steps = [np.abs(d) for d in np.gradient(u)] if min(u.shape) > 1 else [0]
        width = np.maximum(np.maximum.reduce(steps), 1e-3)
        # The integral of a square wave of period 2 is a triangle wave.
        ends = [np.abs(((u + s * width / 2) / 2) % 1 - 0.5) for s in (-1, 1)]
        blend = blend * 2 * (ends[0] - ends[1]) / width
    blend = np.clip(0.5 - 0.5 * blend, 0, 1)[..., None]
    return _TILES[0] + blend * (_TILES[1] - _TILES[0])


def _shadow(
    view: View,
    plane: Geom,
    points: np.ndarray,
    seen: np.ndarray,
    geoms: list[Geom],
) -> np.ndarray:
    """Return how much of the light is blocked, `[H, W]` in 0 ... 1."""
    light = scene.light(view)
    dark = np.zeros(seen.shape, np.float32)
    slant = float(light @ plane.rotation[:, 2])
    if slant < 0.1:
        return dark
    for geom in geoms:
        # The shadow lies in a sphere around the geom's centre, cast onto the plane.
        height = (geom.position - plane.position) @ plane.rotation[:, 2]
        centre = geom.position - light * height / slant
        bounds = scene.bounds(view, centre, geom.radius / slant)
        if bounds is None:
            continue
        part = slice(*bounds[1::2]), slice(*bounds[::2])
        t, _ = scene.hit(geom, points[part], light)
        dark[part] = np.maximum(dark[part], np.isfinite(t) & seen[part])
    for _ in range(2):  # a box filter, twice, softens the edge
        wide = np.pad(dark, 1, mode="edge")
        tall = wide[:-2] + wide[1:-1] + wide[2:]
        dark = (tall[:, :-2] + tall[:, 1:-1] + tall[:, 2:]) / 9
    return dark


# ----------------------------------------------------------------------- the robot


def _overlay(
    image: np.ndarray, view: View, planes: list[Geom], geoms: list[Geom]
) -> None:
    """Draw the geoms into `image`, in front of what they hide."""
    parts = [(g, scene.bounds(view, g.position, g.radius)) for g in geoms]
    seen = [(geom, box) for geom, box in parts if box is not None]
    if not seen:
        return
    left, top = np.min([box[:2] for _, box in seen], axis=0)
    right, bottom = np.max([box[2:] for _, box in seen], axis=0)
    n = _SAMPLES
    columns = left + (np.arange((right - left) * n) + 0.5) / n
    rows = top + (np.arange((bottom - top) * n) + 0.5) / n
    rays = view.rays(columns, rows)
    depth = np.full(rays.shape[:2], np.inf, np.float32)
    for plane in planes:
        depth = np.minimum(depth, scene.plane_depth(plane, view.eye, rays))
    colour, normal = np.zeros_like(rays), np.zeros_like(rays)
    cover = np.zeros(depth.shape, bool)
    for geom, box in seen:
        part = slice(*(n * (box[1::2] - top))), slice(*(n * (box[::2] - left)))
        t, facing = scene.hit(geom, view.eye, rays[part])
        front = t < depth[part]
        depth[part][front] = t[front]
        normal[part][front] = facing[front]
        colour[part][front] = geom.colour
        cover[part][front] = True
    layer = np.zeros((*cover.shape, 4), np.float32)
    layer[cover, :3] = _shade(view, rays[cover], normal[cover], colour[cover])
    layer[cover, 3] = 1
    layer = layer.reshape(bottom - top, n, right - left, n, 4).mean(axis=(1, 3))
    under = image[top:bottom, left:right]
    under *= 1 - layer[..., 3:]
    under += layer[..., :3]


def _shade(
    view: View, rays: np.ndarray, normal: np.ndarray, colour: np.ndarray
) -> np.ndarray:
    """Return lit colours `[P, 3]`: sky and ground light, sun, and a highlight."""
    light = scene.light(view)
    towards = -rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    half = light + towards
    half /= np.linalg.norm(half, axis=-1, keepdims=True)
    sun = np.clip(normal @ light, 0, 1)[:, None]
    sky = (0.5 + 0.5 * normal[:, 2:]) * 0.25 + 0.22
    shine = np.clip((normal * half).sum(-1), 0, 1)[:, None] ** 40
    rim = np.clip((normal * towards).sum(-1), 0, 1)[:, None]
    return colour * (sky + 0.62 * sun) * (0.75 + 0.25 * rim) + 0.18 * shine
