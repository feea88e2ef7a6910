"""A pool of rated texts with a fixed capacity: pure functions of a record.

Each of S styles has room for C rows. `rlx.data.reward_pool` makes batches of it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from rlx.ops.control_tokens import Controls, Rated, assign_bins
from rlx.types import Array, Key

KEEPS = ("reservoir", "ring")


@struct.dataclass
class Pool:
    """S styles with room for C rows each, one style after the other."""

    rows: Rated
    """Leaves `[S C, ...]`."""
    bins: Array
    """`int32[S C, M]`."""
    offered: Array
    """`int32[S]` rows ever offered to each style."""
    batches: Array
    """`int32[]` drawn so far."""
    latest: Array
    """`float32[M]` mean rewards of the last round; at first those of the start."""

    @property
    def room(self) -> int:
        """C."""
        return self.rows.style.shape[0] // self.offered.shape[0]

    @property
    def counts(self) -> Array:
        """`int32[S]` rows of each style."""
        return jnp.minimum(self.offered, self.room)

    @property
    def there(self) -> Array:
        """`bool[S C]` which rows hold a text."""
        place = jnp.arange(self.room)[None] < self.counts[:, None]
        return place.reshape(-1)


def empty(example: Rated, controls: Controls, capacity: int) -> Pool:
    """A pool without rows, for rows like those of `example`.

    Raises:
      ValueError: the capacity is no positive multiple of the number of styles.
    """
    styles = controls.num_styles
    if capacity < styles or capacity % styles:
        raise ValueError(
            f"capacity={capacity} must be a positive multiple of the {styles} styles"
        )
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), example)
    metrics = controls.num_metrics
    return Pool(
        rows=rows,
        bins=jnp.zeros((capacity, metrics), jnp.int32),
        offered=jnp.zeros(styles, jnp.int32),
        batches=jnp.zeros((), jnp.int32),
        latest=jnp.zeros(metrics),
    )


def insert(pool: Pool, new: Rated, there: Array, key: Key, keep: str) -> Pool:
    """Offers rows `[R, ...]` one after the other; the bins are left as they were.

    Reservoir: Vitter 1985, https://doi.org/10.1145/3147.3165, algorithm R.

    Args:
      pool: see there.
      new: rows to add, any styles.
      there: `bool[R]`; other rows are not offered.
      key: for the reservoir.
      keep: "reservoir" or "ring".
    """
    styles, room = pool.offered.shape[0], pool.room
    mine = (new.style[:, None] == jnp.arange(styles)[None]) & there[:, None]
    before = jnp.cumsum(mine, axis=0) - mine
    own = jnp.take_along_axis(before, new.style[:, None], axis=1)[:, 0]
    index = pool.offered[new.style] + own
    slot = index % room
    if keep == "reservoir":
        drawn = jax.random.randint(key, index.shape, 0, index + 1)
        slot = jnp.where(index < room, index, drawn)
    capacity = styles * room
    target = jnp.where(there & (slot < room), new.style * room + slot, capacity)
    # The last of several for one slot, as if they came one by one.
    winner = jnp.full(capacity + 1, -1).at[target].max(jnp.arange(len(index)))[:-1]

    def leaf(old: Array, fresh: Array) -> Array:
        taken = (winner >= 0).reshape(-1, *[1] * (old.ndim - 1))
        return jnp.where(taken, fresh[jnp.maximum(winner, 0)], old)

    rows = jax.tree.map(leaf, pool.rows, new)
    offered = pool.offered + jnp.sum(mine, axis=0, dtype=jnp.int32)
    return pool.replace(rows=rows, offered=offered)


def binned(pool: Pool, controls: Controls, ties: str = "order") -> Pool:
    """The pool with the bins of all rows computed anew."""
    bins = assign_bins(
        pool.rows.metrics,
        pool.rows.style,
        pool.there,
        num_groups=controls.num_styles,
        num_bins=controls.num_bins,
        ties=ties,
    )
    return pool.replace(bins=bins)


def draw(pool: Pool, key: Key, count: int, balanced: bool = False) -> Array:
    """`int32[count]` places of rows, uniformly over rows, or over styles first."""
    style_key, row_key = jax.random.split(key)
    counts = pool.counts
    if balanced:
        chance = jnp.where(counts > 0, 0.0, -jnp.inf)
        style = jax.random.categorical(style_key, chance, shape=(count,))
        within = jax.random.randint(row_key, (count,), 0, counts[style])
    else:
        last = jnp.cumsum(counts)
        drawn = jax.random.randint(row_key, (count,), 0, last[-1])
        style = jnp.searchsorted(last, drawn, side="right")
        within = drawn - (last - counts)[style]
    return (style * pool.room + within).astype(jnp.int32)
