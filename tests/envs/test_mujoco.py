"""MuJoCo tasks against Gymnasium, and the native engine as a pure function."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from envs import mujoco
from envs.mujoco import bits, catalogue, hostcall, model, native
from rlx.types import Env

gymnasium = pytest.importorskip("gymnasium")

GYMNASIUM = {
    "ant": "Ant-v5",
    "half_cheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "humanoid": "Humanoid-v5",
    "inverted_double_pendulum": "InvertedDoublePendulum-v5",
    "inverted_pendulum": "InvertedPendulum-v5",
    "pusher": "Pusher-v5",
    "reacher": "Reacher-v5",
    "swimmer": "Swimmer-v5",
    "walker2d": "Walker2d-v5",
}
NEVER_TERMINATES = {"half_cheetah", "pusher", "reacher", "swimmer"}
# One task without derived fields, one on `DataPool`, one whose reset calls MuJoCo.
KINDS = ("hopper", "ant", "reacher")


def actions(env: Env, *shape: int, seed: int = 0) -> np.ndarray:
    """Uniform actions, some of them a little beyond the bounds."""
    space = env.spec.action
    low, high = np.array(space.minimum), np.array(space.maximum)
    draws = np.random.default_rng(seed).uniform(size=(*shape, *space.shape))
    return (1.1 * (low + (high - low) * draws)).astype(np.float32)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


class Twin:
    """A Gymnasium environment that is put into our environment's state."""

    def __init__(self, name: str, **options):
        model.import_mujoco()  # before gymnasium can write MUJOCO_LOG.TXT
        self.env = gymnasium.make(GYMNASIUM[name], **options).unwrapped
        self.sizes = self.env.model.nq, self.env.model.nv

    def follow(self, state) -> np.ndarray:
        """Takes over a state that was just reset; returns the observation."""
        nq, nv = self.sizes
        values = bits.unpack(np.asarray(state.physics))
        model.import_mujoco().mj_resetData(self.env.model, self.env.data)
        self.env.set_state(values[1 : 1 + nq], values[1 + nq : 1 + nq + nv])
        return self.env._get_obs()


def check_parity(name: str, steps: int, **options) -> int:
    """Runs both side by side, to the bit in float32; returns how many episodes died."""
    env, twin = mujoco.make(name, **options), Twin(name, **options)
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    state, observation = reset(jax.random.key(0))
    np.testing.assert_array_equal(observation, np.float32(twin.follow(state)))
    deaths = 0
    for i, action in enumerate(actions(env, steps)):
        state, ours = step(state, action)
        observation, reward, terminated, _, info = twin.env.step(action)
        np.testing.assert_array_equal(ours.observation, np.float32(observation))
        np.testing.assert_array_equal(ours.reward, np.float32(reward))
        assert bool(ours.terminated) == bool(terminated)
        for key, value in ours.info.items():
            np.testing.assert_allclose(value, info[key], rtol=1e-6, atol=1e-7)
        if terminated or i % 90 == 89:
            deaths += bool(terminated)
            state, observation = reset(jax.random.key(i + 1))
            np.testing.assert_array_equal(observation, np.float32(twin.follow(state)))
    return deaths


@pytest.mark.parametrize("name", sorted(GYMNASIUM))
def test_equals_gymnasium_step_by_step(name):
    deaths = check_parity(name, steps=220)
    assert (deaths == 0) == (name in NEVER_TERMINATES)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "hopper",
            {
                "exclude_current_positions_from_observation": False,
                "forward_reward_weight": 2.0,
                "ctrl_cost_weight": 0.5,
                "healthy_reward": 3.0,
                "healthy_z_range": (0.9, 1.3),
                "healthy_angle_range": (-0.1, 0.1),
                "healthy_state_range": (-4.0, 4.0),
                "reset_noise_scale": 0.02,
            },
        ),
        (
            "ant",
            {
                "include_cfrc_ext_in_observation": False,
                "contact_cost_weight": 0.1,
                "contact_force_range": (-0.5, 2.0),
                "healthy_z_range": (0.5, 0.9),
                "main_body": "torso",
                "reset_noise_scale": 0.2,
            },
        ),
        ("ant", {"main_body": 3, "exclude_current_positions_from_observation": False}),
        (
            "humanoid",
            {
                "include_cinert_in_observation": False,
                "include_qfrc_actuator_in_observation": False,
                "contact_cost_weight": 1e-3,
                "contact_cost_range": (0.1, 2.0),
            },
        ),
        ("pusher", {"reward_near_weight": 2.0, "reward_control_weight": 0.7}),
    ],
)
def test_options_mean_what_they_mean_in_gymnasium(name, options):
    check_parity(name, steps=40, **options)


