"""Segments of experience in pairs, and the labels that a teacher gave to them.

Christiano et al. 2017, https://arxiv.org/abs/1706.03741, section 2.2. A segment is cut
from one episode: it may contain the episode's last step, nothing after it.

`Pairs` hold the true reward, which a scripted teacher looks at; `Labels`, which a
method learns from, do not.
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
from flax import struct

from rlx.ops.preference import Answer
from rlx.types import Array, EnvSpec, Key, PyTree, Transition


@struct.dataclass
class Pairs:
    """N pairs of segments of L steps."""

    observation: Array
    """`[N, 2, L, *D]`."""
    action: Array
    """`[N, 2, L, *A]`."""
    reward: Array
    """`[N, 2, L]` the true reward: for the teacher alone."""
    whole: Array
    """`bool[N]`, False where no two whole segments were found: never to be shown."""


@struct.dataclass
class Batch:
    """Experience to learn from, and pairs to ask about. Leaves of each lead alike."""

    experience: Transition
    candidates: Pairs


@struct.dataclass
class Where:
    """Where in a batch `[T, B]` the segments of N pairs lie; leaves `[N, 2]`."""

    start: Array
    """The step at which a segment begins."""
    stream: Array


@struct.dataclass
class Labels:
    """The last C labels, oldest overwritten, and a count of all that was asked."""

    observation: Array
    """`[C, 2, L, *D]`."""
    action: Array
    """`[C, 2, L, *A]`."""
    preference: Array
    """`[C]` y: 1 the first segment is the better, 0 the second, ½ neither."""
    cursor: Array
    """`int32[]` the row that is written next."""
    size: Array
    """`int32[]` rows written so far, at most C."""
    asked: Array
    """`int32[]` queries shown to the teacher, skipped ones too: the budget spent."""
    skipped: Array
    """`int32[]` queries without an answer."""
    ties: Array
    """`int32[]` answers that preferred neither."""
    missing: Array
    """`int32[]` queries not shown, as the data held no whole segment for them."""


def empty(spec: EnvSpec, capacity: int, length: int) -> Labels:
    """A buffer without labels.

    Args:
      spec: of the environment.
      capacity: C, labels remembered.
      length: L, steps of a segment.

    Raises:
      ValueError: a size is not positive, or a segment is longer than an episode.
    """
    if capacity < 1 or length < 1:
        raise ValueError(
            f"labels need a positive capacity and segment length, got {capacity} and "
            f"{length}"
        )
    limit = spec.time_limit
    if limit is not None and length > limit:
        raise ValueError(
            f"a segment of {length} steps is longer than an episode of {spec.name}: "
            f"choose at most {limit}"
        )
    shapes = [(capacity, 2, length, *s.shape) for s in (spec.observation, spec.action)]
    # One zero each: donated buffers may not be shared between leaves.
    counts = {
        name: jnp.zeros((), jnp.int32)
        for name in ("cursor", "size", "asked", "skipped", "ties", "missing")
    }
    return Labels(
        observation=jnp.zeros(shapes[0], spec.observation.dtype),
        action=jnp.zeros(shapes[1], spec.action.dtype),
        preference=jnp.full((capacity,), 0.5),
        **counts,
    )


def write(labels: Labels, pairs: Pairs, answer: Answer) -> Labels:
    """Keeps what was answered, over the oldest labels once the buffer is full.

    Pairs that are not whole, and queries without an answer (weight 0), take no row;
    they are counted.

    Args:
      labels: the buffer.
      pairs: N of them.
      answer: the teacher's, `[N]`.

    Raises:
      AssertionError: shapes differ.
      ValueError: N exceeds the capacity.
    """
    capacity, number = labels.preference.shape[0], pairs.whole.shape[0]
    chex.assert_shape([answer.preference, answer.weight], (number,))
    if number > capacity:
        raise ValueError(
            f"{number} labels at a time do not fit a buffer of {capacity}: choose a "
            "larger capacity"
        )
    if pairs.observation.shape[1:] != labels.observation.shape[1:]:
        raise ValueError(
            f"the buffer holds segments {labels.observation.shape[2:]}, the pairs have "
            f"{pairs.observation.shape[2:]}: give the data source and the method the "
            "same segment length"
        )
    answered = pairs.whole & (answer.weight > 0)
    order = jnp.cumsum(answered) - 1
    row = jnp.where(answered, (labels.cursor + order) % capacity, capacity)
    count = jnp.sum(answered, dtype=jnp.int32)

    def put(rows: Array, new: Array) -> Array:
        return rows.at[row].set(new.astype(rows.dtype), mode="drop")

    def number_of(condition: Array) -> Array:
        return jnp.sum(condition, dtype=jnp.int32)

    return labels.replace(
        observation=put(labels.observation, pairs.observation),
        action=put(labels.action, pairs.action),
        preference=put(labels.preference, answer.preference),
        cursor=(labels.cursor + count) % capacity,
        size=jnp.minimum(labels.size + count, capacity),
        asked=labels.asked + number_of(pairs.whole),
        skipped=labels.skipped + number_of(pairs.whole & ~answered),
        ties=labels.ties + number_of(answered & (answer.preference == 0.5)),
        missing=labels.missing + number_of(~pairs.whole),
    )


def ends(experience: Transition) -> Array:
    """`bool[...]`, True at the last step of an episode."""
    return experience.truncated | (experience.discount == 0)


def draw(key: Key, experience: Transition, number: int, length: int) -> Where:
    """Places of pairs of whole segments in a rollout, uniform over all places.

    The two segments of a pair lie in different streams: they are independent.

    Args:
      key: used once.
      experience: leaves `[T, B, ...]`.
      number: N, pairs.
      length: L, steps of a segment.

    Returns:
      The places; a start of -1 where there is none.

    Raises:
      ValueError: L exceeds T, or there is only one stream.
    """
    num_steps, num_streams = experience.reward.shape
    if length > num_steps:
        raise ValueError(
            f"a segment of {length} steps does not fit a batch of {num_steps} steps: "
            "choose a longer batch or shorter segments"
        )
    if num_streams < 2:
        raise ValueError(
            "pairs need two independent streams: set num_envs to 2 or more"
        )
    free = _starts(ends(experience), length)
    first_key, second_key = jax.random.split(key)
    rows = jnp.broadcast_to(free.ravel(), (number, free.size))
    first, found = _pick(first_key, rows)
    streams = jnp.arange(free.size) % num_streams
    others = streams[None, :] != (first % num_streams)[:, None]
    second, found_second = _pick(second_key, rows & others)
    both = jnp.stack([first, second], 1)
    there = (found & found_second)[:, None]
    start = jnp.where(there, both // num_streams, -1)
    return Where(start=start, stream=both % num_streams)


def _starts(ended: Array, length: int) -> Array:
    """`bool[T - L + 1, B]`, whether L steps from here stay in one episode."""
    count = jnp.cumsum(ended.astype(jnp.int32), 0)
    before = jnp.concatenate([jnp.zeros_like(count[:1]), count])
    # An end at the last step of the segment is inside it.
    last = ended.shape[0] - length + 1
    return before[length - 1 :][:last] == before[:last]


def _pick(key: Key, possible: Array) -> tuple[Array, Array]:
    """For each row `[N, M]`, one of its True places, uniformly; whether it has one."""
    score = jax.random.uniform(key, possible.shape)
    chosen = jnp.argmax(jnp.where(possible, score, -1.0), axis=1)
    return chosen, jnp.any(possible, axis=1)


def cut(experience: Transition, where: Where, length: int) -> Pairs:
    """The segments at some places of a rollout `[T, B, ...]`."""
    start = jnp.maximum(where.start, 0)
    step = start[..., None] + jnp.arange(length)[None, None, :]
    stream = jnp.broadcast_to(where.stream[..., None], step.shape)

    def take(x: Array) -> Array:
        return x[step, stream]

    return Pairs(
        observation=take(experience.observation),
        action=take(experience.action),
        reward=take(experience.reward),
        whole=jnp.all(where.start >= 0, axis=1),
    )


def choose(pairs: Pairs, score: Array, count: int) -> tuple[Pairs, Array]:
    """The pairs of highest score, whole ones first, and their indices `[count]`.

    Raises:
      ValueError: there are fewer pairs than asked for.
    """
    number = pairs.whole.shape[0]
    if not 1 <= count <= number:
        raise ValueError(f"cannot choose {count} of {number} candidates")
    chex.assert_equal_shape([score, pairs.whole])
    ranked = jnp.where(pairs.whole, score, -jnp.inf)
    index = jax.lax.top_k(ranked, count)[1]
    return jax.tree.map(lambda x: x[index], pairs), index


def crops(key: Key, number: int, length: int, margin: int) -> Array:
    """Masks for temporal cropping (Park et al. 2022, SURF, section 4.2).

    Of the length + 2 margin steps of a segment, a window of length ± margin steps
    remains; both segments of a pair keep equally many, from starts of their own.

    Args:
      key: used once.
      number: N, pairs.
      length: steps of a segment without its margins.
      margin: steps on either side; 0: nothing is cropped.

    Returns:
      `bool[N, 2, length + 2 margin]`.

    Raises:
      ValueError: the margin is negative, or no step might remain.
    """
    if not 0 <= margin < length:
        raise ValueError(f"margin must lie in 0 ... {length - 1}, got {margin}")
    size_key, start_key = jax.random.split(key)
    total = length + 2 * margin
    low, high = length - margin, length + margin + 1
    size = jax.random.randint(size_key, (number, 1, 1), low, high)
    start = jax.random.randint(start_key, (number, 2, 1), 0, total + 1 - size)
    step = jnp.arange(total)[None, None, :]
    return (step >= start) & (step < start + size)


def memory_bytes(labels: PyTree) -> int:
    """Bytes that a buffer, or its shapes, takes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(labels))
