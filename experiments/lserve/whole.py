"""Speed of whole answers: one long prompt, and many short ones; see `speed`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.lserve.timing import (
    BUDGET,
    Contestants,
    config_of,
    half_streaming,
    race,
)
from rlx.generation import engine, page_table, paged_cache, serving
from rlx.generation.sampling import Sampling
from rlx.generation.sparse import Sparse, plan
from rlx.generation.speakers import sampler
from rlx.networks import transformer


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
            size = page_table.pages_for(room, made)
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
