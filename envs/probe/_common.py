"""What the probes share: a clock, and the two ways in which an episode ends."""

from __future__ import annotations

import jax.numpy as jnp

from rlx.types import Array, PyTree, Step


def finish(
    observation: PyTree,
    reward: Array,
    terminated: Array,
    time: Array,
    time_limit: int | None,
) -> Step:
    """Joins what a step found into a `Step`.

    A step that terminates on the last tick is terminated, not truncated: nothing
    follows it that a time limit could have cut.

    Args:
      observation: of the state just reached.
      reward: scalar.
      terminated: bool scalar.
      time: `int32[]` steps taken in this episode, this one included.
      time_limit: steps after which an episode is truncated; None never truncates.
    """
    late = jnp.bool_(False) if time_limit is None else time >= time_limit
    return Step(
        observation=observation,
        reward=jnp.asarray(reward, jnp.float32),
        terminated=jnp.asarray(terminated, bool),
        truncated=late & ~terminated,
    )


def check_positive(name: str, value: int | None) -> None:
    """Raises a ValueError unless `value` is a whole number of at least 1, or None."""
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
