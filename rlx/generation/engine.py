"""A generation engine with unified sparse attention, as pure functions.

Yang et al. 2025 (LServe), https://arxiv.org/abs/2502.14866. Reading a prompt,
*streaming* heads visit only the blocks of their sink and window; extending it, they
read a ring of constant size, while *retrieval* heads read a constant number of pages,
those whose keys could match the query best, chosen anew every few steps.

    spec = language_model.decoder(config, Sampling(max_tokens=256), sparse=Sparse())
    method = grpo.make(spec)        # its rollouts now come from this engine

or, one level down, `speakers.sampler(engine.speaker(config, sparse), options)`;
`rlx.generation.serving` adds and removes prompts while others go on. With a budget that
holds everything and no streaming heads the engine equals the dense sampler. What it
samples from is *not* the dense policy otherwise: `rlx.ops.importance.mismatch` says how
far it is off, and `truncated` there weighs for it (`grpo.Config.importance_cap`).

Nothing here is differentiated: learners run the dense network over what was said.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlx.generation import page_table, paged_cache, speakers
from rlx.generation.paged_attention import decode_xla
from rlx.generation.paged_cache import Cache
from rlx.generation.sparse import Plan, Sparse, plan
from rlx.generation.speakers import Reading, Speaker
from rlx.networks import transformer
from rlx.ops import blockwise
from rlx.types import Array, Params, PyTree

STREAMING_BLOCK = 128
"""Queries that a streaming head reads together; the fastest of those tried on CPUs."""
KERNEL_BLOCK = 64
"""Tokens of a block of the kernel's."""


def speaker(config: transformer.Config, sparse: Sparse | None) -> Speaker:
    """A decoder that reads a part of its past; all of it without `sparse`.

    Args:
      config: of the decoder.
      sparse: what is read; None: `speakers.of_decoder`.

    Raises:
      ValueError: the head map is of another model; when it reads: prompt and response
        have no positions in the network.
    """
    if sparse is None:
        return speakers.of_decoder(config)
    made = plan(config, sparse)

    def read(
        params: Params, prompt: Array, mask: Array, max_tokens: int, samples: int = 1
    ) -> Reading:
        room = speakers.check_room(config, prompt.shape[1], max_tokens)
        tokens, length = right_padded(prompt, mask)
        params = unstacked(params)
        cache, table = begin(made, tokens.shape[0], room, length, max_tokens, samples)
        first, cache = read_prompts(made, params, cache, tokens, length, table)

        def extend(state: PyTree, token: Array, alive: Array) -> tuple[Array, PyTree]:
            return step(made, params, state, token, alive)

        return Reading(jnp.repeat(first, samples, axis=0), cache, extend)

    return read


def right_padded(prompt: Array, mask: Array) -> tuple[Array, Array]:
    """Real tokens first, whatever the padding: `int32[B, L]`, and `int32[B]` lengths.

    Pages and sinks begin with the first real token.
    """
    order = jnp.argsort(~mask, axis=1, stable=True)
    tokens = jnp.take_along_axis(prompt, order, axis=1)
    return tokens, jnp.sum(mask, axis=1, dtype=jnp.int32)


def unstacked(params: Params) -> Params:
    """Layers as a tuple: each has heads of its own, and none is copied in a step."""
    count = len(jax.tree.leaves(params["layers"])[0])
    layers = tuple(
        jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(count)
    )
    return {**params, "layers": layers}


def begin(
    made: Plan,
    prompts: int,
    room: int,
    length: Array,
    max_tokens: int,
    samples: int,
) -> tuple[Cache, Array]:
    """An empty cache that just holds these prompts' answers, and its table.

    Answers to one prompt share its whole pages.

    Returns:
      The cache, and `int32[prompts, samples, J]`.
    """
    columns = page_table.pages_for(room, made)
    whole = 0 if samples == 1 else (room - max_tokens) // made.sparse.page_size
    # A shorter prompt shares fewer pages, and its answers begin in earlier ones.
    own = min(columns, page_table.pages_for(max_tokens, made) + 1)
    own = columns if samples == 1 else own
    each = whole + samples * own
    cache = paged_cache.init(made, prompts * samples, room, max(prompts * each, 1))
    free = jnp.arange(prompts * each, dtype=jnp.int32).reshape(prompts, each)
    table = jax.vmap(
        lambda free, length: page_table.allot(
            made, free, length, max_tokens, samples, columns
        )
    )(free, length)
    return cache, table