def test_terminate_when_unhealthy_can_be_switched_off():
    assert check_parity("walker2d", 60, terminate_when_unhealthy=False) == 0


@pytest.mark.parametrize("name", sorted(GYMNASIUM))
def test_definition_matches_gymnasium(name):
    """Options and their defaults, frame skip, time limit, shapes, bounds, frequency."""
    env, twin = mujoco.make(name), Twin(name).env
    task = catalogue.lookup(name)
    parameters = inspect.signature(type(twin).__init__).parameters
    theirs = {
        key: value.default
        for key, value in parameters.items()
        if key not in ("self", "xml_file", "default_camera_config", "kwargs")
    }
    assert theirs.pop("frame_skip") == task.frame_skip
    assert dict(task.options) == theirs
    spec = gymnasium.spec(GYMNASIUM[name])
    assert env.spec.time_limit == spec.max_episode_steps
    assert env.spec.observation.shape == twin.observation_space.shape
    assert env.spec.action.shape == twin.action_space.shape
    np.testing.assert_array_equal(env.spec.action.minimum, twin.action_space.low)
    np.testing.assert_array_equal(env.spec.action.maximum, twin.action_space.high)
    np.testing.assert_allclose(env.spec.control_frequency, 1 / twin.dt)


def test_names_are_the_ten_tasks():
    assert mujoco.names() == sorted(GYMNASIUM)


@pytest.mark.parametrize("name", ["half_cheetah", "hopper", "pusher", "reacher"])
def test_resets_have_gymnasium_s_distribution(name):
    env, twin = mujoco.make(name), Twin(name).env
    nq, nv = twin.model.nq, twin.model.nv
    keys = jax.random.split(jax.random.key(3), 2000)
    states, _ = jax.jit(jax.vmap(env.reset))(keys)
    ours = bits.unpack(np.asarray(states.physics))[:, 1 : 1 + nq + nv]
    theirs = []
    for i in range(500):
        twin.reset(seed=7 if i == 0 else None)
        theirs.append(np.concatenate([twin.data.qpos, twin.data.qvel]))
    for one, other in zip(ours.T, np.stack(theirs, axis=1), strict=True):
        if np.ptp(other) == 0:
            np.testing.assert_allclose(one, other[0], atol=1e-7)
        else:
            assert scipy.stats.ks_2samp(one, other).pvalue > 1e-4


# --------------------------------------------------------------------- pure functions


@pytest.mark.parametrize("name", KINDS)
def test_jit_eager_loop_vmap_and_scan_agree(name):
    """One environment at a time, eagerly, is the reference of every other form."""
    env = mujoco.make(name)
    keys = jax.random.split(jax.random.key(1), 6)
    plan = actions(env, 3, 6)

    def rollout(key, plan):
        state, observation = env.reset(key)
        return observation, *jax.lax.scan(env.step, state, plan)

    reset = jax.jit(env.reset)  # eager and fused normal draws differ in their last bit
    expected = []
    for i, key in enumerate(keys):
        state, first = reset(key)
        steps = []
        for action in plan[:, i]:
            state, step = env.step(state, action, None)
            steps.append(step)
        steps = jax.tree.map(lambda *x: np.stack(x), *steps)
        expected.append((first, state, steps))
    expected = jax.tree.map(lambda *x: np.stack(x), *expected)

    plan = np.moveaxis(plan, 0, 1)
    assert_same(jax.jit(jax.vmap(rollout))(keys, plan), expected)
    one = jax.jit(jax.vmap(rollout))(keys[:1], plan[:1])
    assert_same(one, jax.tree.map(lambda x: x[:1], expected))
    assert_same(
        jax.jit(rollout)(keys[2], plan[2]), jax.tree.map(lambda x: x[2], expected)
    )

    def fold(x):
        return x.reshape(2, 3, *x.shape[1:])

    nested = jax.jit(jax.vmap(jax.vmap(rollout)))(fold(keys), fold(plan))
    assert_same(nested, jax.tree.map(fold, expected))


@pytest.mark.parametrize("name", KINDS)
def test_thread_count_changes_nothing(name):
    outcomes = []
    for threads in (1, 3):
        env = mujoco.make(name, threads=threads)
        state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 7))
        outcomes.append(
            jax.jit(lambda s, a, env=env: jax.lax.scan(jax.vmap(env.step), s, a))(
                state, actions(env, 4, 7)
            )
        )
    assert_same(*outcomes)


