"""How much faster the sparse engine is than the dense path, in one run on one machine.

    python -m experiments.lserve.speed decode       # one layer's attention, per token
    python -m experiments.lserve.speed prefill      # one layer's attention, per prompt
    python -m experiments.lserve.speed generation   # a whole model, prompt and answer
    python -m experiments.lserve.speed serving      # many prompts of unequal answers

Contestants take turns; a ratio is of two times of the same turn, and medians of the
ratios are what counts, because the speed of a shared machine drifts. Keys are random:
speed does not depend on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import records
from experiments.lserve.timing import (
    BUDGET,
    GROUPS,
    HEADS,
    RESULTS,
    SINK,
    STEPS,
    WIDTH,
    WINDOW,
    Contestants,
    config_of,
    half_streaming,
    in_place,
    normal,
    race,
)
from experiments.lserve.whole import generation, serve
from rlx.generation import engine, paged_cache
from rlx.generation.sparse import Plan, Sparse, plan
from rlx.networks import transformer
from rlx.ops import blockwise

# ----------------------------------------------------------------------------- decode


def decode(lengths: list[int], turns: int) -> dict[str, Any]:
    """Attention of one layer, `STEPS` tokens after a context of each length."""
    return {str(length): decode_at(length, turns) for length in lengths}


def decode_at(length: int, turns: int) -> dict[str, Any]:
    """See `decode`; milliseconds are of one token."""
    print(f"decode after {length} tokens")
    room = length + 64
    keys, values = normal(0, 1, GROUPS, length, WIDTH), normal(1, 1, GROUPS, length, 64)
    asked = normal(2, STEPS, 1, HEADS, WIDTH)
    new = normal(3, STEPS, 2, 1, GROUPS, WIDTH)
    contestants: Contestants = {}

    def dense(attend: Callable[..., jax.Array]) -> Callable[[], Any]:
        past = tuple(
            jnp.pad(x[0], ((0, 0), (0, room - length), (0, 0))) for x in (keys, values)
        )

        def run(past: tuple, asked: jax.Array, new: jax.Array) -> tuple:
            def token(past: tuple, inputs: tuple) -> tuple:
                step, query, fresh = inputs
                past = tuple(
                    jax.lax.dynamic_update_slice(x, n[0][:, None], (0, step, 0))
                    for x, n in zip(past, fresh, strict=True)
                )
                seen = (jnp.arange(room) <= step)[None, None]
                return past, attend(query[:, None], *past, seen)

            places = length + jnp.arange(STEPS)
            return jax.lax.scan(token, past, (places, asked, new))

        return in_place(run, past, asked, new)

    def built_in(queries, keys, values, seen):
        keys, values = (jnp.swapaxes(x, 0, 1)[None] for x in (keys, values))
        return jax.nn.dot_product_attention(queries, keys, values, mask=seen[:, None])

    contestants["dense"] = dense(transformer.attention)
    contestants["jax.nn.dot_product_attention"] = dense(built_in)
    for name, fields in {
        "pages, chosen each step": {"interval": 1},
        "pages, every 4 steps": {"interval": 4},
        "pages, every 4 steps, 8 bits": {"interval": 4, "bits": 8},
        "pages, every 4 steps, 4 bits": {"interval": 4, "bits": 4},
        "half streaming, each step": {"interval": 1, "half": True},
        "half streaming, every 4": {"interval": 4, "half": True},
    }.items():
        contestants[name] = sparse_decode(room, keys, values, asked, new, **fields)
    found = race(contestants, "dense", turns)
    for row in found["contestants"].values():
        for name in ("milliseconds", "processor_milliseconds"):
            row[name] = round(row[name] / STEPS, 4)
    return found


def sparse_decode(
    room: int,
    keys: jax.Array,
    values: jax.Array,
    asked: jax.Array,
    new: jax.Array,
    half: bool = False,
    **fields: Any,
) -> Callable[[], Any]:
    """The engine's attention of one layer, without the network around it."""
    config = config_of(1, room)
    head_map = half_streaming(config) if half else None
    made = plan(config, Sparse(budget=BUDGET, heads=head_map, **fields))
    length = keys.shape[2]
    cache, table = engine.begin(made, 1, room, jnp.array([length]), room - length, 1)
    count, some = jnp.array([length]), np.array(made.retrieval[0])
    pages = paged_cache.write_prompt(
        made, cache.pages[0], keys[:, some], values[:, some], count, table
    )
    ring, others = cache.rings[0], np.array(made.streaming[0])
    if half:
        ring = paged_cache.write_prompt_ring(
            made, ring, keys[:, others], values[:, others], count, 1
        )
    cache = cache.replace(pages=(pages,), rings=(ring,), table=table[0], length=count)
    return in_place(functools.partial(_decoded, made), cache, asked, new)