# ------------------------------------------------------------------------ the network


def read_prompts(
    made: Plan,
    params: Params,
    cache: Cache,
    tokens: Array,
    length: Array,
    table: Array,
    row: int | Array = 0,
) -> tuple[Array, Cache]:
    """Prompts into rows of the cache; logits `[B, V]` after each.

    Args:
      made: the plan.
      params: `unstacked`.
      cache: its rows from `row` on are overwritten.
      tokens: `int32[B, S]`, padded on the right.
      length: `int32[B]`.
      table: `int32[B, samples, J]` where they go, of `page_table.allot`.
      row: the first row.
    """
    config, samples = made.config, table.shape[1]
    positions = jnp.broadcast_to(
        jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape
    )
    x = transformer.embed(config, params, tokens, positions)
    pages, rings = list(cache.pages), list(cache.rings)
    for i, weights in enumerate(params["layers"]):
        queries, keys, values = transformer.queries_keys_values(
            config, weights, x, positions
        )
        retrieval, streaming = made.retrieval[i], made.streaming[i]
        queries = _grouped(jnp.swapaxes(queries, 1, 2), made.group)
        mixed = []
        if len(retrieval):
            kept = _only(keys, retrieval), _only(values, retrieval)
            asked = _only(queries, retrieval)
            mixed.append(_prefill(made, asked, *kept, length, None))
            pages[i] = paged_cache.write_prompt(
                made, pages[i], *kept, length, table, row
            )
        if len(streaming):
            kept = _only(keys, streaming), _only(values, streaming)
            rule = (made.sink, made.sparse.prefill_window or made.window)
            asked = _only(queries, streaming)
            mixed.append(_prefill(made, asked, *kept, length, rule))
            rings[i] = paged_cache.write_prompt_ring(
                made, rings[i], *kept, length, samples, row
            )
        together = _only(jnp.concatenate(mixed, axis=1), made.order[i])
        flat = together.reshape(len(tokens), config.num_heads, *together.shape[3:])
        x = transformer.after_attention(config, weights, x, jnp.swapaxes(flat, 1, 2))
    last = jnp.maximum(length - 1, 0)[:, None, None]
    x = jnp.take_along_axis(x, last, axis=1)[:, 0]
    x = transformer.normalize(config, params["final"], x)
    cache = _begun(cache, pages, rings, length, table, row)
    return transformer.logits(config, params, x), cache


def _grouped(queries: Array, group: int) -> Array:
    """`[B, H, S, d]` as `[B, K, g, S, d]`."""
    return queries.reshape(queries.shape[0], -1, group, *queries.shape[2:])


def _only(x: Array, heads: tuple[int, ...]) -> Array:
    """Some heads of `[B, K, ...]`; no copy where they are all, in order."""
    return x if heads == tuple(range(x.shape[1])) else x[:, np.array(heads)]


def _prefill(
    made: Plan,
    queries: Array,
    keys: Array,
    values: Array,
    length: Array,
    streaming: tuple[int, int] | None,
) -> Array:
    """`[B, K, g, S, d]` of heads of one kind."""
    batch, heads, group, size, width = queries.shape
    flat = queries.reshape(batch, heads * group, size, width)
    if made.sparse.backend == "pallas":
        found = _prefill_kernel(flat, keys, values, length, streaming)
    else:
        found = blockwise.attention(
            flat,
            keys,
            values,
            used=jnp.max(length),
            streaming=streaming,
            block=blockwise.BLOCK if streaming is None else STREAMING_BLOCK,
        )
    return found.reshape(queries.shape)


def _prefill_kernel(
    queries: Array,
    keys: Array,
    values: Array,
    length: Array,
    streaming: tuple[int, int] | None,
) -> Array:
    from rlx.generation import pallas_prefill

    size, heads = queries.shape[2], keys.shape[1]
    kind = np.full((heads,), streaming is not None)
    sink, window = (0, size) if streaming is None else streaming
    block = KERNEL_BLOCK
    read, count = pallas_prefill.block_lists(
        size, block, kind, sink=sink, window=window
    )
    return pallas_prefill.prefill(
        queries,
        keys,
        values,
        jnp.asarray(read),
        jnp.asarray(count),
        length,
        streaming=jnp.asarray(kind),
        sink=sink,
        window=window,
        block=block,
        interpret=interpreted(),
    )


