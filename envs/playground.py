"""MuJoCo Playground's DeepMind Control suite: `envs.make("playground/CheetahRun")`.

Playground (Zakka et al. 2025, https://arxiv.org/abs/2502.08844) without its wrappers,
which return the observation after the reset as the successor and write into the
caller's state. Tasks of the control suite have no end of their own: an episode is cut
at its limit, 1000 steps. A simulation that diverges gives a NaN reward, which training
reports, where Playground alone gives a finished episode.

Playground's locomotion and manipulation tasks clone their robots from the network when
they are loaded; they are not offered here.
"""

from __future__ import annotations

import contextlib
import io
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from envs import brax
from rlx.types import Array, Env, Key, Step

_ENGINES = {"mjx": "jax", "warp": "warp"}
_DEFAULT_LIMIT = -1


def names() -> list[str]:
    """The tasks of the control suite, those registered by the user included."""
    return sorted(_suite().ALL_ENVS)


def make(
    name: str,
    *,
    engine: str = "mjx",
    time_limit: int | None = _DEFAULT_LIMIT,
    **options: Any,
) -> Env:
    """Makes a task of the control suite; actions are in [-1, 1].

    Args:
      name: one of `names()`, such as `"CheetahRun"`.
      engine: `"mjx"`, MuJoCo in JAX, on any device; or `"warp"`, MuJoCo's CUDA kernels,
        which differ from run to run. Playground itself defaults to warp.
      time_limit: steps until truncation; None for none. The task's own by default.
      **options: replace entries of the task's configuration, such as `sim_dt=0.005`.

    Raises:
      ValueError: no such engine, or a time limit below 1.
      TypeError: the task's configuration has no such entry.
    """
    if engine not in _ENGINES:
        raise ValueError(
            f"playground has no engine {engine!r}; its engines: {', '.join(_ENGINES)}"
        )
    suite = _suite()
    config = suite.get_default_config(name)
    if time_limit == _DEFAULT_LIMIT:
        time_limit = config.episode_length
    # The clock and what repeats an action belong to wrappers that are not used here.
    known = sorted(set(config) - {"impl", "episode_length", "action_repeat"})
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f"playground/{name} has no option {', '.join(unknown)}; "
            f"its options: {', '.join(known)}"
        )
    env = suite.load(name, config, {**options, "impl": _ENGINES[engine]})
    return adapt(env, f"playground/{name}", time_limit)


def adapt(env: Any, name: str, time_limit: int | None = 1000) -> Env:
    """Turns an `MjxEnv` of Playground, without wrappers, into an `Env`.

    Args:
      env: the environment.
      name: what the spec calls it.
      time_limit: steps until truncation; None for none.

    Raises:
      ValueError: the time limit is below 1, or observations are no single array.
    """
    # Playground's states have the fields of Brax's, but for the physics inside.
    plain = brax.adapt(env, name, time_limit)

    def step(before: Any, action: Array, key: Key) -> tuple[Any, Step]:
        after, result = plain.step(before, action, key)
        sound = jnp.isfinite(result.observation).all()
        reward = jnp.where(sound, result.reward, jnp.nan)
        return after, result.replace(reward=reward)

    def render(state: Any) -> np.ndarray:
        from envs.mujoco import draw, scene

        model = env.mj_model
        camera = scene.Camera(distance=min(4.0, 1.5 * float(model.stat.extent)))
        joints = np.asarray(state.state.data.qpos, np.float64)
        return draw.render(model, joints, camera=camera)

    return plain._replace(step=step, render=render)


def _suite() -> ModuleType:
    # Importing MJX prints to stdout that its optional parts are missing.
    with contextlib.redirect_stdout(io.StringIO()):
        from mujoco_playground import dm_control_suite
    return dm_control_suite
