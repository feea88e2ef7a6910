"""Making datasets: a policy acts, everything is written down in the order of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.data.dataset_record import Dataset, Metadata
from rlx.data.replay import random_policy
from rlx.data.rollout import rollout
from rlx.types import (
    Box,
    Carry,
    Env,
    Key,
    Policy,
    PyTree,
    Space,
    Transition,
)

_CHUNK = 500
"""Steps of one compiled call, at most."""


def collector(
    env: Env,
    make_policy: Callable[[PyTree], Policy],
    *,
    num_steps: int,
    num_envs: int = 10,
) -> Callable[[PyTree, Key], Dataset]:
    """A compiled function that lets policies act and returns what happened.

    `num_envs` environments step side by side, from fresh resets; each gives a stream of
    whole episodes, the last of which the end of the recording may cut. Streams follow
    one another. Actions are sampled as the policy samples, then clipped to the bounds,
    so that what is written is what was done and what the reward is for.

    Args:
      env: one environment; it is vmapped here.
      make_policy: from parameters to a policy; traced, so that another checkpoint costs
        no compilation.
      num_steps: N, exactly.
      num_envs: environments stepped together.

    Returns:
      `(parameters, key) -> Dataset` of `num_steps` steps; metadata from the spec.

    Raises:
      ValueError: a number is not positive.
    """
    if num_steps < 1 or num_envs < 1:
        raise ValueError(
            f"num_steps and num_envs must be at least 1, got {num_steps}, {num_envs}"
        )
    num_envs = min(num_envs, num_steps)
    length = -(-num_steps // num_envs)
    chunk = min(length, _CHUNK)
    source = rollout(env, num_envs=num_envs, length=chunk)

    def policy_of(parameters: PyTree) -> Policy:
        return clipped(make_policy(parameters), env.spec.action)

    @jax.jit
    def init(parameters: PyTree, key: Key) -> PyTree:
        return source.init(key, policy_of(parameters))

    @jax.jit
    def advance(parameters: PyTree, stand: PyTree, key: Key) -> Any:
        stand, batch, _ = source.next(stand, policy_of(parameters), key)
        return stand, batch.replace(extras={})

    def collect(parameters: PyTree, key: Key) -> Dataset:
        reset_key, key = jax.random.split(key)
        stand, chunks = init(parameters, reset_key), []
        for index in range(-(-length // chunk)):
            stand, batch = advance(parameters, stand, jax.random.fold_in(key, index))
            chunks.append(jax.device_get(batch))
        return Dataset(_in_order(chunks, length, num_steps), metadata_of(env))

    return collect


def _in_order(chunks: list[Transition], length: int, num_steps: int) -> Transition:
    """Chunks `[T, B, ...]` as `[N, ...]`, one stream after the other."""

    def leaf(*parts: np.ndarray) -> np.ndarray:
        rows = np.concatenate(parts)[:length].swapaxes(0, 1)
        return rows.reshape(-1, *rows.shape[2:])[:num_steps].copy()

    rows = jax.tree.map(leaf, *chunks)
    last = np.append(np.arange(length - 1, num_steps - 1, length), num_steps - 1)
    rows.truncated[last] = rows.discount[last] > 0
    return rows


def metadata_of(env: Env) -> Metadata:
    """What an environment says about data collected in it."""
    box, low, high = env.spec.action, None, None
    if isinstance(box, Box):
        low, high = (tuple(_bound(x, box).ravel().tolist()) for x in _ends(box))
    return Metadata(
        env=env.spec.name,
        time_limit=env.spec.time_limit,
        action_minimum=low,
        action_maximum=high,
    )


def clipped(policy: Policy, space: Space) -> Policy:
    """The policy with actions inside the bounds of the space."""
    if not isinstance(space, Box):
        return policy
    low, high = (_bound(x, space) for x in _ends(space))

    def act(
        observation: PyTree, carry: Carry, key: Key | None
    ) -> tuple[PyTree, Carry, PyTree]:
        action, carry, extras = policy.act(observation, carry, key)
        shape, dtype = jnp.shape(action), action.dtype
        bounds = (jnp.broadcast_to(jnp.asarray(x, dtype), shape) for x in (low, high))
        return jnp.clip(action, *bounds), carry, extras

    return Policy(act, policy.init_carry)


def uniform_policy(space: Space) -> Policy:
    """Uniformly random actions, without memory.

    Raises:
      ValueError: actions have no finite bounds.
    """
    if isinstance(space, Box):
        if not all(np.isfinite(_bound(x, space)).all() for x in _ends(space)):
            raise ValueError(
                "uniformly random actions need finite bounds, but the action space has "
                f"[{space.minimum}, {space.maximum}]"
            )
    return random_policy(space, Policy(lambda *_: ((), (), {}), lambda: ()))


def _ends(box: Box) -> tuple[Any, Any]:
    return box.minimum, box.maximum


def _bound(value: float | tuple[float, ...], box: Box) -> np.ndarray:
    shape = box.shape if np.ndim(value) else ()
    return np.broadcast_to(np.reshape(np.asarray(value, float), shape), box.shape)
