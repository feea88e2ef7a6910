"""A ring of transitions: what replay buffers are made of, as pure functions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rlx.types import Array, Key, PyTree, Transition


@struct.dataclass
class Ring:
    """The last transitions of `B` parallel streams, time first, oldest overwritten."""

    rows: Transition
    """Leaves `[R, B, ...]` in the dtypes in which they came."""
    cursor: Array
    """`int32[]` the row that is written next."""
    size: Array
    """`int32[]` rows written so far, at most R."""


def empty(example: Transition, num_rows: int) -> Ring:
    """A ring without content.

    Args:
      example: arrays or shapes `[T, B, ...]`; only `B`, shapes and dtypes matter.
      num_rows: R; a multiple of the T that will be written at a time.
    """

    def leaf(x: Any) -> Array:
        return jnp.zeros((num_rows, *x.shape[1:]), x.dtype)

    # Two zeros: donated buffers may not be shared between two leaves.
    return Ring(
        rows=jax.tree.map(leaf, example),
        cursor=jnp.zeros((), jnp.int32),
        size=jnp.zeros((), jnp.int32),
    )


def write(ring: Ring, batch: Transition) -> Ring:
    """Writes `batch [T, B, ...]`, over the oldest rows once the ring is full.

    Raises:
      ValueError: R is no multiple of T, so that a write would cross the seam.
      TypeError: the batch's dtypes are not those of the ring.
    """
    num_rows, length = ring.rows.reward.shape[0], batch.reward.shape[0]
    if num_rows % length:
        raise ValueError(
            f"a ring of {num_rows} rows cannot be filled {length} rows at a time: "
            f"choose a multiple of {length}"
        )

    def leaf(rows: Array, new: Array) -> Array:
        if rows.dtype != new.dtype:
            raise TypeError(f"the ring holds {rows.dtype}, the batch {new.dtype}")
        # A slice update, not a scatter: compiled in place where the ring is donated.
        return jax.lax.dynamic_update_slice_in_dim(rows, new, ring.cursor, axis=0)

    return Ring(
        rows=jax.tree.map(leaf, ring.rows, batch),
        cursor=(ring.cursor + length) % num_rows,
        size=jnp.minimum(ring.size + length, num_rows),
    )


def sample(
    ring: Ring,
    key: Key,
    shape: tuple[int, ...],
    n_step: int = 1,
    gamma: float | Array = 1.0,
) -> Transition:
    """Draws transitions uniformly, with replacement, from all that are written.

    With `n_step` n > 1 a transition spans m <= n steps: it stops early at a
    termination, at a truncation, and at the newest row of its stream, where it
    bootstraps from the true successor of the last step it spans:

        reward = Σ_{k<m} γᵏ r_k     discount = γ^{m-1} d_{m-1}

    so that `reward + γ · discount · V(next_observation)` is the m-step target.

    Args:
      ring: at least one row must be written.
      key: used once.
      shape: leading axes of the result.
      n_step: n >= 1.
      gamma: γ, used only where n > 1.

    Returns:
      A `Transition` with leaves `[*shape, ...]`.
    """
    num_streams = ring.rows.reward.shape[1]
    drawn = jax.random.randint(key, shape, 0, ring.size * num_streams)
    return read(ring, drawn, n_step, gamma)


def read(
    ring: Ring, drawn: Array, n_step: int = 1, gamma: float | Array = 1.0
) -> Transition:
    """The transitions that were drawn, as `sample` says.

    Args:
      ring: at least one row must be written.
      drawn: `int32[*shape]`: age (0: the oldest that is kept) times B, plus stream.
      n_step: n >= 1.
      gamma: γ, used only where n > 1.

    Returns:
      A `Transition` with leaves `[*shape, ...]`.
    """
    num_streams, shape = ring.rows.reward.shape[1], drawn.shape
    parts = _cut(drawn.ravel(), max(2, shape[0] if len(shape) > 1 else 1))

    def take(index: Array) -> Transition:
        return _spanning(ring, index // num_streams, index % num_streams, n_step, gamma)

    def one(part: Array, found: Transition) -> Transition:
        here = take(parts[part])
        return jax.tree.map(lambda all_, new: all_.at[part].set(new), found, here)

    # In several parts and a number of rounds that XLA cannot know: else it would fuse
    # the last write into the reading and, to keep what was there before for it, copy
    # the whole ring at every batch.
    nothing = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(jax.vmap(take), parts)
    )
    rounds = parts.shape[0] * jnp.minimum(ring.size, 1)
    found = jax.lax.fori_loop(0, rounds, one, nothing)

    def join(x: Array) -> Array:
        # Told, not -1: a leaf may be empty.
        rows = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
        return rows[: drawn.size].reshape(*shape, *x.shape[2:])

    return jax.tree.map(join, found)


def _cut(index: Array, count: int) -> Array:
    """`[N]` as `[count, ...]`, some of it twice where `count` does not divide N."""
    size = -(-index.size // count)
    return jnp.resize(index, (count, size))


def _spanning(
    ring: Ring, age: Array, stream: Array, n_step: int, gamma: float | Array
) -> Transition:
    """The transitions that start at an age of a stream, as `sample` says."""
    first = at(ring, age, stream)
    if n_step == 1:
        return first
    num_rows, shape = ring.rows.reward.shape[0], age.shape
    oldest = ring.cursor - ring.size

    def row(offset: int) -> Array:
        return (oldest + jnp.minimum(age + offset, ring.size - 1)) % num_rows

    rows = ring.rows
    ended = (rows.discount == 0) | rows.truncated
    reward = jnp.zeros_like(first.reward)
    alive = jnp.ones(shape, bool)
    last = jnp.zeros(shape, jnp.int32)
    for offset in range(n_step):
        here = (row(offset), stream)
        alive &= age + offset < ring.size
        reward += jnp.where(alive, gamma**offset * rows.reward[here], 0.0)
        last = jnp.where(alive, offset, last)
        alive &= ~ended[here]
    final = ((oldest + age + last) % num_rows, stream)
    return first.replace(
        reward=reward,
        discount=jnp.asarray(gamma, reward.dtype) ** last * rows.discount[final],
        truncated=rows.truncated[final],
        next_observation=_take(rows.next_observation, final),
    )


def at(ring: Ring, age: Array, stream: Array) -> Transition:
    """The transitions at an age (0: the oldest that is kept) of a stream."""
    num_rows = ring.rows.reward.shape[0]
    row = (ring.cursor - ring.size + age) % num_rows
    return _take(ring.rows, (row, stream))


def _take(tree: PyTree, index: tuple[Array, Array]) -> PyTree:
    return jax.tree.map(lambda x: x[index], tree)