@pytest.mark.parametrize("name", KINDS)
def test_callers_in_several_threads_do_not_meet(name):
    """Every thread's results are those of a lone caller."""
    env = mujoco.make(name, threads=1)
    run = jax.jit(lambda s, a: jax.lax.scan(jax.vmap(env.step), s, a))
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 5))
    plans = [actions(env, 10, 5, seed=seed) for seed in range(4)]
    expected = [run(state, plan) for plan in plans]
    results = [None] * len(plans)

    def work(i):
        for _ in range(3):
            results[i] = run(state, plans[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(plans))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert_same(results, expected)


def test_nested_vmaps_are_one_call_of_the_whole_batch(monkeypatch):
    shapes = []
    original = native.Engine._host_step

    def spy(engine, words):
        shapes.append(words.shape[:-1])
        return original(engine, words)

    monkeypatch.setattr(native.Engine, "_host_step", spy)
    env = mujoco.make("hopper", reset_noise_scale=0.003)
    state, _ = jax.vmap(jax.vmap(env.reset))(
        jax.random.split(jax.random.key(0), (4, 5))
    )
    jax.block_until_ready(jax.vmap(jax.vmap(env.step))(state, jnp.zeros((4, 5, 3))))
    assert shapes == [(4, 5)]


def test_pure_callback_gives_the_same_numbers(monkeypatch):
    """What runs where XLA's foreign functions do not (accelerators)."""
    env = mujoco.make("hopper")
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 3))
    plan = actions(env, 5, 3)

    def run(state, plan):
        return jax.lax.scan(jax.vmap(env.step), state, plan)

    expected = jax.jit(run)(state, plan)
    monkeypatch.setattr(hostcall, "_register", lambda name, function: False)
    text = jax.jit(lambda s, a: run(s, a)).lower(state, plan).as_text()
    assert "python_cpu_callback" in text
    assert_same(jax.jit(lambda s, a: run(s, a))(state, plan), expected)


def test_host_errors_reach_the_caller():
    def broken(x):
        raise ValueError("the host said no")

    shape = jax.ShapeDtypeStruct((2,), jnp.float32)

    def call(x):
        return hostcall.call("rlx_test_broken", broken, (shape,), x)

    with pytest.raises(jax.errors.JaxRuntimeError, match="the host said no"):
        jax.block_until_ready(jax.jit(call)(jnp.zeros(3)))


def test_resets_differ_by_key_and_repeat_by_key():
    env = mujoco.make("hopper")
    states, observations = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 50))
    assert len(np.unique(np.asarray(observations), axis=0)) == 50
    again, _ = env.reset(jax.random.split(jax.random.key(0), 50)[7])
    assert_same(again, jax.tree.map(lambda x: x[7], states))


@pytest.mark.parametrize("name", KINDS)
def test_saved_state_goes_on_as_if_never_stopped(name, tmp_path):
    env = mujoco.make(name)
    run = jax.jit(lambda s, a: jax.lax.scan(env.step, s, a))
    state, _ = env.reset(jax.random.key(0))
    plan = actions(env, 30)
    unbroken, _ = run(state, plan)
    half, _ = run(state, plan[:15])
    leaves, tree = jax.tree.flatten(half)
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as file:
        loaded = jax.tree.unflatten(tree, [jnp.asarray(file[k]) for k in file.files])
    resumed, _ = run(loaded, plan[15:])
    assert_same(resumed, unbroken)


def test_float64_bits_are_exact(generator):
    values = generator.normal(size=(5, 3)) * 10.0 ** generator.integers(-200, 200)
    np.testing.assert_array_equal(bits.unpack(bits.pack(values)), values)
    assert bits.pack(values).dtype == np.uint32


# --------------------------------------------------------------- ends of episodes


def run_steps(env: Env, plan):
    state, _ = env.reset(jax.random.key(0))
    _, steps = jax.jit(lambda s, a: jax.lax.scan(env.step, s, a))(state, plan)
    return np.asarray(steps.terminated), np.asarray(steps.truncated)


def test_time_limit_truncates_at_exactly_the_limit():
    env = mujoco.make("half_cheetah", time_limit=5)
    assert env.spec.time_limit == 5
    terminated, truncated = run_steps(env, actions(env, 7))
    np.testing.assert_array_equal(truncated, [0, 0, 0, 0, 1, 1, 1])
    assert not terminated.any()


def test_no_time_limit_never_truncates():
    env = mujoco.make("half_cheetah", time_limit=None)
    assert env.spec.time_limit is None
    assert not run_steps(env, actions(env, 7))[1].any()


def test_a_step_can_be_both_terminated_and_truncated():
    env = mujoco.make("hopper")
    plan = actions(env, 100)
    last = int(np.argmax(run_steps(env, plan)[0]))
    assert last > 1
    terminated, truncated = run_steps(mujoco.make("hopper", time_limit=last + 1), plan)
    assert terminated[last]
    assert truncated[last]
    assert not truncated[:last].any()
    assert not run_steps(mujoco.make("hopper", time_limit=last + 2), plan)[1][last]


# -------------------------------------------------------------------- bad physics


