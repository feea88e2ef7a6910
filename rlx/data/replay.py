"""Off-policy data: a ring of past experience, sampled uniformly.

Lin 1992, https://doi.org/10.1007/BF00992699; Mnih et al. 2015,
https://doi.org/10.1038/nature14236.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlx.data import ring as ring_lib
from rlx.data.rollout import RolloutState, rollout
from rlx.types import (
    Array,
    Box,
    DataSource,
    Env,
    EnvSpec,
    Key,
    Metrics,
    Policy,
    PyTree,
    Space,
    Transition,
)


@struct.dataclass
class ReplayState:
    """Where the environments stand, and what is remembered."""

    rollout: RolloutState
    ring: ring_lib.Ring


class Collector(NamedTuple):
    """How experience gets into a ring, however it is drawn from there."""

    init: Callable[[Key, Policy], ReplayState]
    """Fresh environments, and a ring that holds the warm-up."""
    collect: Callable[[ReplayState, Policy, Key], tuple[ReplayState, Metrics]]
    """`length` steps of all environments, written into the ring."""
    steps: int
    """Environment steps that `collect` takes."""


def replay(  # noqa: PLR0913 (the front door: everything is given by name)
    env: Env,
    *,
    num_envs: int = 1,
    length: int = 1,
    batch_size: int = 256,
    num_minibatches: int = 1,
    capacity: int = 1_000_000,
    warmup: int = 10_000,
    n_step: int = 1,
    gamma: float = 0.99,
) -> DataSource:
    """Steps the environments, remembers what happened, and samples from all of it.

    One batch is `num_envs * length` environment steps, then `num_minibatches` times
    `batch_size` transitions, drawn uniformly with replacement: a `Transition` with
    leading axes `[num_minibatches, batch_size]`. A method with the same
    `num_minibatches` takes that many gradient steps of `batch_size` transitions each;
    the ratio of gradient steps to environment steps is therefore exactly

        num_epochs * num_minibatches / (num_envs * length)

    and 1 by default. `next_observation` is the true successor; `discount` and
    `truncated` say what ended. What the policy returned beside the action (`extras`)
    is not remembered.

    Args:
      env: one environment; it is vmapped here.
      num_envs: environments stepped together.
      length: steps per environment and batch.
      batch_size: transitions in a minibatch.
      num_minibatches: minibatches in a batch.
      capacity: transitions remembered, over all environments.
      warmup: environment steps with uniformly random actions before the first batch;
        `init` takes them, and a run's `num_steps` does not count them.
      n_step: steps that a transition spans, see `rlx.data.ring.sample`. `discount`
        then holds γ^{m-1} for the m steps it spans.
      gamma: γ, which must be the method's; used only where `n_step` > 1.

    Raises:
      ValueError: a size is impossible, `capacity` or `warmup` is no multiple of the
        steps per batch (names the nearest), the memory cannot hold `capacity`, or a
        warm-up is asked for where actions have no bounds.
    """
    require_positive(
        batch_size=batch_size, num_minibatches=num_minibatches, n_step=n_step
    )
    collector = make_collector(
        env, num_envs=num_envs, length=length, capacity=capacity, warmup=warmup
    )

    def next_batch(
        state: ReplayState, policy: Policy, key: Key
    ) -> tuple[ReplayState, Transition, Metrics]:
        act_key, sample_key = jax.random.split(key)
        state, metrics = collector.collect(state, policy, act_key)
        batch = ring_lib.sample(
            state.ring, sample_key, (num_minibatches, batch_size), n_step, gamma
        )
        return state, batch, metrics

    return DataSource(
        init=collector.init,
        next=next_batch,
        steps_per_batch=collector.steps,
        num_envs=num_envs,
        env=env,
    )


def make_collector(
    env: Env, *, num_envs: int, length: int, capacity: int, warmup: int
) -> Collector:
    """What replay of every kind shares; arguments and errors as `replay` says."""
    require_positive(num_envs=num_envs, length=length, capacity=capacity)
    steps = num_envs * length
    _require_multiple("capacity", capacity, steps)
    _require_multiple("warmup", warmup, steps)
    if not 0 <= warmup <= capacity:
        raise ValueError(f"warmup must lie in 0 ... capacity={capacity}, got {warmup}")
    if warmup:
        _random_action(env.spec.action, None, (1,))  # complain now
    _require_memory(env.spec, capacity)
    experience = rollout(env, num_envs=num_envs, length=length)

    def collect(
        state: ReplayState, policy: Policy, key: Key
    ) -> tuple[ReplayState, Metrics]:
        stand, batch, metrics = experience.next(state.rollout, policy, key)
        ring = ring_lib.write(state.ring, batch.replace(extras={}))
        return ReplayState(rollout=stand, ring=ring), metrics

    def init(key: Key, policy: Policy) -> ReplayState:
        reset_key, key = jax.random.split(key)
        stand = experience.init(reset_key, policy)
        _, example, _ = jax.eval_shape(
            lambda stand, key: experience.next(stand, policy, key), stand, key
        )
        example = example.replace(extras={})
        ring = ring_lib.empty(example, capacity // num_envs)
        state = ReplayState(rollout=stand, ring=ring)
        if not warmup:
            return state
        chance = random_policy(env.spec.action, policy)

        def one(state: ReplayState, key: Key) -> tuple[ReplayState, None]:
            return collect(state, chance, key)[0], None

        keys = jax.random.split(key, warmup // steps)
        return jax.lax.scan(one, state, keys)[0]

    return Collector(init, collect, steps)


def memory_bytes(spec: EnvSpec, capacity: int) -> int:
    """Bytes that one run's ring of `capacity` transitions takes.

    Vmapped seeds have one ring each.
    """
    observation, action = (
        sum(_bytes(space) for space in jax.tree.leaves(spaces))
        for spaces in (spec.observation, spec.action)
    )
    # Reward and discount in float32, truncated as a byte; both observations.
    return capacity * (2 * observation + action + 4 + 4 + 1)


def _bytes(space: Space) -> int:
    return math.prod(space.shape) * np.dtype(space.dtype).itemsize


def _require_memory(spec: EnvSpec, capacity: int) -> None:
    needed, there = memory_bytes(spec, capacity), _memory_of_device()
    if there is not None and needed > there:
        fits = there * capacity // needed
        raise ValueError(
            f"replay of {capacity} transitions of {spec.name} takes "
            f"{needed / 2**30:.1f} GiB, but the device has {there / 2**30:.1f} GiB in "
            f"all: choose a capacity well below {fits}"
        )


def require_memory(state: PyTree, shares: int) -> None:
    """Checks that the rings of all runs fit together, before anything is computed.

    Args:
      state: shapes of the state of a fit, in which rings may lie anywhere; leaves lead
        with the axis of runs.
      shares: memories that the runs are spread over, see `rlx.sharding.memories`.

    Raises:
      ValueError: they do not fit; names capacity, bytes, runs, and what to set.
    """

    def is_ring(node: PyTree) -> bool:
        return isinstance(node, ring_lib.Ring)

    rings = [x for x in jax.tree.leaves(state, is_leaf=is_ring) if is_ring(x)]
    if not rings:
        return
    runs = -(-rings[0].rows.reward.shape[0] // shares)
    sizes = [
        math.prod(x.shape[1:]) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves([ring.rows for ring in rings])
    ]
    capacity = math.prod(rings[0].rows.reward.shape[1:])
    needed, there = runs * sum(sizes), _memory_of_device()
    if there is not None and needed > there:
        raise ValueError(
            f"replay of {capacity} transitions takes {sum(sizes) / 2**30:.2f} GiB, and "
            f"the {runs} runs that share a memory {needed / 2**30:.2f} GiB, but it has "
            f"{there / 2**30:.2f} GiB in all: set the replay's capacity well below "
            f"{there * capacity // needed}, or train fewer than "
            f"{there // sum(sizes) + 1} runs at a time"
        )


def _memory_of_device() -> int | None:
    """All the memory where arrays live by default; None where nobody says."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def require_positive(**sizes: int) -> None:
    """Raises ValueError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _require_multiple(name: str, value: int, steps: int) -> None:
    below = value // steps * steps
    if value != below:
        raise ValueError(
            f"{name}={value} is no multiple of the {steps} steps of a batch (num_envs "
            f"times length): ask for {below} or {below + steps}"
        )


def random_policy(space: Space, policy: Policy) -> Policy:
    """Uniformly random actions; the memory of the real policy is passed through."""

    def act(observation: PyTree, carry: PyTree, key: Key | None):
        num_envs = jax.tree.leaves(observation)[0].shape[0]
        return _random_action(space, key, (num_envs,)), carry, {}

    return Policy(act, policy.init_carry)


def _random_action(space: Space, key: Key | None, batch: tuple[int, ...]) -> Array:
    """Uniform in the space `[*batch, *shape]`; without a key, only checks it."""
    shape = (*batch, *space.shape)
    if not isinstance(space, Box):
        if key is None:
            return jnp.zeros(shape, space.dtype)
        return jax.random.randint(key, shape, 0, space.num_values, space.dtype)
    low, high = (
        np.broadcast_to(np.reshape(x, space.shape if np.ndim(x) else ()), space.shape)
        for x in (space.minimum, space.maximum)
    )
    if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high))):
        raise ValueError(
            "random actions need finite bounds, but the action space has "
            f"[{space.minimum}, {space.maximum}]: set warmup=0"
        )
    if key is None:
        return jnp.zeros(shape, space.dtype)
    unit = jax.random.uniform(key, shape, space.dtype)
    least, most = (
        jnp.broadcast_to(jnp.asarray(x, unit.dtype), shape) for x in (low, high)
    )
    return least + (most - least) * unit
