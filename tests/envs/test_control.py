"""The control suite's tasks against MuJoCo's own numbers, and hand-computed rewards."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import envs
from envs import control, mujoco
from envs.control import models, planar, tasks
from envs.mujoco import bits, mjx, model
from envs.mujoco.task import Context

NAMES = sorted(tasks.TASKS)
ROBOTS = {"walker": "walker_walk", "cheetah": "cheetah_run"}
LIMITED = slice(3, 9)


def context(name: str, xp=np, **options) -> Context:
    task = tasks.TASKS[name]
    compiled = model.load(task.model_file)
    dt = compiled.opt.timestep * task.frame_skip
    return Context(task.resolve(options), compiled, dt, compiled.qpos0, xp)


def actions(length: int, seed: int = 0) -> np.ndarray:
    """Some of them beyond the bounds."""
    draws = np.random.default_rng(seed).uniform(-1.1, 1.1, (length, 6))
    return draws.astype(np.float32)


def states(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed).normal(size=(2, count, 9))
    return draws[0], 3 * draws[1]


def tolerance(x: float, low: float, margin: float, edge: float, linear: bool) -> float:
    """The suite's, for the bounds (low, infinity), written from its definition."""
    if x >= low:
        return 1.0
    d = (low - x) / margin
    if linear:
        return max(1 - (1 - edge) * d, 0.0)
    return math.exp(-0.5 * (math.sqrt(-2 * math.log(edge)) * d) ** 2)


def reference(name: str, m, data) -> tuple[np.ndarray, float]:
    """Observation and reward of a forwarded MjData, from MuJoCo's own fields."""
    library = model.import_mujoco()
    library.mj_subtreeVel(m, data)
    speed = data.subtree_linvel[1, 0]
    if name == "cheetah_run":
        observation = np.concatenate([data.qpos[1:], data.qvel])
        return observation, tolerance(speed, 10, 10, 0, linear=True)
    frames = data.xmat[1:].reshape(-1, 3, 3)
    axes = np.stack([frames[:, 0, 0], frames[:, 0, 2]], axis=1)
    height, upright = data.xpos[1, 2], frames[0, 2, 2]
    observation = np.concatenate([axes.ravel(), [height], data.qvel])
    reward = 0.75 * tolerance(height, 1.2, 0.6, 0.1, linear=False)
    reward += 0.25 * (1 + upright) / 2
    wanted = {"walker_stand": 0, "walker_walk": 1, "walker_run": 8}[name]
    if wanted:
        moving = tolerance(speed, wanted, wanted / 2, 0.5, linear=True)
        reward *= (1 + 5 * moving) / 6
    return observation, reward


# ------------------------------------------------------------------------- the models


