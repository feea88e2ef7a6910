"""Replay with pairs of segments beside its batches, to ask a teacher about.

Lee et al. 2021 (PEBBLE), https://arxiv.org/abs/2106.05091, section 4.2.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlx.data import ring as ring_lib
from rlx.data.replay import ReplayState, replay
from rlx.ops.segments import Batch, Pairs
from rlx.types import Array, DataSource, Env, Key, Metrics, Policy, PyTree

TRIES = 8
"""Places drawn for each segment; the first that lies in one episode is taken."""


def segments(
    env: Env,
    *,
    segment_length: int = 50,
    num_candidates: int = 100,
    recent: int = 100_000,
    **options: Any,
) -> DataSource:
    """Replay whose batches also hold pairs of segments, drawn from recent experience.

    A batch is a `rlx.ops.segments.Batch`: what `replay` gives as `experience`, and
    `num_candidates` pairs, each segment uniform over the recent steps from which
    `segment_length` steps stay in one episode. Rewards are the environment's: a method
    that learns from preferences shows them to its teacher alone.

    Args:
      env: one environment; it is vmapped here.
      segment_length: L, steps of a segment.
      num_candidates: N, pairs in each batch.
      recent: steps, over all environments, from which segments are drawn (PEBBLE's
        code: 100 episodes).
      **options: of `rlx.data.replay.replay`.

    Raises:
      ValueError: a size is impossible, a segment is longer than an episode or than
        what is remembered, `n_step` is not 1, or as `replay` says.
    """
    if options.get("n_step", 1) != 1:
        raise ValueError(
            "rewards that are learned replace those of single steps: set n_step to 1"
        )
    source = replay(env, **options)
    rows = recent // source.num_envs
    limit = env.spec.time_limit
    if segment_length < 1 or num_candidates < 1:
        raise ValueError(
            "segment_length and num_candidates must be at least 1, got "
            f"{segment_length} and {num_candidates}"
        )
    if limit is not None and segment_length > limit:
        raise ValueError(
            f"a segment of {segment_length} steps is longer than an episode of "
            f"{env.spec.name}: choose at most {limit}"
        )
    if segment_length > rows:
        raise ValueError(
            f"recent={recent} steps are {rows} in each of {source.num_envs} "
            f"environments, fewer than the {segment_length} of a segment: choose more"
        )

    def next_batch(
        state: ReplayState, policy: Policy, key: Key
    ) -> tuple[PyTree, Batch, Metrics]:
        key, draw_key = jax.random.split(key)
        state, experience, metrics = source.next(state, policy, key)
        shape = (num_candidates, 2)
        pairs = draw(state.ring, draw_key, shape, segment_length, rows)
        return state, Batch(experience=experience, candidates=pairs), metrics

    return source._replace(next=next_batch)


def draw(
    ring: ring_lib.Ring, key: Key, shape: tuple[int, int], length: int, recent: int
) -> Pairs:
    """Pairs of segments from the last `recent` rows of a ring.

    Args:
      ring: what is remembered.
      key: used once.
      shape: (N, 2).
      length: L.
      recent: rows, the newest ones, from which segments are drawn.

    Returns:
      The pairs; `whole` is False where none of `TRIES` places lay in one episode.
    """
    age_key, stream_key = jax.random.split(key)
    num_rows, num_streams = ring.rows.reward.shape
    oldest = jnp.maximum(ring.size - min(recent, num_rows), 0)
    last = ring.size - length
    tries = (TRIES, *shape)
    age = jax.random.randint(age_key, tries, oldest, jnp.maximum(last, oldest) + 1)
    stream = jax.random.randint(stream_key, tries, 0, num_streams)

    def rows_from(age: Array, count: int) -> Array:
        steps = jnp.arange(count).reshape((1,) * age.ndim + (count,))
        return (ring.cursor - ring.size + age[..., None] + steps) % num_rows

    here = (rows_from(age, length - 1), stream[..., None])
    ended = (ring.rows.discount[here] == 0) | ring.rows.truncated[here]
    good = ~jnp.any(ended, axis=-1) & (last >= oldest)
    first = jnp.argmax(good, axis=0)[None]
    age, stream = (jnp.take_along_axis(x, first, 0)[0] for x in (age, stream))

    def take(x: Array) -> Array:
        return x[rows_from(age, length), stream[..., None]]

    return Pairs(
        observation=take(ring.rows.observation),
        action=take(ring.rows.action),
        reward=take(ring.rows.reward),
        whole=jnp.all(jnp.any(good, axis=0), axis=1),
    )