def _decoded(
    made: Plan, cache: paged_cache.Cache, asked: jax.Array, new: jax.Array
) -> tuple[paged_cache.Cache, jax.Array]:
    """`STEPS` tokens: write, choose, read."""
    some, others = (np.array(x[0], int) for x in (made.retrieval, made.streaming))
    alive = jnp.array([True])

    def token(cache: paged_cache.Cache, inputs: tuple) -> tuple:
        query, fresh = inputs
        query = query.reshape(1, GROUPS, HEADS // GROUPS, WIDTH)
        pages = paged_cache.write_token(
            made, cache.pages[0], cache, *(x[:, some] for x in fresh), alive
        )
        out, pages = engine.read_pages(made, pages, cache, query[:, some])
        ring = cache.rings[0]
        if len(others):
            ring = paged_cache.write_token_ring(
                made, ring, cache.length, *(x[:, others] for x in fresh), alive
            )
            seen = paged_cache.ring_valid(made, cache.length)
            narrow = engine.read_ring(ring, query[:, others], seen)
            out = jnp.concatenate([out, narrow], axis=1)
        cache = cache.replace(
            pages=(pages,),
            rings=(ring,),
            length=cache.length + 1,
            since=cache.since + 1,
        )
        return cache, out

    after, out = jax.lax.scan(token, cache, (asked, new))
    return after.replace(length=cache.length, since=cache.since), out


# ---------------------------------------------------------------------------- prefill


def prefill(lengths: list[int], turns: int) -> dict[str, Any]:
    """Attention of one layer over a prompt of each length."""
    return {str(length): prefill_at(length, turns) for length in lengths}


def prefill_at(length: int, turns: int) -> dict[str, Any]:
    """See `prefill`; the bound is what skipping all that is not seen could give."""
    print(f"prefill of {length} tokens")
    inputs = (
        normal(0, 1, HEADS, length, WIDTH),
        normal(1, 1, GROUPS, length, WIDTH),
        normal(2, 1, GROUPS, length, WIDTH),
    )
    arms = {
        "dense": blockwise.attention,
        "half streaming": _half,
        "all streaming": _streaming,
    }
    if length <= 4096:  # beyond, its scores need gigabytes
        arms["jax.nn.dot_product_attention"] = _built_in
    contestants: Contestants = {}
    for name, arm in arms.items():
        contestants[name] = functools.partial(jax.jit(arm), *inputs)
    found = race(contestants, "dense", turns)
    place = np.arange(length)
    seen = np.minimum(place + 1, WINDOW)
    seen = seen + np.clip(place + 1 - WINDOW, 0, SINK)
    share = float(seen.sum() / (length * (length + 1) / 2))
    found["bound_of_half_streaming"] = round(2 / (1 + share), 3)
    return found


def _streaming(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    block = engine.STREAMING_BLOCK
    return blockwise.attention(
        queries, keys, values, streaming=(SINK, WINDOW), block=block
    )


def _half(queries: jax.Array, keys: jax.Array, values: jax.Array) -> tuple:
    sides = [jnp.split(x, 2, axis=1) for x in (queries, keys, values)]
    first, second = zip(*sides, strict=True)
    return blockwise.attention(*first), _streaming(*second)


def _built_in(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    queries, keys, values = (jnp.swapaxes(x, 1, 2) for x in (queries, keys, values))
    return jax.nn.dot_product_attention(queries, keys, values, is_causal=True)


def main() -> None:
    """Measures one table and writes its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=("decode", "prefill", "generation", "serving"))
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--turns", type=int, default=11)
    options = parser.parse_args()
    lengths = options.lengths or {
        "decode": [4096, 16384, 65536],
        "prefill": [2048, 8192],
        "generation": [16384],
    }.get(options.table)
    if options.table == "serving":
        found = serve(options.turns)
    else:
        run = {"decode": decode, "prefill": prefill, "generation": generation}
        found = run[options.table](lengths, options.turns)
    setting = {
        "heads": HEADS,
        "key_value_heads": GROUPS,
        "head_width": WIDTH,
        "sink": SINK,
        "window": WINDOW,
        "budget": BUDGET,
        **{
            field.name: getattr(Sparse(), field.name)
            for field in dataclasses.fields(Sparse)
            if field.name in ("page_size", "logical_size")
        },
    }
    content = {**records.origin("lserve.speed"), "setting": setting, "tables": found}
    records.write(RESULTS / f"speed_{options.table}.json", content)


if __name__ == "__main__":
    main()
