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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import records
from rlx.generation import engine, heads, paged_cache, serving
from rlx.generation.paged_attention import decode_xla
from rlx.generation.sampling import Sampling
from rlx.generation.sparse import Plan, Sparse, plan
from rlx.generation.speakers import sampler
from rlx.networks import transformer
from rlx.ops import blockwise

RESULTS = Path(__file__).parent / "results"
HEADS, GROUPS, WIDTH = 8, 4, 64
SINK, WINDOW, BUDGET = 64, 256, 1024
STEPS = 16
"""Tokens of a timed decode: a multiple of every reuse interval."""
Contestants = dict[str, Callable[[], Any]]


def race(contestants: Contestants, base: str, turns: int) -> dict[str, Any]:
    """Median seconds of each, and of its ratios base / itself, with their range."""
    for run in contestants.values():
        jax.block_until_ready(run())
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, run in contestants.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            spent[name].append(time.perf_counter() - begin)
    found = {}
    for name, seconds in spent.items():
        ratios = np.array(spent[base]) / np.array(seconds)
        found[name] = {
            "milliseconds": round(1e3 * float(np.median(seconds)), 3),
            "times_faster": round(float(np.median(ratios)), 2),
            "range": [round(float(x), 2) for x in (ratios.min(), ratios.max())],
        }
        print(f"  {name:34s} {found[name]}", flush=True)
    return {"turns": turns, "base": base, "contestants": found}


def config_of(layers: int, length: int) -> transformer.Config:
    """The model of all tables: 8 heads of 64, 4 of them key-value heads."""
    return transformer.Config(
        vocabulary_size=256,
        width=256,
        num_layers=layers,
        num_heads=HEADS,
        num_kv_heads=GROUPS,
        head_width=WIDTH,
        max_length=length,
    )


def half_streaming(config: transformer.Config) -> heads.HeadMap:
    """Every second head streams: which ones is all the same to speed."""
    row = (True, False) * (config.kv_heads // 2)
    rows = (row,) * config.num_layers
    return heads.HeadMap(rows, SINK, WINDOW, heads.fingerprint(config))


def normal(seed: int, *shape: int) -> jax.Array:
    """Random numbers."""
    return jax.random.normal(jax.random.key(seed), shape)


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
            jnp.pad(x, ((0, 0), (0, 0), (0, room - length), (0, 0)))
            for x in (keys, values)
        )

        @jax.jit
        def run(past: tuple) -> jax.Array:
            def token(past: tuple, inputs: tuple) -> tuple:
                step, query, fresh = inputs
                past = tuple(
                    jax.lax.dynamic_update_slice(x, n[:, :, None], (0, 0, step, 0))
                    for x, n in zip(past, fresh, strict=True)
                )
                seen = (jnp.arange(room) <= step)[None, None]
                return past, attend(query[:, None], *past, seen)

            places = length + jnp.arange(STEPS)
            return jax.lax.scan(token, past, (places, asked, new))[1]

        return lambda: run(past)

    def built_in(queries, keys, values, seen):
        keys, values = (jnp.swapaxes(x, 1, 2) for x in (keys, values))
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
        row["milliseconds"] = round(row["milliseconds"] / STEPS, 4)
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
    return jax.jit(lambda: _decoded(made, cache, asked, new))


