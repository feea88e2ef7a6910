"""Any gymnax environment: `envs.make("gymnax/CartPole-v1")`.

gymnax (Lange 2022, https://github.com/RobertTLange/gymnax) without its `step`, which
resets by itself and so returns the observation after the reset as the successor. Here
`step_env` advances, its end is a termination, and `max_steps_in_episode` cuts an
episode by our own clock: gymnax before 1.0.1 took both for an end and is refused.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlx.types import Array, Box, Discrete, Env, EnvSpec, Key, PyTree, Space, Step

_DEFAULT_LIMIT = -1


@struct.dataclass
class GymnaxState:
    """gymnax's own state, and our clock."""

    state: PyTree
    """A `gymnax` `EnvState`."""
    time: Array
    """`int32[]` steps taken in this episode."""


def names() -> list[str]:
    """All environments registered with gymnax, the user's included."""
    return sorted(_library().registered_envs)


def make(name: str, *, time_limit: int | None = _DEFAULT_LIMIT, **options: Any) -> Env:
    """Makes a gymnax environment.

    Args:
      name: one of `names()`, such as `"CartPole-v1"` or `"Breakout-MinAtar"`.
      time_limit: steps until truncation, which gymnax calls `max_steps_in_episode`;
        None for none. The environment's own by default.
      **options: fields of the environment's parameters (`gravity=5.0`) or arguments of
        its class (`size=20` of DeepSea).

    Raises:
      ValueError: a time limit below 1, or spaces that are neither `Box` nor `Discrete`.
      TypeError: the environment has no such option.
      ConnectionError: its data set, which gymnax downloads, cannot be had.
    """
    library = _library()
    try:
        fields = {field.name for field in dataclasses.fields(library.make(name)[1])}
        arguments = {k: v for k, v in options.items() if k not in fields}
        env, params = library.make(name, **arguments)
    except TypeError as error:
        known = ", ".join(sorted(fields - {"max_steps_in_episode"}))
        raise TypeError(
            f"gymnax/{name} has no option {', '.join(sorted(arguments))} ({error}); "
            f"its parameters: {known}"
        ) from error
    except OSError as error:
        raise ConnectionError(
            f"gymnax/{name} downloads a data set, which failed: {error}"
        ) from error
    chosen = {k: v for k, v in options.items() if k in fields}
    return adapt(env, params.replace(**chosen), f"gymnax/{name}", time_limit)


def adapt(
    env: Any, params: Any, name: str, time_limit: int | None = _DEFAULT_LIMIT
) -> Env:
    """Turns a `gymnax` `Environment` into an `Env`.

    Args:
      env: the gymnax environment.
      params: its parameters.
      name: what the spec calls it.
      time_limit: steps until truncation; None for none. By default
        `params.max_steps_in_episode`.

    Raises:
      ValueError: a time limit below 1, or spaces that are neither `Box` nor `Discrete`.
    """
    if time_limit == _DEFAULT_LIMIT:
        time_limit = int(params.max_steps_in_episode)
    if time_limit is not None:
        if time_limit < 1:
            raise ValueError(f"time_limit must be at least 1, got {time_limit}")
        # Some observe the time left, or count it in floats.
        number = type(params.max_steps_in_episode)
        params = params.replace(max_steps_in_episode=number(time_limit))

    def raw_reset(key: Key) -> tuple[PyTree, PyTree]:
        # gymnax begins with Python numbers: weak types, compiled for a second time.
        with jax.numpy_rank_promotion("allow"):
            observation, state = env.reset_env(key, params)
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state), (
            observation
        )

    observes = _observation_space(env, params, raw_reset, name)

    def reset(key: Key) -> tuple[GymnaxState, Array]:
        state, observation = raw_reset(key)
        first = GymnaxState(state=state, time=jnp.int32(0))
        return first, jnp.asarray(observation, observes.dtype)

    def step(before: GymnaxState, action: Array, key: Key) -> tuple[GymnaxState, Step]:
        with jax.numpy_rank_promotion("allow"):
            observation, state, reward, ended, info = env.step_env(
                key, before.state, action, params
            )
        state = jax.tree.map(
            lambda leaf, old: jnp.asarray(leaf, old.dtype), state, before.state
        )
        after = GymnaxState(state=state, time=before.time + 1)
        terminated = jnp.asarray(ended, bool)
        late = jnp.bool_(False) if time_limit is None else after.time >= time_limit
        return after, Step(
            observation=jnp.asarray(observation, observes.dtype),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=late & ~terminated,
            info=_scalars(info),
        )

    spec = EnvSpec(
        name=name,
        observation=observes,
        action=_action_space(env.action_space(params), name),
        time_limit=time_limit,
    )
    return Env(reset, step, spec)


def _scalars(info: dict[str, Any]) -> dict[str, Array]:
    """What is worth logging; `discount` repeats the termination."""
    return {
        name: jnp.asarray(value, jnp.float32)
        for name, value in info.items()
        if name != "discount" and jnp.ndim(value) == 0
    }


def _observation_space(env: Any, params: Any, reset: Any, name: str) -> Space:
    """The space of what `reset` returns; its bounds are not what gymnax declares.

    gymnax's declared types and bounds are not those of all its observations. Numbers
    are float32 if either side says that they are real.
    """
    seen = jax.eval_shape(reset, jax.random.key(0))[1]
    declared = env.observation_space(params)
    if not isinstance(seen, jax.ShapeDtypeStruct) or not hasattr(declared, "shape"):
        raise ValueError(
            f"{name} observes {type(seen).__name__}, not one array: choose an option "
            "of the environment that gives a single array"
        )
    if hasattr(declared, "n"):
        return Discrete(int(declared.n))
    kinds = (np.dtype(seen.dtype), np.dtype(declared.dtype))
    real = any(np.issubdtype(kind, np.floating) for kind in kinds)
    return Box(seen.shape, dtype="float32" if real else str(seen.dtype))


def _action_space(space: Any, name: str) -> Space:
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    if not hasattr(space, "low"):
        raise ValueError(
            f"{name} takes actions of the space {type(space).__name__}; rlx has Box "
            "and Discrete"
        )
    low, high = (
        tuple(np.broadcast_to(np.asarray(bound, float), space.shape).ravel().tolist())
        for bound in (space.low, space.high)
    )
    return Box(tuple(space.shape), low, high)


def _library() -> ModuleType:
    """Returns gymnax.

    Raises:
      ImportError: it is older than 1.0.1.
    """
    import gymnax
    from gymnax.environments.environment import Environment

    if not hasattr(Environment, "is_truncated"):
        raise ImportError(
            "gymnax before 1.0.1 takes time limits for ends: "
            "pip install 'gymnax>=1.0.1'"
        )
    return gymnax
