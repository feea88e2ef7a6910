"""The Playground adapter; what needs no Playground is in `test_truncation.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from rlx.types import Box

pytest.importorskip("mujoco_playground")
from mujoco_playground import dm_control_suite  # noqa: E402

TASK = "PendulumSwingup"  # the smallest


@pytest.fixture(scope="module")
def env():
    return envs.make(f"playground/{TASK}", time_limit=4)


def test_names_are_those_of_the_control_suite():
    names = {n for n in envs.names() if n.startswith("playground/")}
    assert names == {f"playground/{n}" for n in dm_control_suite.ALL_ENVS}
    assert len(names) >= 25
    assert not any("Panda" in n or "Joystick" in n for n in names)  # need the network


def test_spec(env) -> None:
    assert env.spec.name == f"playground/{TASK}"
    assert env.spec.observation == Box((3,))
    assert env.spec.action == Box((1,), -1.0, 1.0)
    assert env.spec.time_limit == 4
    np.testing.assert_allclose(env.spec.control_frequency, 50)
    assert envs.make(f"playground/{TASK}").spec.time_limit == 1000


@pytest.mark.parametrize("name", dm_control_suite.ALL_ENVS)
def test_every_task_s_controls_are_within_one(name) -> None:
    """The adapter says [-1, 1] of all."""
    task = dm_control_suite.load(name, config_overrides={"impl": "jax"})
    limits = task.mj_model.actuator_ctrlrange
    np.testing.assert_array_equal(limits, np.tile([-1.0, 1.0], (len(limits), 1)))


def test_a_run_is_playground_s_own_cut_at_the_limit(env, key) -> None:
    """Same observations and rewards, then the true successor and no termination."""
    task = dm_control_suite.load(TASK, config_overrides={"impl": "jax"})
    actions = jax.random.uniform(key, (5, 1), minval=-1.0)
    with jax.numpy_rank_promotion("allow"):
        theirs = jax.jit(task.reset)(jax.random.key_data(key))
    their_step, our_step = jax.jit(task.step), jax.jit(env.step)
    state, observation = jax.jit(env.reset)(key)
    np.testing.assert_allclose(observation, theirs.obs, rtol=1e-6)
    before = jax.tree.map(jax.typeof, state)
    for i, action in enumerate(actions):
        with jax.numpy_rank_promotion("allow"):
            theirs = their_step(theirs, action)
        state, step = our_step(state, action, key)
        np.testing.assert_allclose(step.observation, theirs.obs, rtol=1e-6)
        np.testing.assert_allclose(step.reward, theirs.reward, rtol=1e-6)
        assert not step.terminated
        assert bool(step.truncated) == (i >= 3)
    assert jax.tree.map(jax.typeof, state) == before
    assert our_step._cache_size() == 1

    # A broken simulation shows in the reward, which Playground alone hides.
    broken = state.state.data.replace(
        qvel=jnp.full_like(state.state.data.qvel, jnp.nan)
    )
    _, step = our_step(
        state.replace(state=state.state.replace(data=broken)), action, key
    )
    assert step.terminated and not step.truncated and np.isnan(step.reward)

    picture = env.render(state)
    assert picture.shape[2] == 3 and len(np.unique(picture)) > 10


def test_mistakes() -> None:
    with pytest.raises(
        TypeError, match=f"playground/{TASK} has no option nonsense.*sim"
    ):
        envs.make(f"playground/{TASK}", nonsense=1)
    with pytest.raises(ValueError, match="no engine 'jax'.*mjx, warp"):
        envs.make(f"playground/{TASK}", engine="jax")
    with pytest.raises(ValueError, match="time_limit"):
        envs.make(f"playground/{TASK}", time_limit=0)
    with pytest.raises(ValueError, match="No environment 'playground/CheetaRun'.*Did"):
        envs.make("playground/CheetaRun")


def test_options_reach_the_configuration() -> None:
    env = envs.make(f"playground/{TASK}", ctrl_dt=0.04)
    np.testing.assert_allclose(env.spec.control_frequency, 25)