@pytest.mark.parametrize("name", ["hopper", "ant", "inverted_pendulum", "reacher"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_bad_action_shows_and_stays_alone(name, poison, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = mujoco.make(name)
    step = jax.jit(jax.vmap(env.step))
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 4))
    plan = actions(env, 2, 4)
    clean_state, _ = step(state, plan[0])
    _, clean = step(clean_state, plan[1])
    bad = plan.copy()
    bad[0, 1, 0] = poison
    state, first = step(state, bad[0])
    _, second = step(state, bad[1])  # a broken state stays broken
    for result in (first, second):
        assert np.isnan(result.reward[1])
        assert np.isnan(result.observation[1]).all()
        assert result.terminated[1]
        assert not result.truncated[1]
    others = np.array([0, 2, 3])
    assert_same(*(jax.tree.map(lambda x: x[others], s) for s in (second, clean)))
    assert np.isfinite(second.reward[others]).all()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["hopper", "ant"])
def test_divergence_is_not_reset_away(name, tmp_path, monkeypatch, capfd):
    """MuJoCo alone would put the diverged simulation back to its initial state."""
    monkeypatch.chdir(tmp_path)
    env = mujoco.make(name)
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2))
    values = bits.unpack(np.asarray(state.physics)).copy()
    qvel = slice(1 + Twin(name).sizes[0], 3 + Twin(name).sizes[0])
    values[1, qvel] = 1e11  # finite, but beyond what MuJoCo accepts
    state = state.replace(physics=jnp.asarray(bits.pack(values)))
    _, step = jax.jit(jax.vmap(env.step))(state, actions(env, 2))
    assert np.isfinite(step.reward[0])
    assert np.isnan(step.reward[1])
    assert step.terminated[1]
    assert "unstable" in "".join(capfd.readouterr())
    assert not list(tmp_path.iterdir())  # no MUJOCO_LOG.TXT


# -------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hoper", {}, "Unknown MuJoCo task: 'hoper'. Did you mean 'hopper'"),
        ("hopper", {"engine": "nativ"}, "Did you mean 'native'"),
        ("hopper", {"healthy_rewards": 2.0}, "Did you mean 'healthy_reward'"),
        ("reacher", {"reset_noise_scale": 0.1}, "Unknown option of 'reacher'"),
        ("hopper", {"time_limit": 0}, "time_limit must be at least 1"),
        ("hopper", {"threads": 0}, "threads must be at least 1"),
    ],
)
def test_bad_arguments_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        mujoco.make(name, **options)


def test_a_wrong_action_shape_is_refused():
    env = mujoco.make("hopper")
    state, _ = env.reset(jax.random.key(0))
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(4, 3\).*vmap"):
        env.step(state, jnp.zeros((4, 3)))


def test_a_missing_gymnasium_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install .*gymnasium"):
        mujoco.make("hopper")


# --------------------------------------------------------------- in other processes


def run_python(code: str, **environment: str) -> str:
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


def test_several_devices_call_at_once_and_imports_are_lazy():
    """Four virtual devices, each with its own environments, equal one device."""
    run_python(
        """
        import sys
        import envs.mujoco
        envs.mujoco.names()
        assert not {"mujoco", "gymnasium"} & set(sys.modules)
        import jax, numpy as np
        from jax.sharding import AxisType, PartitionSpec as P
        assert jax.local_device_count() == 4
        mesh = jax.make_mesh((4,), ("env",), axis_types=(AxisType.Auto,))
        for name in ("hopper", "ant"):
            env = envs.mujoco.make(name)
            def run(keys, plan):
                state, _ = jax.vmap(env.reset)(keys)
                return jax.lax.scan(jax.vmap(env.step), state, plan)
            keys = jax.random.split(jax.random.key(0), 8)
            size = env.spec.action.shape
            plan = jax.random.uniform(jax.random.key(1), (5, 8, *size), minval=-1)
            specs = (P("env"), P(None, "env"))
            sharded = jax.jit(jax.shard_map(
                run, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False,
            ))(keys, plan)
            jax.tree.map(
                np.testing.assert_array_equal, sharded, jax.jit(run)(keys, plan))
        """,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )


def test_compiled_programs_are_kept_between_processes(tmp_path):
    code = """
        import jax, jax.monitoring
        import envs.mujoco
        events = []
        jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
        env = envs.mujoco.make("inverted_pendulum")
        state, _ = env.reset(jax.random.key(0))
        events.clear()
        _, step = jax.jit(env.step)(state, jax.numpy.zeros(1))
        print("/jax/compilation_cache/cache_hits" in events, float(step.reward))
        """
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    assert run_python(code, **cache).split() == ["False", "1.0"]
    assert run_python(code, **cache).split() == ["True", "1.0"]
