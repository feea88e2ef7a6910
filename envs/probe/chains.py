"""Two chains of three states whose values are known exactly, whatever one does.

They tell truncation from termination. `chain` ends by itself, and a time limit of 2
also cuts it; `ring` never ends, only its time limit cuts it. A method that takes a cut
for an end, or the observation after the reset for the successor, gets other values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.probe._common import check_positive, finish
from rlx.types import Array, Box, Discrete, Env, EnvSpec, Key, Step

CHAIN_REWARD = (1.0, 2.0, 3.0)
"""Reward of the step out of state 0, 1, 2; the step out of state 2 terminates."""
RING_REWARD = (0.0, 0.0, 1.0)
"""Reward of the step out of state 0, 1, 2; the step out of state 2 leads to 0."""


@struct.dataclass
class ChainState:
    """Where the walker is, and for how long it has walked."""

    position: Array
    """`int32[]` 0, 1 or 2; 3 once `chain` has terminated."""
    time: Array


def chain(time_limit: int | None = 2) -> Env:
    """0 → 1 → 2 → the end, starting anywhere; cut after `time_limit` steps.

    The observation is the state as one-hot `[3]` (all 0 after the end). Actions do
    nothing, so every policy has the values `chain_values(gamma)`.

    Args:
      time_limit: steps until truncation; None for none.

    Raises:
      ValueError: `time_limit` is less than 1.
    """
    return _walk("chain", CHAIN_REWARD, False, time_limit)


def ring(time_limit: int | None = 5) -> Env:
    """0 → 1 → 2 → 0 for ever, starting anywhere; cut after `time_limit` steps.

    Observations as in `chain`; every policy has the values `ring_values(gamma)`.

    Args:
      time_limit: steps until truncation; None for none.

    Raises:
      ValueError: `time_limit` is less than 1.
    """
    return _walk("ring", RING_REWARD, True, time_limit)


def chain_values(gamma: float) -> np.ndarray:
    """`float64[3]` V(s) of `chain`: V(2) = 3, V(1) = 2 + γV(2), V(0) = 1 + γV(1)."""
    return _solve(np.eye(3, k=1), CHAIN_REWARD, gamma)


def ring_values(gamma: float) -> np.ndarray:
    """`float64[3]` V(s) of `ring`: V(2) = 1/(1 − γ³), V(1) = γV(2), V(0) = γV(1).

    Raises:
      numpy.linalg.LinAlgError: γ is 1, where the sum diverges.
    """
    return _solve(np.roll(np.eye(3), 1, axis=1), RING_REWARD, gamma)


def _solve(
    transition: np.ndarray, reward: tuple[float, ...], gamma: float
) -> np.ndarray:
    """V = (I − γP)⁻¹ r, the Bellman equation of a policy, solved."""
    return np.linalg.solve(np.eye(len(reward)) - gamma * transition, np.array(reward))


def _walk(
    name: str, rewards: tuple[float, ...], cyclic: bool, time_limit: int | None
) -> Env:
    check_positive("time_limit", time_limit)
    size = len(rewards)

    def observe(position: Array) -> Array:
        return jax.nn.one_hot(position, size)

    def reset(key: Key) -> tuple[ChainState, Array]:
        position = jax.random.randint(key, (), 0, size)
        state = ChainState(position=position, time=jnp.int32(0))
        return state, observe(position)

    def step(state: ChainState, action: Array, key: Key) -> tuple[ChainState, Step]:
        del action, key
        reward = jnp.asarray(rewards)[state.position]
        position = state.position + 1
        position = position % size if cyclic else position
        state = ChainState(position=position, time=state.time + 1)
        terminated = position >= size
        return state, finish(
            observe(position), reward, terminated, state.time, time_limit
        )

    spec = EnvSpec(f"probe/{name}", Box((size,), 0.0, 1.0), Discrete(2), time_limit)
    return Env(reset, step, spec)