def test_the_walker_is_the_published_one():
    """Lengths in metres, gears in Nm, limits in degrees, water's density."""
    m = context("walker_walk").model
    assert (m.nq, m.nv, m.nu, m.nbody - 1) == (9, 9, 6, 7)
    assert m.opt.timestep == 0.0025

    def capsule(radius, length):
        return 1000 * math.pi * radius**2 * (length + 4 / 3 * radius)

    leg = [capsule(0.05, 0.45), capsule(0.04, 0.5), capsule(0.05, 0.2)]
    np.testing.assert_allclose(m.body_mass[1:], [capsule(0.07, 0.6), *leg, *leg])
    np.testing.assert_array_equal(m.actuator_gear[:, 0], [100, 50, 20] * 2)
    limits = np.deg2rad([[-20, 100], [-150, 0], [-45, 45]] * 2)
    np.testing.assert_allclose(m.jnt_range[LIMITED], limits)
    np.testing.assert_array_equal(m.jnt_axis[:3], [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(m.jnt_axis[LIMITED, 1], -1)
    np.testing.assert_array_equal(m.dof_damping, [0] * 3 + [0.1] * 6)
    np.testing.assert_array_equal(m.dof_armature, [0] * 3 + [0.01] * 6)
    np.testing.assert_array_equal(m.geom_friction, [[0.7, 0.1, 0.1]] * 8)
    np.testing.assert_array_equal(m.geom_conaffinity, [1] + [0] * 7)


def test_the_cheetah_is_the_published_one():
    m = context("cheetah_run").model
    assert (m.nq, m.nv, m.nu, m.nbody - 1) == (9, 9, 6, 7)
    assert m.opt.timestep == 0.01
    np.testing.assert_allclose(m.body_mass.sum(), 14)
    # All links are as dense: masses are as the capsules' volumes.
    lengths = np.array([1.0, 0.3, 0.29, 0.3, 0.188, 0.266, 0.212, 0.14])
    volume = lengths + 4 / 3 * 0.046
    volume[1] += volume[0]  # torso and head
    np.testing.assert_allclose(m.body_mass[1:] / 14, volume[1:] / volume[1:].sum())
    np.testing.assert_array_equal(m.actuator_gear[:, 0], [120, 90, 60, 90, 60, 30])
    np.testing.assert_array_equal(
        m.jnt_stiffness, [0] * 3 + [240, 180, 120, 180, 120, 60]
    )
    np.testing.assert_array_equal(m.dof_damping, [0] * 3 + [6, 4.5, 3, 4.5, 3, 1.5])
    np.testing.assert_array_equal(m.dof_armature, [0] * 3 + [0.1] * 6)
    low = [-30, -50, -230, -57, -70, -28]
    high = [60, 50, 50, 0.4, 50, 28]
    np.testing.assert_allclose(
        m.jnt_range[LIMITED], np.deg2rad(np.transpose([low, high]))
    )
    np.testing.assert_array_equal(m.geom_friction[0], [1, 0.005, 0.0001])
    np.testing.assert_array_equal(m.geom_friction[1:], [[0.4, 0.1, 0.1]] * 8)


@pytest.mark.parametrize("name", ROBOTS.values())
def test_kinematics_are_mujoco_s(name):
    c, library = context(name), model.import_mujoco()
    qpos, qvel = states(20)
    p = SimpleNamespace(qpos=qpos, qvel=qvel)
    pitch, speed = planar.pitches(c, p), planar.speed(c, p)
    data = library.MjData(c.model)
    for i in range(20):
        data.qpos[:], data.qvel[:] = qpos[i], qvel[i]
        library.mj_forward(c.model, data)
        library.mj_subtreeVel(c.model, data)
        frames = data.xmat[1:].reshape(-1, 3, 3)
        np.testing.assert_allclose(np.cos(pitch[i]), frames[:, 0, 0], atol=1e-12)
        np.testing.assert_allclose(np.sin(pitch[i]), frames[:, 0, 2], atol=1e-12)
        np.testing.assert_allclose(speed[i], data.subtree_linvel[1, 0], rtol=1e-10)


# ------------------------------------------------------------------------- rewards


def test_tolerances_by_hand():
    c = SimpleNamespace(xp=np)
    x = np.array([2.0, 1.2, 0.9, 0.6])
    # A Gaussian with 0.1 at one margin has 0.1 ** (1/4) at half of it.
    expected = [1, 1, 0.1**0.25, 0.1]
    np.testing.assert_allclose(tasks.near(c, x, 1.2, margin=0.6), expected)
    speed = np.array([1.5, 1.0, 0.75, 0.5, 0.0, -3.0])
    walking = tasks.above(c, speed, 1.0, margin=0.5, edge=0.5)
    np.testing.assert_allclose(walking, [1, 1, 0.75, 0.5, 0, 0])
    running = tasks.above(c, np.array([5.0, -1.0]), 10.0, margin=10.0, edge=0.0)
    np.testing.assert_allclose(running, [0.5, 0])


@pytest.mark.parametrize(
    ("name", "height", "pitch", "speed", "reward"),
    [
        ("walker_stand", 1.3, 0.0, 0.0, 1.0),
        ("walker_stand", 1.3, math.pi, 0.0, 0.75),
        ("walker_stand", 0.6, math.pi / 2, 0.0, (3 * 0.1 + 0.5) / 4),
        ("walker_walk", 1.3, 0.0, 0.0, 1 / 6),
        ("walker_walk", 1.3, 0.0, 0.75, (5 * 0.75 + 1) / 6),
        ("walker_walk", 1.3, 0.0, 2.0, 1.0),
        ("walker_run", 1.3, 0.0, 4.0, (5 * 0.5 + 1) / 6),
        ("walker_run", 1.3, math.pi, 8.0, 0.75),
        ("cheetah_run", 0.7, 0.0, 2.5, 0.25),
        ("cheetah_run", 0.7, 0.0, 12.0, 1.0),
    ],
)
def test_rewards_by_hand(name, height, pitch, speed, reward):
    """A stiff robot that glides: every body has the torso's pitch and speed."""
    slides = {"walker": "zx", "cheetah": "xz"}[name.partition("_")[0]]
    qpos, qvel = np.zeros((2, 1, 9))
    qpos[0, slides.index("z")] = height - {"w": 1.3, "c": 0.7}[name[0]]
    qpos[0, 2], qvel[0, slides.index("x")] = pitch, speed
    for xp in (np, jnp):
        c = context(name, xp)
        p = SimpleNamespace(qpos=xp.asarray(qpos)[0], qvel=xp.asarray(qvel)[0])
        outcome = tasks.TASKS[name].outcome(c, None, p, np.zeros(6))
        np.testing.assert_allclose(outcome.reward, reward, rtol=2e-6)
        np.testing.assert_allclose(outcome.info["speed"], speed, atol=1e-6)
        assert not outcome.terminated


def test_the_walker_s_legs_are_alike():
    """Swapped legs and actions: the same rewards, observations swapped."""
    env = control.make("walker_walk")
    swap = np.array([0, 1, 2, 6, 7, 8, 3, 4, 5])
    orders = {"qvel": 15 + swap, "axes": [0, 1, *range(8, 14), *range(2, 8), 14]}
    seen = np.concatenate([orders["axes"], orders["qvel"]])
    state, _ = env.reset(jax.random.key(1))
    values = bits.unpack(np.asarray(state.physics)).copy()
    values[1:10] = values[1:10][swap]
    mirrored = state.replace(physics=jnp.asarray(bits.pack(values)))
    step = jax.jit(env.step)
    for action in actions(40):
        state, one = step(state, action)
        mirrored, other = step(mirrored, action[[3, 4, 5, 0, 1, 2]])
        np.testing.assert_allclose(other.reward, one.reward, rtol=1e-5)
        np.testing.assert_allclose(other.observation, one.observation[seen], atol=1e-4)


# ------------------------------------------------------------------------- episodes


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_is_plain_mujoco_and_is_cut_after_1000_steps(name):
    env, m = control.make(name), context(name).model
    library, task = model.import_mujoco(), tasks.TASKS[name]
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    state, observation = reset(jax.random.key(0))
    values = bits.unpack(np.asarray(state.physics))
    data, forwarded = library.MjData(m), library.MjData(m)
    data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = values[1:].reshape(3, 9)
    for i, action in enumerate((None, *actions(1000))):
        if action is not None:
            state, result = step(state, action)
            observation = result.observation
            data.ctrl[:] = action
            library.mj_step(m, data, task.frame_skip)
            assert bool(result.truncated) == (i == 1000) and not result.terminated
        # Of the state that was reached.
        forwarded.qpos[:], forwarded.qvel[:] = data.qpos, data.qvel
        library.mj_forward(m, forwarded)
        expected, reward = reference(name, m, forwarded)
        np.testing.assert_allclose(observation, np.float32(expected), atol=1e-6)
        if action is not None:
            np.testing.assert_allclose(result.reward, reward, rtol=1e-6, atol=1e-7)
            assert 0 <= reward <= 1
    assert env.spec.time_limit == 1000


def test_specs():
    for name in NAMES:
        spec = envs.make(f"control/{name}").spec
        size, frequency = (17, 100) if name == "cheetah_run" else (24, 40)
        assert spec.name == f"control/{name}"
        assert spec.observation.shape == (size,)
        assert spec.action.minimum == (-1.0,) * 6 and spec.action.maximum == (1.0,) * 6
        np.testing.assert_allclose(spec.control_frequency, frequency)


def started(name: str, count: int) -> np.ndarray:
    """`[count, 9 + 9]` positions and velocities after resets."""
    env = control.make(name)
    keys = jax.random.split(jax.random.key(3), count)
    states, _ = jax.jit(jax.vmap(env.reset))(keys)
    return bits.unpack(np.asarray(states.physics))[:, 1:19]


def test_walkers_start_in_any_pose():
    drawn = started("walker_run", 2000)
    limits = context("walker_run").model.jnt_range[LIMITED]
    assert not drawn[:, :2].any() and not drawn[:, 9:].any()
    for values, (low, high) in zip(
        drawn[:, 2:9].T, [(-math.pi, math.pi), *limits], strict=True
    ):
        uniform = scipy.stats.uniform(low, high - low)
        assert scipy.stats.kstest(values, uniform.cdf).pvalue > 1e-3


def test_cheetahs_start_where_200_steps_bring_them():
    name = "cheetah_run"
    c, task, library = context(name), tasks.TASKS[name], model.import_mujoco()
    key = jax.random.key(4)
    draws = np.asarray(task.draw(c, key), np.float64)
    low, high = c.model.jnt_range.T
    data = library.MjData(c.model)
    data.qpos[3:] = (low + (high - low) * draws)[3:]
    library.mj_step(c.model, data, 200)
    state, observation = control.make(name).reset(key)
    values = bits.unpack(np.asarray(state.physics))
    assert values[0] == 0
    expected = np.concatenate([data.qpos, data.qvel, data.qacc_warmstart])
    np.testing.assert_array_equal(values[1:], expected)
    np.testing.assert_array_equal(observation, np.float32(expected[1:18]))
    heights = started(name, 50)[:, 1]
    assert np.ptp(heights) > 0.01 and heights.max() < 0  # they have come down


@pytest.mark.parametrize("settle", [0, 7])
def test_engines_settle_alike(settle):
    """A body that glides at 1 m/s, for 0 or 7 steps of the physics."""
    file = str(pathlib.Path(__file__).with_name("chain.xml"))
    task = dataclasses.replace(
        tasks.TASKS["cheetah_run"],
        name=f"gliding_{settle}",
        model_file=file,
        settle=settle,
        draw=lambda c, key: jax.random.uniform(key, (1,)),
        start=lambda c, draws: (draws, c.xp.ones_like(draws)),
        observe=lambda c, p: p.qpos,
    )
    key, dt = jax.random.key(0), model.load(file).opt.timestep
    start = np.asarray(jax.random.uniform(key, (1,)))
    for engine in ("native", "mjx"):
        env = mujoco.make(task, engine=engine)
        np.testing.assert_allclose(env.reset(key)[1], start + settle * dt, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROBOTS.values())
def test_mjx_does_the_native_engine_s_steps(name):
    """One step from every state of a run: 1e-3 of an observation's size, and 1."""
    native, device = (control.make(name, engine=e) for e in ("native", "mjx"))
    assert native.spec == device.spec
    step, fast = jax.jit(native.step), jax.jit(device.step)
    state, observation = native.reset(jax.random.key(0))
    empty, _ = jax.jit(device.reset)(jax.random.key(0))
    worst = 0.0
    for action in actions(100):
        values = bits.unpack(np.asarray(state.physics)).astype(np.float32)
        qpos, qvel, warm_start = values[1:].reshape(3, 9)
        twin = mjx.State(
            qpos, qvel, empty.activation, warm_start, empty.position, empty.step
        )
        state, expected = step(state, action)
        _, result = fast(twin, action)
        error = np.abs(result.observation - expected.observation)
        worst = max(worst, (error / (1 + np.abs(expected.observation))).max())
        np.testing.assert_allclose(result.reward, expected.reward, atol=1e-4)
        assert result.info.keys() == expected.info.keys()
    assert worst < 1e-3, worst


def test_a_frame_shows_the_robot():
    for name in ROBOTS.values():
        env = control.make(name)
        picture = env.render(env.reset(jax.random.key(0))[0], width=160, height=120)
        red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
        assert 0.005 < (red - blue > 40).mean() < 0.5


def test_mistakes():
    with pytest.raises(ValueError, match="Did you mean 'control/walker_walk'"):
        envs.make("control/walker_wlak")
    with pytest.raises(ValueError, match="Did you mean 'walker_run'"):
        control.make("walker_runs")
    with pytest.raises(ValueError, match="option of 'control/walker_run'.*move_speed"):
        control.make("walker_run", move_sped=1)


# ----------------------------------------------------------------- the suite, if there


@pytest.mark.parametrize("robot", sorted(ROBOTS))
def test_models_equal_dm_control_s(robot, monkeypatch):
    """Every field on which the physics depends, and 200 steps of it."""
    monkeypatch.setitem(os.environ, "MUJOCO_GL", "disable")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suite = pytest.importorskip("dm_control.suite")
        text, assets = getattr(suite, robot).get_model_and_assets()
    library = model.import_mujoco()
    theirs = library.MjModel.from_xml_string(text, assets)
    ours = context(ROBOTS[robot]).model
    for field in (
        "body_mass", "body_inertia", "body_ipos", "body_pos", "body_parentid",
        "jnt_type", "jnt_axis", "jnt_pos", "jnt_range", "jnt_limited", "jnt_stiffness",
        "jnt_solref", "dof_damping", "dof_armature", "dof_invweight0", "geom_type",
        "geom_friction", "geom_condim", "geom_contype", "geom_conaffinity",
        "geom_solref", "geom_solimp", "actuator_gear", "actuator_ctrlrange", "qpos0",
    ):  # fmt: skip
        one, other = getattr(ours, field), getattr(theirs, field)
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14, err_msg=field)
    for field in ("geom_size", "geom_pos"):  # a plane has no end
        one, other = getattr(ours, field)[1:], getattr(theirs, field)[1:]
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14, err_msg=field)
    np.testing.assert_allclose(
        ours.jnt_solimp[LIMITED], theirs.jnt_solimp[LIMITED], rtol=1e-12
    )
    skip = tasks.TASKS[ROBOTS[robot]].frame_skip
    pair = [(m, library.MjData(m)) for m in (ours, theirs)]
    for action in actions(200):
        for m, data in pair:
            data.ctrl[:] = action
            library.mj_step(m, data, skip)
    np.testing.assert_allclose(pair[0][1].qpos, pair[1][1].qpos, atol=1e-9)
    assert models.WALKER.height == 1.3


def test_a_missing_model_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="no model file '/nowhere/robot.xml'"):
        model.load("/nowhere/robot.xml")
