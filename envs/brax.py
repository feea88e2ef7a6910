"""Any Brax environment: `envs.make("brax/ant", backend="spring")`.

Brax 0.14 (Freeman et al. 2021, https://arxiv.org/abs/2106.13281) without its wrappers,
which return the observation after the reset as the successor, write into the caller's
state and refuse typed keys. Here the clock and the end of an episode are our own.

Brax no longer maintains its environments; they serve comparison with published curves.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlx.types import Array, Box, Env, EnvSpec, Key, PyTree, Step

BACKENDS = ("generalized", "mjx", "positional", "spring")


@struct.dataclass
class BraxState:
    """Brax's own state, and our clock."""

    state: PyTree
    """A `brax.envs.State`."""
    time: Array
    """`int32[]` steps taken in this episode."""


def names() -> list[str]:
    """All environments registered with Brax, those registered by the user included."""
    return sorted(_library()._envs)


def make(
    name: str,
    *,
    backend: str | None = None,
    time_limit: int | None = 1000,
    **options: Any,
) -> Env:
    """Makes a Brax environment; actions are in [-1, 1].

    Args:
      name: one of `names()`, such as `"ant"`.
      backend: one of `BACKENDS`; None for the environment's own default.
      time_limit: steps until truncation; None for none. 1000 is what Brax trains with.
      **options: passed on to Brax, such as `terminate_when_unhealthy=False`.

    Raises:
      ValueError: no such backend, or a time limit below 1.
      TypeError: the environment has no such option.
    """
    if backend is not None:
        if backend not in BACKENDS:
            raise ValueError(
                f"brax has no backend {backend!r}; its backends: {', '.join(BACKENDS)}"
            )
        options = {"backend": backend, **options}
    library = _library()
    try:
        with warnings.catch_warnings():
            # Said on every load; the docstring above says it once.
            warnings.filterwarnings("ignore", "Brax System", UserWarning)
            env = library.get_environment(name, **options)
    except TypeError as error:
        raise TypeError(f"brax/{name} does not take these options: {error}") from error
    return adapt(env, f"brax/{name}", time_limit)


def adapt(env: Any, name: str, time_limit: int | None = 1000) -> Env:
    """Turns an object of the class `brax.envs.Env`, without wrappers, into an `Env`.

    Args:
      env: the Brax environment.
      name: what the spec calls it.
      time_limit: steps until truncation; None for none.

    Raises:
      ValueError: the time limit is below 1, or observations are no single array.
    """
    if time_limit is not None and time_limit < 1:
        raise ValueError(f"time_limit must be at least 1, got {time_limit}")

    def reset(key: Key) -> tuple[BraxState, Array]:
        # Brax and what is written for it expect keys as raw data.
        with jax.numpy_rank_promotion("allow"):
            state = env.reset(jax.random.key_data(key))
        state = _like(state, jax.tree.map(jnp.asarray, state))
        return BraxState(state=state, time=jnp.int32(0)), state.obs

    def step(before: BraxState, action: Array, key: Key) -> tuple[BraxState, Step]:
        del key
        # Some environments write into the dictionaries of the state they are given.
        copy = jax.tree.map(lambda leaf: leaf, before.state)
        with jax.numpy_rank_promotion("allow"):
            state = env.step(copy, action)
        state = _like(state, before.state)
        after = BraxState(state=state, time=before.time + 1)
        terminated = state.done > 0.5
        late = jnp.bool_(False) if time_limit is None else after.time >= time_limit
        return after, Step(
            observation=state.obs,
            reward=state.reward.astype(jnp.float32),
            terminated=terminated,
            truncated=late & ~terminated,
            info=dict(state.metrics),
        )

    def render(state: BraxState) -> np.ndarray:
        from envs.mujoco import draw, scene

        model = env.sys.mj_model
        camera = scene.Camera(distance=min(4.0, 1.5 * float(model.stat.extent)))
        joints = np.asarray(state.state.pipeline_state.q)
        return draw.render(model, joints, camera=camera)

    spec = _spec(env, reset, name, time_limit)
    return Env(reset, step, spec, render if hasattr(env, "sys") else None)


def _spec(env: Any, reset: Any, name: str, time_limit: int | None) -> EnvSpec:
    observation = jax.eval_shape(reset, jax.random.key(0))[1]
    if not isinstance(observation, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{name} observes {type(observation).__name__}, not one array: choose an "
            "option of the environment that gives a single array"
        )
    return EnvSpec(
        name=name,
        observation=Box(observation.shape, dtype=str(observation.dtype)),
        action=Box((env.action_size,), -1.0, 1.0),
        time_limit=time_limit,
        control_frequency=1 / float(env.dt) if hasattr(env, "dt") else None,
    )


def _like(state: PyTree, example: PyTree) -> PyTree:
    """The state with the example's exact types.

    Brax's inverted pendulum returns the Python number 1.0 as reward: a weak type, with
    which every program that takes the state compiles a second time.
    """
    return jax.tree.map(
        lambda leaf, other: jnp.asarray(leaf, other.dtype), state, example
    )


def _library() -> ModuleType:
    # Importing Brax prints to stdout that optional parts of MJX are missing.
    with contextlib.redirect_stdout(io.StringIO()):
        import brax.envs
    return brax.envs
