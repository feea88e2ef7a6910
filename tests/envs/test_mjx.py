"""The MJX engines against the native one, and as pure functions."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import mujoco
from envs.mujoco import bits, catalogue, device, integrate, mjx, model, native
from rlx.types import Env

# What MJX can load; humanoid's solver is missing there.
TASKS = sorted(set(mujoco.names()) - {"humanoid"})
# The smallest: two joints, Runge-Kutta, joint limits; and one with derived fields.
SMALL, DERIVED = "inverted_pendulum", "reacher"
slow = pytest.mark.slow
NUM_ENVS = 4

# From one state, one control step: of float32 and of solvers that stop elsewhere.
OBSERVATION = {"atol": 1e-4, "rtol": 1e-4}
REWARD = {"atol": 1e-4, "rtol": 1e-5}
# Contacts are stiff, and carry rounding into velocities.
CONTACTS = {"half_cheetah": {"atol": 5e-3}, "walker2d": {"atol": 5e-4}}


@functools.cache
def built(name: str, engine: str = "mjx") -> tuple[Env, jax.stages.Wrapped]:
    """One environment and its batched step, compiled once for all tests."""
    env = mujoco.make(name, engine=engine)
    return env, jax.jit(jax.vmap(env.step))


def plan(env: Env, *shape: int, seed: int = 0) -> np.ndarray:
    """Uniform actions, some of them a little beyond the bounds."""
    space = env.spec.action
    low, high = np.array(space.minimum), np.array(space.maximum)
    draws = np.random.default_rng(seed).uniform(size=(*shape, *space.shape))
    return (1.1 * (low + (high - low) * draws)).astype(np.float32)


def transfer(name: str, state: native.State) -> mjx.State:
    """A native state on MJX."""
    m = model.load(catalogue.lookup(name).model_file)
    values = bits.unpack(np.asarray(state.physics)).astype(np.float32)
    ends = np.cumsum([1, m.nq, m.nv, m.na, m.nv])
    _, qpos, qvel, activation, warm_start, position = np.split(values, ends, axis=-1)
    return mjx.State(qpos, qvel, activation, warm_start, position, state.step)


def visited(name: str, length: int) -> tuple[native.State, np.ndarray]:
    """States `[length, NUM_ENVS]` of a native run, and the actions taken there."""
    env = mujoco.make(name, engine="native")
    actions = plan(env, length, NUM_ENVS)
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), NUM_ENVS))
    _, states = jax.jit(
        lambda state: jax.lax.scan(
            lambda s, a: (jax.vmap(env.step)(s, a)[0], s), state, actions
        )
    )(state)
    return states, actions


def pick(states, i: int):
    return jax.tree.map(lambda x: x[i], states)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# ----------------------------------------------------------------------------- parity


@pytest.mark.parametrize(
    "name",
    [
        name if name in (SMALL, DERIVED) else pytest.param(name, marks=slow)
        for name in TASKS
        if name != "ant"
    ],
)
def test_a_step_equals_the_native_step(name):
    """From every state of a native run, so that differences cannot add up."""
    env, step = built(name)
    states, actions = visited(name, 60)
    native_step = jax.jit(jax.vmap(mujoco.make(name, engine="native").step))
    assert env.spec == mujoco.make(name, engine="native").spec
    tolerance = OBSERVATION | CONTACTS.get(name, {})
    ends = set()
    for i in range(60):
        _, expected = native_step(pick(states, i), actions[i])
        _, step_ = step(transfer(name, pick(states, i)), actions[i])
        np.testing.assert_allclose(
            step_.observation, expected.observation, **tolerance, err_msg=f"step {i}"
        )
        np.testing.assert_allclose(step_.reward, expected.reward, **REWARD)
        np.testing.assert_array_equal(step_.terminated, expected.terminated)
        assert set(step_.info) == set(expected.info)
        for key, value in expected.info.items():
            np.testing.assert_allclose(step_.info[key], value, rtol=1e-3, atol=1e-3)
        ends |= set(np.asarray(expected.terminated).tolist())
    never = {"half_cheetah", "pusher", "reacher", "swimmer"}
    assert (True in ends) == (name not in never)


def stands_steeply(name: str, state: mjx.State, action: np.ndarray) -> bool:
    """Whether a capsule within 30 degrees of upright comes near the floor."""
    library, task = model.import_mujoco(), catalogue.lookup(name)
    m = model.load(task.model_file)
    data = library.MjData(m)
    data.qpos[:], data.qvel[:], data.ctrl[:] = state.qpos, state.qvel, action
    capsule = m.geom_type == library.mjtGeom.mjGEOM_CAPSULE.value
    for _ in range(task.frame_skip):
        library.mj_step(m, data)
        upright = np.abs(data.geom_xmat[:, 8])
        lowest = data.geom_xpos[:, 2] - m.geom_size[:, 1] * upright - m.geom_size[:, 0]
        if (capsule & (upright > 0.85) & (lowest < 0.1)).any():
            return True
    return False


@slow
def test_a_step_of_ant_equals_the_native_step_but_for_steep_legs():
    """Where a leg that touches the ground stands within 30 degrees of upright.

    There MJX turns the pyramid that stands for the friction cone by another angle
    about the contact's normal than MuJoCo does.
    """
    env, step = built("ant")
    states, actions = visited("ant", 60)
    native_step = jax.jit(jax.vmap(mujoco.make("ant", engine="native").step))
    steep, error = [], []
    for i in range(60):
        state = transfer("ant", pick(states, i))
        _, expected = native_step(pick(states, i), actions[i])
        _, ours = step(state, actions[i])
        np.testing.assert_array_equal(ours.terminated, expected.terminated)
        scale = 1 + np.abs(expected.observation)
        difference = np.abs(ours.observation - expected.observation) / scale
        error += difference.max(axis=-1).tolist()
        steep += [
            stands_steeply("ant", pick(state, j), actions[i, j])
            for j in range(NUM_ENVS)
        ]
    error, steep = np.array(error), np.array(steep)
    assert 0.3 < np.mean(steep) < 0.9
    assert error[~steep].max() < 5e-3
    # Should MJX come to agree here, Ant belongs into the test above.
    assert np.isfinite(error).all() and error[steep].max() > 0.1


@pytest.mark.parametrize("name", [SMALL, DERIVED])
def test_a_run_follows_the_native_run(name):
    """Resets are the same, and ten steps do not drift apart."""
    env, step = built(name)
    twin = mujoco.make(name, engine="native")
    keys = jax.random.split(jax.random.key(1), NUM_ENVS)
    (state, first), (native_state, expected) = (
        jax.jit(jax.vmap(e.reset))(keys) for e in (env, twin)
    )
    np.testing.assert_allclose(first, expected, rtol=1e-6, atol=1e-6)
    for action in plan(env, 10, NUM_ENVS):
        state, ours = step(state, action)
        native_state, theirs = jax.vmap(twin.step)(native_state, action)
    np.testing.assert_allclose(ours.observation, theirs.observation, atol=2e-4)
    np.testing.assert_allclose(ours.reward, theirs.reward, atol=1e-4)


def test_humanoid_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="'humanoid'.*PGS.*engine='native'"):
        mujoco.make("humanoid", engine="mjx")


# --------------------------------------------------------------------- pure functions


def test_vmap_scan_and_one_by_one_agree():
    env, step = built(SMALL)
    keys = jax.random.split(jax.random.key(2), NUM_ENVS)
    state, _ = jax.vmap(env.reset)(keys)
    actions = plan(env, 3, NUM_ENVS)
    singles = []
    for i in range(NUM_ENVS):
        one, _ = env.reset(keys[i])
        for action in actions[:, i]:
            one, result = env.step(one, action)
        singles.append((one, result))
    for action in actions:
        state, together = step(state, action)
    expected = jax.tree.map(lambda *x: np.stack(x), *singles)
    # One program for one environment, another for many: equal up to rounding.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        (state, together),
        expected,
    )


def test_the_same_run_twice_is_the_same_to_the_bit():
    env, step = built(SMALL)
    runs = []
    for _ in range(2):
        state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), NUM_ENVS))
        for action in plan(env, 5, NUM_ENVS):
            state, result = step(state, action)
        runs.append((state, result))
    assert_same(*runs)


def test_stepping_compiles_once_and_keeps_types():
    env, step = built(SMALL)
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), NUM_ENVS))
    before, compiled = jax.tree.map(jax.typeof, state), None
    for action in plan(env, 3, NUM_ENVS):
        state, result = step(state, action)
        compiled = compiled or step._cache_size()
    assert jax.tree.map(jax.typeof, state) == before
    assert step._cache_size() == compiled
    assert result.reward.dtype == result.observation.dtype == jnp.float32


def test_time_limit_truncates_at_exactly_the_limit():
    env, _ = built(SMALL)
    short = mujoco.make(SMALL, engine="mjx", time_limit=3)
    assert env.spec.time_limit == 1000 and short.spec.time_limit == 3
    state, _ = short.reset(jax.random.key(0))
    cut = []
    for action in plan(env, 5):
        state, step = short.step(state, action)
        cut.append(bool(step.truncated))
    assert cut == [False, False, True, True, True]


# ------------------------------------------------------------------------ derivatives


def test_forward_derivatives_are_those_of_the_native_engine():
    """`jax.jvp` through the solver, against finite differences of MuJoCo itself."""
    env, _ = built(SMALL)
    states, _ = visited(SMALL, 3)
    state = transfer(SMALL, jax.tree.map(lambda x: x[2, 0], states))

    def observe(action):
        return env.step(state, action)[1].observation

    action, width = jnp.array([0.3]), 0.05
    _, ours = jax.jit(lambda a: jax.jvp(observe, (a,), (jnp.ones(1),)))(action)
    twin = mujoco.make(SMALL, engine="native")
    start = jax.tree.map(lambda x: x[2, 0], states)
    high, low = (
        np.asarray(twin.step(start, action + sign * width)[1].observation, np.float64)
        for sign in (1, -1)
    )
    expected = (high - low) / (2 * width)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(ours, expected, rtol=1e-2, atol=1e-3)


@slow
def test_gradients_with_a_solver_without_a_loop():
    env = mujoco.make(SMALL, engine="mjx", solver_iterations=1)
    state, _ = env.reset(jax.random.key(0))

    def velocity(action):
        return env.step(state, action)[1].observation[2]

    action = jnp.array([0.3])
    gradient = jax.jit(jax.grad(velocity))(action)
    _, forward = jax.jit(lambda a: jax.jvp(velocity, (a,), (jnp.ones(1),)))(action)
    np.testing.assert_allclose(gradient[0], forward, rtol=1e-5)
    assert abs(float(forward)) > 0.01

    looped, _ = built(SMALL)
    with pytest.raises(ValueError, match="while_loop"):
        jax.grad(lambda a: looped.step(state, a)[1].observation[2])(action)


# ------------------------------------------------------------------------ bad physics


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_bad_action_shows_and_stays_alone(poison):
    env, step = built(SMALL)
    start, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), NUM_ENVS))
    actions = plan(env, 2, NUM_ENVS)
    bad = actions.copy()
    bad[0, 1, 0] = poison
    clean = step(step(start, actions[0])[0], actions[1])[1]
    state, first = step(start, bad[0])
    _, second = step(state, bad[1])  # a broken state stays broken
    for result in (first, second):
        assert np.isnan(result.reward[1])
        assert np.isnan(result.observation[1]).all()
        assert result.terminated[1] and not result.truncated[1]
    others = np.array([0, 2, 3])
    assert_same(*(jax.tree.map(lambda x: x[others], s) for s in (second, clean)))
    assert np.isfinite(second.reward[others]).all()


def test_divergence_shows():
    env, step = built(SMALL)
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), NUM_ENVS))
    state = state.replace(qvel=state.qvel.at[1, 0].set(1e11))
    _, result = step(state, plan(env, NUM_ENVS))
    assert np.isnan(result.reward[1]) and result.terminated[1]
    assert np.isfinite(result.reward[0])


# ----------------------------------------------------------------- choice of an engine


@pytest.mark.parametrize(
    ("backend", "kind"), [("cpu", native.State), ("gpu", mjx.State), ("tpu", mjx.State)]
)
def test_the_engine_follows_the_device(backend, kind, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    state = jax.eval_shape(mujoco.make(SMALL).reset, jax.random.key(0))[0]
    assert isinstance(state, kind)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "mjxx"}, "Did you mean 'mjx'"),
        ({"engine": "mjx", "threads": 2}, "threads is an option of engine native"),
        ({"engine": "native", "solver_iterations": 2}, "engine mjx or warp"),
        ({"engine": "mjx", "max_envs": 2}, "engine warp, not of 'mjx'"),
        ({"engine": "mjx", "solver_iterations": 0}, "solver_iterations must be at"),
        ({"engine": "warp", "deterministic": True}, "not deterministic"),
    ],
)
def test_bad_choices_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mujoco.make(SMALL, **options)


def test_deterministic_engines_accept_that_they_are():
    for engine in ("native", "mjx"):
        assert mujoco.make(SMALL, engine=engine, deterministic=True).spec.name == SMALL


def test_a_missing_warp_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "warp" else found(name),
    )
    with pytest.raises(ImportError, match=r"pip install 'rlx\[warp\]'"):
        mujoco.make(SMALL, engine="warp")


def test_a_wrong_action_shape_is_refused():
    env, _ = built(SMALL)
    state, _ = env.reset(jax.random.key(0))
    with pytest.raises(ValueError, match=r"shape \(1,\), got \(4, 1\).*vmap"):
        env.step(state, jnp.zeros((4, 1)))


def test_import_and_make_are_silent(capfd):
    device.import_mjx.cache_clear()
    mujoco.make(SMALL, engine="mjx")
    assert "".join(capfd.readouterr()) == ""


def test_render_draws_the_state():
    env, _ = built(SMALL)
    state, _ = env.reset(jax.random.key(0))
    fallen = state.replace(qpos=jnp.array([0.0, 1.2]))
    pictures = [env.render(s, width=60, height=40) for s in (state, fallen)]
    assert pictures[0].shape == (40, 60, 3) and pictures[0].dtype == np.uint8
    assert (pictures[0] != pictures[1]).mean() > 0.01


# ------------------------------------------------------------------------ integration


@dataclasses.dataclass(frozen=True)
class Spring:
    """What `runge_kutta` needs of a simulation: here a = -x for every joint."""

    qpos: jax.Array
    qvel: jax.Array
    qacc: jax.Array
    qacc_warmstart: jax.Array
    time: jax.Array
    replace = dataclasses.replace


jax.tree_util.register_dataclass(
    Spring, ["qpos", "qvel", "qacc", "qacc_warmstart", "time"], []
)


def test_runge_kutta_is_of_fourth_order():
    m = model.load("inverted_pendulum.xml")
    errors = []
    for size in (0.2, 0.1):
        m.opt.timestep = size
        zero, one = jnp.zeros(2), jnp.ones(2)
        spring = Spring(one, zero, zero, zero, jnp.float32(0))
        for _ in range(round(2 / size)):
            spring = integrate.runge_kutta(lambda s: s.replace(qacc=-s.qpos), m, spring)
        np.testing.assert_allclose(spring.time, 2.0, rtol=1e-5)
        errors.append(abs(float(spring.qpos[0]) - np.cos(2.0)))
    assert errors[1] < 2e-5
    assert 10 < errors[0] / errors[1] < 24  # 2⁴, rounding aside


def test_joints_move_as_in_mujoco(generator):
    library = model.import_mujoco()
    m = library.MjModel.from_xml_string(
        """
        <mujoco><worldbody>
          <body><freejoint/><geom size="1"/>
            <body><joint type="ball"/><geom size="1"/>
              <body><joint type="hinge"/><joint type="slide"/><geom size="1"/></body>
            </body></body>
        </worldbody></mujoco>
        """
    )
    move = jax.jit(lambda qpos, qvel: integrate.move(m, qpos, qvel, 0.7))
    for scale in (1.0, 1e-3, 0.0):
        qpos, qvel = m.qpos0.copy(), scale * generator.normal(size=m.nv)
        library.mj_integratePos(m, qpos, generator.normal(size=m.nv), 1.0)
        ours = move(jnp.float32(qpos), jnp.float32(qvel))
        library.mj_integratePos(m, qpos, qvel, 0.7)
        np.testing.assert_allclose(ours, qpos, atol=1e-6)
    slope = jax.jit(jax.grad(lambda qvel: move(jnp.float32(qpos), qvel).sum()))
    assert np.isfinite(slope(jnp.zeros(m.nv))).all()


@slow
def test_runge_kutta_equals_mjx_s_own():
    """State, warm start and derived fields of one physics step."""
    name = "hopper"
    task = catalogue.lookup(name)
    m = model.load(task.model_file)
    library = device.import_mjx()
    device_model = library.put_model(m, impl="jax")
    states, actions = visited(name, 30)
    state = transfer(name, jax.tree.map(lambda x: x[29, 0], states))
    data = library.make_data(m, impl="jax").replace(
        qpos=state.qpos, qvel=state.qvel, ctrl=actions[29, 0]
    )
    with jax.numpy_rank_promotion("allow"):
        forward = functools.partial(library.forward, device_model)
        ours = jax.jit(lambda d: integrate.runge_kutta(forward, m, d))(data)
        theirs = jax.jit(lambda d: library.rungekutta4(device_model, forward(d)))(data)
    for field in ("qpos", "qvel", "qacc_warmstart", "xpos", "qfrc_constraint", "time"):
        np.testing.assert_allclose(
            getattr(ours, field), getattr(theirs, field), rtol=1e-4, atol=1e-4
        )


# ------------------------------------------------------------------------------- warp


@slow
@pytest.mark.parametrize("name", ["inverted_pendulum", "hopper"])
def test_a_warp_step_equals_the_native_step(name):
    """On the CPU, where Warp runs too if it is installed."""
    pytest.importorskip("warp")
    env = mujoco.make(name, engine="warp", max_envs=NUM_ENVS)
    step = jax.jit(jax.vmap(env.step))
    states, actions = visited(name, 40)
    native_step = jax.jit(jax.vmap(mujoco.make(name, engine="native").step))
    for i in range(40):
        _, expected = native_step(pick(states, i), actions[i])
        _, ours = step(transfer(name, pick(states, i)), actions[i])
        np.testing.assert_allclose(ours.observation, expected.observation, atol=1e-3)
        np.testing.assert_allclose(ours.reward, expected.reward, atol=1e-3)
        np.testing.assert_array_equal(ours.terminated, expected.terminated)


@slow
def test_warp_refuses_contact_forces_and_small_buffers_show():
    pytest.importorskip("warp")
    with pytest.raises(ValueError, match="'ant' does not run on engine 'warp'.*forces"):
        mujoco.make("ant", engine="warp")
    # Hopper lying down has more contacts than a buffer for a part of one environment.
    env = mujoco.make("hopper", engine="warp", max_envs=1)
    states, actions = visited("hopper", 60)
    many = jax.tree.map(lambda x: np.repeat(x, 8, axis=0), pick(states, 59))
    state = transfer("hopper", many)
    _, result = jax.jit(jax.vmap(env.step))(state, np.repeat(actions[59], 8, axis=0))
    assert np.isnan(result.reward).any()
