"""Token sequences as data: records, and minibatches of them on the device.

The records are those of `rlx.ops.sequences`. `rlx.data.prompts` and
`rlx.data.preferences` read them from files.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rlx.ops import shuffling
from rlx.ops.sequences import Preferences as Preferences
from rlx.ops.sequences import Sequences as Sequences
from rlx.ops.sequences import joined as joined
from rlx.types import Array, DataSource, Key, Metrics, Policy, PyTree

ORDERS = ("replacement", "epochs")


@struct.dataclass
class Pass:
    """Where a pass over the rows stands."""

    order: Array
    """`int32[N]` this pass's."""
    position: Array
    """`int32[]` rows taken of it."""


def draw(rows: PyTree, *, batch_size: int, order: str = "replacement") -> DataSource:
    """Minibatches `[batch_size, ...]` of any rows: sequences, preferences, prompts.

    The rows are in `DataSource.arrays`: one copy for all runs, in no checkpoint.

    Args:
      rows: a pytree of arrays `[N, ...]`, on the host or not.
      batch_size: rows in a batch.
      order: "replacement" draws each row anew from all; "epochs" takes every row once
        in a random order, then begins again (what is left of a pass when less than a
        batch remains is not used in it).

    Raises:
      ValueError: an unknown order, no rows, or a batch of none, or in "epochs" of more
        rows than there are.
    """
    sizes = {len(x) for x in jax.tree.leaves(rows)}
    size = sizes.pop() if len(sizes) == 1 else 0
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
    if size < 1:
        raise ValueError("there are no rows, or they are not equally many everywhere")
    if batch_size < 1 or (order == "epochs" and batch_size > size):
        raise ValueError(
            f"batch_size={batch_size} must be at least 1 and, in epochs, at most the "
            f"{size} rows that there are"
        )

    def over(arrays: PyTree) -> DataSource:
        def pick(indices: Array) -> PyTree:
            return jax.tree.map(lambda x: x[indices], arrays)

        def init(key: Key, policy: Policy) -> PyTree:
            del policy
            if order == "replacement":
                return ()
            return Pass(shuffling.permutations(key, size, 1)[0], jnp.int32(0))

        def anywhere(
            state: PyTree, policy: Policy, key: Key
        ) -> tuple[PyTree, PyTree, Metrics]:
            del policy
            return state, pick(jax.random.randint(key, (batch_size,), 0, size)), {}

        def in_turn(
            state: Pass, policy: Policy, key: Key
        ) -> tuple[PyTree, PyTree, Metrics]:
            del policy
            full = state.position + batch_size > size
            fresh = shuffling.permutations(key, size, 1)[0]
            now = jnp.where(full, fresh, state.order)
            begin = jnp.where(full, 0, state.position)
            indices = jax.lax.dynamic_slice(now, (begin,), (batch_size,))
            return Pass(now, begin + batch_size), pick(indices), {}

        following: Any = anywhere if order == "replacement" else in_turn
        return DataSource(init=init, next=following, arrays=arrays, over=over)

    return over(jax.tree.map(jnp.asarray, rows))
