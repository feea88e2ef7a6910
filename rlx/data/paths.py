"""Whole simulated paths as batches: for methods that look at a path from its end."""

from __future__ import annotations

from collections.abc import Callable

from flax import struct

from rlx.types import Array, DataSource, Key, Metrics, Policy, PyTree, Transition


@struct.dataclass
class PathsState:
    """The kept batch of an offline source; nothing for a stream."""

    batch: PyTree


def paths(
    sample: Callable[[Key], Transition], num_paths: int, num_steps: int
) -> DataSource:
    """Draws `num_paths` fresh paths of `num_steps` steps for every batch.

    Args:
      sample: `(key) -> Transition` with leading axes `[num_steps, num_paths]`, such as
        a simulator under the policy that is evaluated. The learner's own policy is not
        asked.
      num_paths: B.
      num_steps: T.
    """

    def init(key: Key, policy: Policy) -> PathsState:
        del key, policy
        return PathsState(batch=())

    def next_batch(
        state: PathsState, policy: Policy, key: Key
    ) -> tuple[PathsState, Transition, Metrics]:
        del policy
        batch = sample(key)
        _require_shape(batch.reward, num_steps, num_paths)
        return state, batch, {}

    return DataSource(
        init=init,
        next=next_batch,
        steps_per_batch=num_paths * num_steps,
        num_envs=num_paths,
    )


def recorded(batch: Transition) -> DataSource:
    """Gives the same recorded paths `[T, B]` every time: offline evaluation.

    Raises:
      ValueError: the batch has not the leading axes `[T, B]`.
    """
    if batch.reward.ndim != 2:
        raise ValueError(
            f"paths need leading axes [T, B], got rewards of shape {batch.reward.shape}"
        )

    def init(key: Key, policy: Policy) -> PathsState:
        del key, policy
        return PathsState(batch=batch)

    def next_batch(
        state: PathsState, policy: Policy, key: Key
    ) -> tuple[PathsState, Transition, Metrics]:
        del policy, key
        return state, state.batch, {}

    return DataSource(init=init, next=next_batch, num_envs=batch.reward.shape[1])


def _require_shape(reward: Array, num_steps: int, num_paths: int) -> None:
    if reward.shape != (num_steps, num_paths):
        raise ValueError(
            f"sample gave rewards of shape {reward.shape}, but {num_paths} paths of "
            f"{num_steps} steps were announced: expected {(num_steps, num_paths)}"
        )
