"""Probes that fail for one reason each.

After Jones 2021, https://andyljones.com/posts/rl-debugging.html: each probe needs one
part of a method more than the one before, so the first that fails names the part.

| probe | new part | value, best action |
|---|---|---|
| `constant_reward` | the value's loss | V = 1 |
| `observation_reward` | the value's gradient to the observation | V(o) = o |
| `delayed_reward` | discounting and the bootstrap | V = γ, then 1 |
| `action_reward` | the policy's gradient | action 1; V = 1 |
| `observation_action` | the policy's gradient to the observation | 1 if o > 0 |
| `memory` | the carry | the first observation; V = γᵏ |
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from envs.probe._common import check_positive, finish
from rlx.types import Array, Box, Discrete, Env, EnvSpec, Key, Step

BEST_ACTION = 0.5
"""Where the continuous probes have their optimum (times the observation, if any)."""


def constant_reward() -> Env:
    """One step, one observation, reward 1 whatever one does. V = 1."""

    def reset(key: Key) -> tuple[Array, Array]:
        del key
        return jnp.zeros((1,)), jnp.zeros((1,))

    def step(state: Array, action: Array, key: Key) -> tuple[Array, Step]:
        del action, key
        return state, _last(state, jnp.float32(1))

    return Env(reset, step, _spec("constant_reward"))


def observation_reward() -> Env:
    """One step; the observation is -1 or 1, and so is the reward. V(o) = o."""

    def step(state: Array, action: Array, key: Key) -> tuple[Array, Step]:
        del action, key
        return state, _last(state, state[0])

    return Env(_random_sign, step, _spec("observation_reward"))


def delayed_reward() -> Env:
    """Two steps, observed as 0 and 1; reward 1 at the end. V(0) = γ, V(1) = 1."""

    def reset(key: Key) -> tuple[Array, Array]:
        del key
        return jnp.zeros((1,)), jnp.zeros((1,))

    def step(state: Array, action: Array, key: Key) -> tuple[Array, Step]:
        del action, key
        last = state[0] > 0
        state = state + 1
        return state, finish(state, last, last, jnp.int32(0), None)

    return Env(reset, step, _spec("delayed_reward"))


def action_reward(continuous: bool = False) -> Env:
    """One step, one observation; the action alone decides.

    Discrete: two actions, reward 1 for action 1 and -1 for action 0. Best value 1.
    Continuous: reward -(a - 0.5)² for a in [-1, 1]. Best value 0.

    Args:
      continuous: whether the action is a real number.
    """

    def reset(key: Key) -> tuple[Array, Array]:
        del key
        return jnp.zeros((1,)), jnp.zeros((1,))

    def step(state: Array, action: Array, key: Key) -> tuple[Array, Step]:
        del key
        return state, _last(state, _match(action, jnp.float32(1), continuous))

    return Env(reset, step, _spec("action_reward", continuous))


def observation_action(continuous: bool = False) -> Env:
    """One step; the observation o is -1 or 1, and says which action is good.

    Discrete: reward 1 for action 1 if o > 0 and for action 0 else; -1 if wrong.
    Continuous: reward -(a - o/2)² for a in [-1, 1].

    Args:
      continuous: whether the action is a real number.
    """

    def step(state: Array, action: Array, key: Key) -> tuple[Array, Step]:
        del key
        return state, _last(state, _match(action, state[0], continuous))

    return Env(_random_sign, step, _spec("observation_action", continuous))


@struct.dataclass
class MemoryState:
    """The cue to recall, and how many steps ago it was shown."""

    cue: Array
    time: Array


def memory(delay: int = 4) -> Env:
    """A cue is seen once and must be recalled `delay` steps later.

    The observation is `(cue, now)`: the cue is -1 or 1 in the first observation and 0
    after it; `now` is 1 in the last observation, when the action counts: reward 1 for
    action 1 if the cue was 1 and for action 0 if it was -1, else reward -1.

    The best policy has the value γ^delay at the first observation. No memoryless
    policy is worth anything but 0 on average.

    Args:
      delay: steps between the cue and the question, at least 1.

    Raises:
      ValueError: `delay` is less than 1.
    """
    check_positive("delay", delay)

    def observe(state: MemoryState) -> Array:
        cue = jnp.where(state.time == 0, state.cue, 0.0)
        return jnp.stack([cue, (state.time == delay).astype(jnp.float32)])

    def reset(key: Key) -> tuple[MemoryState, Array]:
        cue = jax.random.rademacher(key, (), jnp.float32)
        state = MemoryState(cue=cue, time=jnp.int32(0))
        return state, observe(state)

    def step(state: MemoryState, action: Array, key: Key) -> tuple[MemoryState, Step]:
        del key
        asked = state.time == delay
        reward = jnp.where(asked, _match(action, state.cue, False), 0.0)
        state = MemoryState(cue=state.cue, time=state.time + 1)
        return state, finish(observe(state), reward, asked, state.time, None)

    spec = EnvSpec("probe/memory", Box((2,), -1.0, 1.0), Discrete(2))
    return Env(reset, step, spec)


def _random_sign(key: Key) -> tuple[Array, Array]:
    sign = jax.random.rademacher(key, (1,), jnp.float32)
    return sign, sign


def _match(action: Array, target: Array, continuous: bool) -> Array:
    """How well an action fits a target of -1 or 1."""
    if continuous:
        return -jnp.square(action[0] - BEST_ACTION * target)
    return jnp.where((action == 1) == (target > 0), 1.0, -1.0)


def _last(observation: Array, reward: Array) -> Step:
    return finish(observation, reward, jnp.bool_(True), jnp.int32(1), None)


def _spec(name: str, continuous: bool = False) -> EnvSpec:
    observation = Box((1,), -1.0, 1.0)
    if continuous:
        action = Box((1,), -1.0, 1.0)
        return EnvSpec(f"probe/{name}_continuous", observation, action)
    return EnvSpec(f"probe/{name}", observation, Discrete(2))