def _decoded(
    made: Plan, cache: paged_cache.Cache, asked: jax.Array, new: jax.Array
) -> jax.Array:
    """`STEPS` tokens: write, choose, read."""
    some, others = (np.array(x[0], int) for x in (made.retrieval, made.streaming))
    alive = jnp.array([True])

    def token(cache: paged_cache.Cache, inputs: tuple) -> tuple:
        query, fresh = inputs
        query = query.reshape(1, GROUPS, HEADS // GROUPS, WIDTH)
        pages = paged_cache.write_token(
            made, cache.pages[0], cache, *(x[:, some] for x in fresh), alive
        )
        chosen = paged_cache.choose(made, pages, cache, query[:, some])
        where, counts = paged_cache.listed(made, cache, chosen)
        out = decode_xla(
            query[:, some],
            pages.keys,
            pages.values,
            where,
            counts,
            scales=pages.scales,
            bits=made.sparse.bits,
        )
        ring = cache.rings[0]
        if len(others):
            ring = paged_cache.write_token_ring(
                made, ring, cache.length, *(x[:, others] for x in fresh), alive
            )
            seen = paged_cache.ring_valid(made, cache.length)
            narrow = engine.read_ring(ring, query[:, others], seen)
            out = jnp.concatenate([out, narrow], axis=1)
        cache = cache.replace(
            pages=(pages.replace(chosen=chosen),),
            rings=(ring,),
            length=cache.length + 1,
            since=cache.since + 1,
        )
        return cache, out

    return jax.lax.scan(token, cache, (asked, new))[1]


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


# ------------------------------------------------------------------------- generation


def generation(lengths: list[int], turns: int) -> dict[str, Any]:
    """A model of four layers: a prompt of each length and an answer of 128 tokens."""
    return {str(length): generation_at(length, turns) for length in lengths}


def generation_at(length: int, turns: int, answer: int = 128) -> dict[str, Any]:
    """See `generation`; "first token" is the prompt alone."""
    config = config_of(4, length + answer)
    params = transformer.init(config, jax.random.key(0))
    prompt = jax.random.randint(jax.random.key(1), (1, length), 0, 256)
    half = half_streaming(config)
    arms: dict[str, Sparse | None] = {
        "dense": None,
        "LServe": Sparse(budget=BUDGET, heads=half),
        "LServe, 4 bits": Sparse(budget=BUDGET, heads=half, bits=4),
    }
    found: dict[str, Any] = {}
    for part, tokens in (("first token", 1), ("whole", answer)):
        print(f"{part} after {length} tokens")
        contestants = {}
        for name, sparse in arms.items():
            speak = sampler(engine.speaker(config, sparse), Sampling(max_tokens=tokens))
            run = jax.jit(lambda x, speak=speak: speak(params, x, x >= 0, None).tokens)
            contestants[name] = lambda run=run: run(prompt)
        found[part] = race(contestants, "dense", turns)
    found["answer_tokens"] = answer
    found["cache_bytes"] = cache_bytes(config, length + answer, arms)
    return found


def cache_bytes(
    config: transformer.Config, room: int, arms: dict[str, Sparse | None]
) -> dict[str, Any]:
    """Of keys, values, scales and bounds; their share of the dense cache's."""
    found = {}
    whole = 0
    for name, sparse in arms.items():
        if sparse is None:
            shapes: Any = jax.eval_shape(
                lambda: transformer.init_cache(config, 1, room)
            )
        else:
            made = plan(config, sparse)
            size = paged_cache.pages_for(room, made)
            shapes = jax.eval_shape(
                lambda made=made, size=size: paged_cache.init(made, 1, room, size)
            )
        count = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
        whole = whole or count
        found[name] = {"bytes": count, "of_dense": round(count / whole, 4)}
    return found


# ---------------------------------------------------------------------------- serving


def serve(turns: int) -> dict[str, Any]:
    """32 prompts of 512 tokens whose answers have geometric lengths, at most 256."""
    print("serving")
    config = config_of(2, 1024)
    params = jax.tree.map(
        lambda x: 0.1 * x, transformer.init(config, jax.random.key(0))
    )  # nearly uniform: the stop tokens come with probability 4 / 256
    options = Sampling(max_tokens=256, stop_tokens=(0, 1, 2, 3))
    prompt = jax.random.randint(jax.random.key(1), (32, 512), 4, 256)
    sparse = Sparse(budget=512, page_size=32, heads=half_streaming(config))
    key = jax.random.key(2)

    def batches(x: jax.Array) -> jax.Array:
        """Lockstep: eight at a time, each batch waits for its longest answer."""
        speak = sampler(engine.speaker(config, sparse), options)
        parts = x.reshape(4, 8, -1), jax.random.split(key, 4)
        return jax.lax.map(
            lambda part: speak(params, part[0], part[0] >= 0, part[1]).mask, parts
        )

    continuous = serving.sampler(config, options, sparse, slots=8)
    contestants: Contestants = {}
    for name, run in {
        "lockstep, 8 at a time": batches,
        "continuous, 8 slots": lambda x: continuous(params, x, x >= 0, key).mask,
    }.items():
        compiled = jax.jit(run)
        contestants[name] = lambda compiled=compiled: compiled(prompt)
    tokens = {name: int(run().sum()) for name, run in contestants.items()}
    found = race(contestants, "lockstep, 8 at a time", turns)
    for name, row in found["contestants"].items():
        row["tokens"] = tokens[name]
        row["tokens_per_second"] = round(1e3 * tokens[name] / row["milliseconds"], 1)
    return {"continuous_batching": found, "prefix_sharing": share_prefix(turns)}


def share_prefix(turns: int) -> dict[str, Any]:
    """Eight answers of 32 tokens to each of two prompts of 2,048."""
    print("prefix sharing")
    config = config_of(2, 2048 + 32)
    params = transformer.init(config, jax.random.key(0))
    prompt = jax.random.randint(jax.random.key(1), (2, 2048), 0, 256)
    options, key = Sampling(max_tokens=32), jax.random.key(2)
    sparse = Sparse(budget=512, heads=half_streaming(config))
    speak = sampler(engine.speaker(config, sparse), options)
    shared = jax.jit(lambda x: speak(params, x, x >= 0, key, 8).tokens)
    apart = jax.jit(lambda x: speak(params, x, x >= 0, key).tokens)
    many = jnp.repeat(prompt, 8, axis=0)
    contestants: Contestants = {
        "prompts repeated": lambda: apart(many),
        "prefix shared": lambda: shared(prompt),
    }
    found = race(contestants, "prompts repeated", turns)
    made = plan(config, sparse)
    length = jnp.full((2,), 2048)
    pools = [
        engine.begin(made, *shape)[0].references.size
        for shape in (
            (16, 2080, jnp.repeat(length, 8), 32, 1),
            (2, 2080, length, 32, 8),
        )
    ]
    return {**found, "pages": dict(zip(contestants, pools, strict=True))}


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