def interpreted() -> bool:
    """Whether kernels run as plain JAX: where there is no GPU."""
    return jax.default_backend() != "gpu"


def _begun(
    cache: Cache,
    pages: list,
    rings: list,
    length: Array,
    table: Array,
    row: int | Array,
) -> Cache:
    """The cache after prompts: whose pages they are, and how long rows are."""
    samples = table.shape[1]
    rows = table.reshape(-1, table.shape[2])
    count = rows.shape[0]

    def put(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, row, axis=0)

    return Cache(
        pages=tuple(pages),
        rings=tuple(rings),
        table=put(cache.table, rows),
        references=cache.references.at[rows].add(1, mode="drop"),
        length=put(cache.length, jnp.repeat(length, samples)),
        since=put(cache.since, jnp.zeros((count,), jnp.int32)),
    )


def step(
    made: Plan, params: Params, cache: Cache, token: Array, alive: Array
) -> tuple[Array, Cache]:
    """One more token in each row that is alive; logits `[R, V]` after it.

    Args:
      made: the plan.
      params: `unstacked`.
      cache: of R rows.
      token: `int32[R]`.
      alive: `bool[R]`; the others' logits mean nothing, and their cache stays.
    """
    config = made.config
    positions = jnp.minimum(cache.length, config.max_length - 1)[:, None]
    x = transformer.embed(config, params, token[:, None], positions)
    pages, rings = list(cache.pages), list(cache.rings)
    seen = paged_cache.ring_valid(made, cache.length)
    for i, weights in enumerate(params["layers"]):
        queries, keys, values = transformer.queries_keys_values(
            config, weights, x, positions
        )
        retrieval, streaming = made.retrieval[i], made.streaming[i]
        queries = _grouped(jnp.swapaxes(queries, 1, 2), made.group)[:, :, :, 0]
        keys, values = keys[:, :, 0], values[:, :, 0]
        mixed = []
        if len(retrieval):
            new = _only(keys, retrieval), _only(values, retrieval)
            pages[i] = paged_cache.write_token(made, pages[i], cache, *new, alive)
            asked = _only(queries, retrieval)
            found, pages[i] = read_pages(made, pages[i], cache, asked)
            mixed.append(found)
        if len(streaming):
            new = _only(keys, streaming), _only(values, streaming)
            rings[i] = paged_cache.write_token_ring(
                made, rings[i], cache.length, *new, alive
            )
            mixed.append(read_ring(rings[i], _only(queries, streaming), seen))
        together = _only(jnp.concatenate(mixed, axis=1), made.order[i])
        flat = together.reshape(len(token), 1, config.num_heads, -1)
        x = transformer.after_attention(config, weights, x, flat)
    x = transformer.normalize(config, params["final"], x[:, 0])
    moved = alive.astype(jnp.int32)
    cache = cache.replace(
        pages=tuple(pages),
        rings=tuple(rings),
        length=cache.length + moved,
        since=cache.since + moved,
    )
    return transformer.logits(config, params, x), cache


def read_pages(
    made: Plan, pages: paged_cache.Pages, cache: Cache, queries: Array
) -> tuple[Array, paged_cache.Pages]:
    """`[R, K_r, g, d]` over the pages chosen now, and the pages with that choice."""
    chosen = paged_cache.choose(made, pages, cache, queries)
    where, counts = paged_cache.listed(made, cache, chosen)
    decode: Callable[..., Array] = decode_xla
    if made.sparse.backend == "pallas":
        from rlx.generation import pallas_decode

        decode = functools.partial(pallas_decode.decode, interpret=interpreted())
    found = decode(
        queries,
        pages.keys,
        pages.values,
        where,
        counts,
        scales=pages.scales,
        bits=made.sparse.bits,
    )
    return found, pages.replace(chosen=chosen)


def read_ring(ring: paged_cache.Ring, queries: Array, seen: Array) -> Array:
    """`[R, K_s, g, d]` over a ring, whose slots `bool[R, C]` hold a token or not."""
    carry = blockwise.nothing(queries.shape)
    seen = seen[:, None, None]
    carry = blockwise.accumulate(carry, queries, ring.keys, ring.values, seen)
    return blockwise.finish(carry).astype(queries.dtype)
