"""Whole episodes, begun anew for every batch: for methods that look at whole paths."""

from __future__ import annotations

import jax

from rlx.data.rollout import rollout
from rlx.types import DataSource, Env, Key, Metrics, Policy, PyTree, Transition


def episodes(env: Env, *, num_envs: int = 64, length: int | None = None) -> DataSource:
    """Runs `num_envs` episodes side by side from a fresh reset, batch by batch.

    Batches are `Transition`s with leading axes `[T, B] = [length, num_envs]` whose
    first row begins an episode in every column. An episode that ends before the batch
    does is followed by another, as in `rlx.data.rollout`, which says what the metrics
    are. Nothing of one batch goes over into the next.

    Args:
      env: one environment; it is vmapped here.
      num_envs: B, episodes side by side.
      length: T, steps of a batch; the environment's time limit unless given. Shorter
        ones cut the episodes: nothing after them is seen.

    Raises:
      ValueError: a size is not positive, or nothing says how long an episode is.
    """
    steps = length or env.spec.time_limit
    if steps is None:
        raise ValueError(
            f"{env.spec.name} has no time limit: say with length how many steps an "
            "episode has, or set the environment's time_limit"
        )
    source = rollout(env, num_envs=num_envs, length=steps)

    def init(key: Key, policy: Policy) -> PyTree:
        del key, policy
        return ()

    def next_batch(
        state: PyTree, policy: Policy, key: Key
    ) -> tuple[PyTree, Transition, Metrics]:
        reset_key, key = jax.random.split(key)
        start = source.init(reset_key, policy)
        _, batch, metrics = source.next(start, policy, key)
        return state, batch, metrics

    return source._replace(init=init, next=next_batch)
