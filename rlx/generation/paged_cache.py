"""A key-value cache of pages and rings: what the sparse engine remembers.

Retrieval heads keep everything, in *pages* of a pool that all rows share: a table says
which page of the pool is page j of row r, so that rows may have any length and rows
with a common beginning share its pages (Kwon et al. 2023, PagedAttention,
https://arxiv.org/abs/2309.06180). Streaming heads keep the first tokens and a *ring* of
the last ones. For each logical page of a row the least and greatest key of every
channel are kept, before any quantisation (Yang et al. 2025, LServe,
https://arxiv.org/abs/2502.14866, section 3.5).

Shapes: R rows, N pages of the pool, J pages of a row's table, l logical pages of a row,
K_r retrieval and K_s streaming heads of a layer, d head width, P tokens of a page.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from rlx.generation.page_table import NOWHERE, pages_for
from rlx.generation.sparse import Plan
from rlx.ops import paged
from rlx.types import Array


@struct.dataclass
class Pages:
    """What the retrieval heads of one layer remember."""

    keys: Array
    """`[N, K_r, P, d]`, or codes."""
    values: Array
    """`[N, K_r, P, d]`, or codes."""
    scales: tuple[Array, Array] | None
    """Of keys' and values' codes, `float32[N, K_r, P, 2]` each."""
    least: Array
    """`[R, K_r, l, d]` of the keys of each logical page."""
    greatest: Array
    """`[R, K_r, l, d]`."""
    chosen: Array
    """`int32[R, K_r, n]` pages of the row that are read now; J where there is none."""


@struct.dataclass
class Ring:
    """What the streaming heads of one layer remember."""

    keys: Array
    """`[R, K_s, sink + window, d]`."""
    values: Array
    """`[R, K_s, sink + window, d]`."""


@struct.dataclass
class Cache:
    """Everything that an engine remembers of its rows."""

    pages: tuple[Pages, ...]
    """Of each layer."""
    rings: tuple[Ring, ...]
    """Of each layer."""
    table: Array
    """`int32[R, J]` page of the pool; N where the row has none."""
    references: Array
    """`int32[N]` rows that have this page in their table."""
    length: Array
    """`int32[R]` tokens of each row."""
    since: Array
    """`int32[R]` tokens since its prompt."""


def init(plan: Plan, rows: int, length: int, pool: int) -> Cache:
    """An empty cache for `rows` rows of at most `length` tokens, `pool` pages in all.

    Raises:
      ValueError: the pool does not hold a single row.
    """
    columns = pages_for(length, plan)
    if pool < columns:
        raise ValueError(
            f"a row of {length} tokens needs {columns} pages of "
            f"{plan.sparse.page_size}, but the pool has {pool}: give it more pages"
        )
    return Cache(
        pages=tuple(
            _empty_pages(plan, len(heads), rows, columns, pool)
            for heads in plan.retrieval
        ),
        rings=tuple(_empty_ring(plan, len(heads), rows) for heads in plan.streaming),
        table=jnp.full((rows, columns), pool, jnp.int32),
        references=jnp.zeros((pool,), jnp.int32),
        length=jnp.zeros((rows,), jnp.int32),
        since=jnp.zeros((rows,), jnp.int32),
    )


def _empty_pages(plan: Plan, heads: int, rows: int, columns: int, pool: int) -> Pages:
    sparse, width, kind = plan.sparse, plan.config.head_size, plan.config.dtype
    stored, scales = jnp.dtype(kind), None
    room = (pool, heads, sparse.page_size)
    if sparse.bits is not None:
        stored = jnp.dtype("uint8")
        scales = (jnp.zeros((*room, 2)), jnp.zeros((*room, 2)))
    narrow = width // 2 if sparse.bits == 4 else width
    count = columns * sparse.page_size // sparse.logical_size
    bounds = (rows, heads, count, width)
    read = min(sparse.budget_pages, columns)
    return Pages(
        keys=jnp.zeros((*room, narrow), stored),
        values=jnp.zeros((*room, narrow), stored),
        scales=scales,
        least=jnp.zeros(bounds, kind),
        greatest=jnp.zeros(bounds, kind),
        chosen=jnp.broadcast_to(jnp.arange(read, dtype=jnp.int32), (rows, heads, read)),
    )


def _empty_ring(plan: Plan, heads: int, rows: int) -> Ring:
    shape = (rows, heads, plan.sink + plan.window, plan.config.head_size)
    kind = plan.config.dtype
    return Ring(jnp.zeros(shape, kind), jnp.zeros(shape, kind))


# ----------------------------------------------------------------------- whole prompts


def write_prompt(
    plan: Plan,
    pages: Pages,
    keys: Array,
    values: Array,
    length: Array,
    table: Array,
    row: int | Array = 0,
) -> Pages:
    """The pages of one layer with prompts in them.

    Args:
      plan: of the engine.
      pages: of the layer.
      keys: `[B, K_r, S, d]`, prompts padded on the right.
      values: `[B, K_r, S, d]`.
      length: `int32[B]`.
      table: `int32[B, samples, J]`, of `page_table.allot`.
      row: where the first of the B times `samples` rows is, which follow each other.
    """
    sparse = plan.sparse
    batch, samples, columns = table.shape
    size, width = keys.shape[2:]
    count = pages_for(size, plan)
    padding = [(0, 0), (0, 0), (0, count * sparse.page_size - size), (0, 0)]
    keys, values = (jnp.pad(x, padding) for x in (keys, values))
    place = jnp.arange(count * sparse.page_size, dtype=jnp.int32)
    valid = jnp.broadcast_to(
        (place[None] < length[:, None])[:, None], (*keys.shape[:2], place.shape[0])
    )
    least, greatest = paged.key_bounds(keys, valid, sparse.logical_size)
    page = jnp.arange(count, dtype=jnp.int32)
    begun = page[None] < pages_for(length, plan)[:, None]
    where = jnp.where(begun, table[:, 0, :count], NOWHERE)
    last = jnp.minimum(length // sparse.page_size, count - 1)

    def put(pool: Array, content: Array | None) -> Array:
        """Every page for the first answer, the page where it ends for all others."""
        assert content is not None  # codes have scales
        content = content.reshape(*content.shape[:2], count, sparse.page_size, -1)
        content = jnp.swapaxes(content, 1, 2).astype(pool.dtype)
        pool = pool.at[where].set(content, mode="drop")
        if samples == 1:
            return pool
        one = jnp.take_along_axis(content, last[:, None, None, None, None], axis=1)
        ends = jnp.take_along_axis(table[:, 1:], last[:, None, None], axis=2)[..., 0]
        spread = jnp.broadcast_to(one, (batch, samples - 1, *one.shape[2:]))
        return pool.at[ends].set(spread, mode="drop")

    def rows_of(old: Array, new: Array) -> Array:
        new = jnp.pad(new, [(0, 0), (0, 0), (0, old.shape[2] - new.shape[2]), (0, 0)])
        new = jnp.repeat(new.astype(old.dtype), samples, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(old, new, row, axis=0)

    (keys, key_scale), (values, value_scale) = (_coded(plan, x) for x in (keys, values))
    scales = None
    if pages.scales is not None:
        scales = (put(pages.scales[0], key_scale), put(pages.scales[1], value_scale))
    return pages.replace(
        keys=put(pages.keys, keys),
        values=put(pages.values, values),
        scales=scales,
        least=rows_of(pages.least, least),
        greatest=rows_of(pages.greatest, greatest),
    )


def write_prompt_ring(
    plan: Plan,
    ring: Ring,
    keys: Array,
    values: Array,
    length: Array,
    samples: int,
    row: int | Array = 0,
) -> Ring:
    """The ring of one layer with prompts in it; see `write_prompt`.

    Args:
      plan: of the engine.
      ring: of the layer.
      keys: `[B, K_s, S, d]`.
      values: `[B, K_s, S, d]`.
      length: `int32[B]`.
      samples: rows of each prompt.
      row: the first.
    """
    held = jnp.clip(_held(plan, length - 1), 0, keys.shape[2] - 1)[:, None, :, None]

    def put(old: Array, new: Array) -> Array:
        new = jnp.take_along_axis(new, held, axis=2).astype(old.dtype)
        new = jnp.repeat(new, samples, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(old, new, row, axis=0)

    return Ring(put(ring.keys, keys), put(ring.values, values))


def _held(plan: Plan, newest: Array) -> Array:
    """`int32[..., sink + window]` the token in each slot of a ring; negative: none.

    Args:
      plan: of the engine.
      newest: `int32[...]` the last token written.
    """
    slot = jnp.arange(plan.sink + plan.window, dtype=jnp.int32)
    newest = newest[..., None]
    slot = jnp.expand_dims(slot, tuple(range(newest.ndim - 1)))
    sink = jnp.where(slot <= newest, slot, -1)
    last = newest - (newest - slot) % plan.window
    return jnp.where(slot < plan.sink, sink, jnp.where(last >= plan.sink, last, -1))


def _coded(plan: Plan, x: Array) -> tuple[Array, Array | None]:
    if plan.sparse.bits is None:
        return x, None
    return paged.quantize(x.astype(jnp.float32), plan.sparse.bits)


# -------------------------------------------------------------------------- one token


def write_token(
    plan: Plan, pages: Pages, cache: Cache, keys: Array, values: Array, alive: Array
) -> Pages:
    """The pages of one layer with one more token in each row that is alive.

    Args:
      plan: of the engine.
      pages: of the layer.
      cache: its lengths and its table say where.
      keys: `[R, K_r, d]`.
      values: `[R, K_r, d]`.
      alive: `bool[R]`.
    """
    sparse, rows = plan.sparse, jnp.arange(keys.shape[0])
    page, slot = cache.length // sparse.page_size, cache.length % sparse.page_size
    page = jnp.minimum(page, cache.table.shape[1] - 1)
    where = jnp.where(alive, cache.table[rows, page], NOWHERE)

    def put(pool: Array, content: Array | None) -> Array:
        assert content is not None  # codes have scales
        return pool.at[where, :, slot].set(content.astype(pool.dtype), mode="drop")

    (new_keys, key_scale), (new_values, value_scale) = (
        _coded(plan, x) for x in (keys, values)
    )
    scales = None
    if pages.scales is not None:
        scales = (put(pages.scales[0], key_scale), put(pages.scales[1], value_scale))
    logical = cache.length // sparse.logical_size
    fresh = (cache.length % sparse.logical_size == 0)[:, None, None]

    def bound(old: Array, extreme: Callable[[Array, Array], Array]) -> Array:
        at = jnp.minimum(logical, old.shape[2] - 1)
        new = keys.astype(old.dtype)
        new = jnp.where(fresh, new, extreme(old[rows, :, at], new))
        return old.at[jnp.where(alive, rows, NOWHERE), :, at].set(new, mode="drop")

    return pages.replace(
        keys=put(pages.keys, new_keys),
        values=put(pages.values, new_values),
        scales=scales,
        least=bound(pages.least, jnp.minimum),
        greatest=bound(pages.greatest, jnp.maximum),
    )


def write_token_ring(
    plan: Plan, ring: Ring, length: Array, keys: Array, values: Array, alive: Array
) -> Ring:
    """The ring of one layer with one more token; see `write_token`."""
    turn = plan.sink + (length - plan.sink) % plan.window
    slot = jnp.where(length < plan.sink, length, turn)
    rows = jnp.where(alive, jnp.arange(keys.shape[0]), NOWHERE)

    def put(old: Array, new: Array) -> Array:
        return old.at[rows, :, slot].set(new.astype(old.dtype), mode="drop")

    return Ring(put(ring.keys, keys), put(ring.values, values))


# ------------------------------------------------------------------------------ reading


def choose(plan: Plan, pages: Pages, cache: Cache, queries: Array) -> Array:
    """Which pages each group of heads reads now, `int32[R, K_r, n]`.

    Args:
      plan: of the engine.
      pages: of the layer, the newest token in them.
      cache: its lengths count the tokens before the newest.
      queries: `[R, K_r, g, d]`.
    """
    sparse, read = plan.sparse, pages.chosen.shape[-1]
    columns = cache.table.shape[1]
    if read == columns:  # the budget holds every page
        return pages.chosen
    length = cache.length + 1

    def anew() -> Array:
        scores = paged.group_scores(queries, pages.least, pages.greatest)
        first = jnp.arange(scores.shape[-1], dtype=jnp.int32) * sparse.logical_size
        begun = jnp.broadcast_to((first[None] < length[:, None])[:, None], scores.shape)
        parts = sparse.page_size // sparse.logical_size
        physical = paged.physical_scores(scores, begun, parts)
        used = jnp.broadcast_to(pages_for(length, plan)[:, None], physical.shape[:2])
        return paged.select(
            physical,
            used,
            budget=read,
            sink=sparse.sink_pages,
            recent=sparse.recent_pages,
            ahead=sparse.pages_ahead,
        )

    due = cache.since % sparse.interval == 0
    found = jax.lax.cond(jnp.any(due), anew, lambda: pages.chosen)
    return jnp.where(due[:, None, None], found, pages.chosen)


def listed(plan: Plan, cache: Cache, chosen: Array) -> tuple[Array, Array]:
    """Pages of the pool and how many of their tokens count, `int32[R, K_r, n]` each."""
    size, columns = plan.sparse.page_size, cache.table.shape[1]
    flat = jnp.minimum(chosen, columns - 1).reshape(chosen.shape[0], -1)
    found = jnp.take_along_axis(cache.table, flat, axis=1).reshape(chosen.shape)
    tokens = (cache.length + 1)[:, None, None] - chosen * size
    counts = jnp.where(chosen < columns, jnp.clip(tokens, 0, size), 0)
    return found, counts


def ring_valid(plan: Plan, newest: Array) -> Array:
    """`bool[R, sink + window]` which slots of the rings hold a token."""
    return _held(plan, newest) >= 0
