"""The software drawing of MuJoCo states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import mujoco
from envs.mujoco import bits, draw, model, scene, shapes

SPHERE = "<geom type='sphere' size='.5' rgba='1 0 0 1'/>"


def make_model(*geoms: str, floor: bool = False):
    plane = "<geom type='plane' size='5 5 1'/>" if floor else ""
    bodies = "".join(f"<body>{geom}</body>" for geom in geoms)
    xml = f"<mujoco><worldbody>{plane}{bodies}</worldbody></mujoco>"
    return model.import_mujoco().MjModel.from_xml_string(xml)


def front(**options) -> scene.Camera:
    """A camera on the -y axis that looks at the origin."""
    return scene.Camera(target=(0, 0, 0), elevation=0, **options)


def redness(image: np.ndarray, by: int = 60) -> np.ndarray:
    return image[..., 0].astype(int) - image[..., 1].astype(int) > by


@pytest.mark.parametrize("name", mujoco.names())
def test_every_task_is_drawn(name):
    env = mujoco.make(name)
    state, _ = env.reset(jax.random.key(0))
    image = env.render(state, width=120, height=90)
    assert image.shape == (90, 120, 3)
    assert image.dtype == np.uint8
    blank = env.render(
        state.replace(physics=jnp.full_like(state.physics, 0xFFFFFFFF)),
        width=120,
        height=90,
    )  # NaN
    drawn = (image.astype(int) != blank).any(axis=-1)
    assert 0.005 < drawn.mean() < 0.8
    rows, columns = np.nonzero(drawn)
    assert abs(rows.mean() - 45) < 35
    assert abs(columns.mean() - 60) < 35
    np.testing.assert_array_equal(image, env.render(state, width=120, height=90))


def test_default_size():
    env = mujoco.make("hopper")
    state, _ = env.reset(jax.random.key(0))
    assert env.render(state).shape == (360, 480, 3)


def test_the_camera_follows_the_robot():
    env = mujoco.make("hopper")
    state, _ = env.reset(jax.random.key(0))
    here = env.render(state, width=80, height=60)
    values = bits.unpack(np.asarray(state.physics)).copy()
    values[1] += 8.0  # eight metres on: eight tiles, and the same picture
    moved = state.replace(physics=jnp.asarray(bits.pack(values)))
    there = env.render(moved, width=80, height=60)
    assert np.abs(here.astype(int) - there).mean() < 1.0


def test_a_sphere_is_a_disc_of_the_right_size():
    camera = front(distance=5.0, field_of_view=40)
    image = draw.render(
        make_model(SPHERE), np.zeros(0), width=201, height=201, camera=camera
    )
    disc = (image != image[0, 0]).any(axis=-1) & redness(image, by=15)
    # Seen from distance d a sphere of radius r fills an angle of asin(r / d).
    slope = np.tan(np.arcsin(0.5 / 5.0)) / np.tan(np.deg2rad(20))
    expected = np.pi * (100.5 * slope) ** 2
    assert abs(disc.sum() / expected - 1) < 0.03
    np.testing.assert_allclose(np.argwhere(disc).mean(axis=0), [100, 100], atol=0.6)


def test_the_nearer_geom_hides_the_farther():
    near = "<geom type='box' size='.3 .3 .3' pos='0 -2 0' rgba='0 0 1 1'/>"
    far = "<geom type='box' size='.3 .3 .3' pos='0 2 0' rgba='1 0 0 1'/>"
    for geoms in ((near, far), (far, near)):
        image = draw.render(
            make_model(*geoms),
            np.zeros(0),
            width=60,
            height=60,
            camera=front(distance=6),
        )
        middle = image[30, 30].astype(int)
        assert middle[2] > middle[0] + 60


def test_what_is_under_the_floor_is_hidden_and_shadows_fall():
    camera = scene.Camera(target=(0, 0, 0), distance=6, elevation=-40)
    size = {"width": 90, "height": 90, "camera": camera}
    empty = draw.render(make_model(floor=True), np.zeros(0), **size).astype(int)
    below = SPHERE.replace("/>", " pos='0 0 -2'/>")
    under = draw.render(make_model(below, floor=True), np.zeros(0), **size)
    assert not redness(under).any()
    above = SPHERE.replace("/>", " pos='0 0 1'/>")
    image = draw.render(make_model(above, floor=True), np.zeros(0), **size)
    assert redness(image).any()
    shadow = (empty.sum(-1) - image.sum(-1, dtype=int) > 90) & ~redness(image)
    assert shadow.sum() > 40


def test_invisible_geoms_are_not_drawn():
    clear = SPHERE.replace("1 0 0 1", "1 0 0 0")
    hidden = SPHERE.replace("/>", " group='3'/>")
    for geom in (clear, hidden):
        image = draw.render(make_model(geom), np.zeros(0), width=40, height=40)
        assert not redness(image).any()


def test_a_geom_around_the_camera_does_no_harm():
    huge = "<geom type='box' size='9 9 9'/>"
    image = draw.render(make_model(huge), np.zeros(0), width=20, height=20)
    assert image.shape == (20, 20, 3)


def test_a_mesh_is_drawn_as_its_box():
    xml = """
    <mujoco><asset><mesh name="tetrahedron"
      vertex="0 0 0  1 0 0  0 1 0  0 0 1"/></asset>
    <worldbody><body><geom type="mesh" mesh="tetrahedron" rgba="1 0 0 1"/></body>
    </worldbody></mujoco>"""
    tetrahedron = model.import_mujoco().MjModel.from_xml_string(xml)
    image = draw.render(tetrahedron, np.zeros(0), width=80, height=80)
    assert redness(image).sum() > 30


def test_an_empty_image_is_refused():
    with pytest.raises(ValueError, match="at least one pixel"):
        draw.render(make_model(SPHERE), np.zeros(0), width=0)


# ------------------------------------------------------- rays against signed distances


def distance(name: str, p: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Zero on the surface, negative inside, positive outside."""
    if name == "sphere":
        return np.linalg.norm(p, axis=-1) - size[0]
    if name == "ellipsoid":
        return np.linalg.norm(p / size, axis=-1) - 1
    if name == "box":
        return (np.abs(p) - size).max(axis=-1)
    if name == "cylinder":
        side = np.linalg.norm(p[..., :2], axis=-1) - size[0]
        return np.maximum(side, np.abs(p[..., 2]) - size[1])
    axis = np.clip(p[..., 2], -size[1], size[1])
    return np.linalg.norm(p - axis[..., None] * [0, 0, 1], axis=-1) - size[0]


@pytest.mark.parametrize("name", ["sphere", "ellipsoid", "box", "cylinder", "capsule"])
def test_rays_meet_surfaces_first_where_marching_does(name, generator):
    size = np.array([0.4, 0.7, 0.3])
    origin = np.array([2.0, -1.5, 1.0])
    direction = generator.normal(size=(400, 3)) * 0.35 - origin
    t, normal = getattr(shapes, name)(origin, direction, size)
    march = np.linspace(0, 2.5, 4001)
    points = origin + march[:, None, None] * direction
    inside = distance(name, points, size) < 0
    expected = np.where(inside.any(0), march[inside.argmax(0)], np.inf)
    grazing = np.isfinite(t) != np.isfinite(expected)
    assert grazing.mean() < 0.02  # the march steps over thin chords
    both = np.isfinite(t) & np.isfinite(expected)
    assert both.sum() > 100
    np.testing.assert_allclose(t[both], expected[both], atol=2.5 / 4000)
    # The normal is the gradient of the distance.
    hit, step = origin + t[both, None] * direction[both], 1e-6
    gradient = np.stack(
        [
            distance(name, hit + step * e, size) - distance(name, hit - step * e, size)
            for e in np.eye(3)
        ],
        axis=-1,
    )
    gradient /= np.linalg.norm(gradient, axis=-1, keepdims=True)
    unit = normal[both] / np.linalg.norm(normal[both], axis=-1, keepdims=True)
    assert ((gradient * unit).sum(-1) > 0.999).mean() > 0.97  # edges have none


@pytest.mark.parametrize("name", ["sphere", "ellipsoid", "box", "cylinder", "capsule"])
def test_rays_that_lead_away_miss(name):
    size = np.array([0.4, 0.7, 0.3])
    t, _ = getattr(shapes, name)(
        np.array([3.0, 0.1, 0.1]), np.array([[1.0, 0.0, 0.0]]), size
    )
    assert not np.isfinite(t).any()
