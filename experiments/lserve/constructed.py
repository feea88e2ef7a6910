"""Passkeys in long texts for the constructed model, by plain definitions.

    python -m experiments.lserve.constructed [--texts 10]

The second layer of `experiments.lserve.induction` alone, at up to 65,536 words: what
its retrieval head reads follows from the words, because the first layer's head finds
the word before at any distance (a test says so). Pages are selected and read by
`rlx.ops.sparse_attention` and `rlx.ops.paged`, without the engine, which it checks.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import records
from experiments.lserve import induction, tasks
from experiments.lserve.selection import share
from rlx.networks import transformer
from rlx.ops import paged, sparse_attention
from rlx.types import Array, Key, Params

RESULTS = Path(__file__).parent / "results"
LENGTHS, PAGE = (4096, 16_384, 65_536), 64
DEPTHS = tuple(0.05 + 0.1 * i for i in range(10))
SETTINGS: tuple[tuple[int, int, int | None], ...] = (
    *((budget, size, None) for budget in (512, 1024, 4096) for size in (4, 16, 32, 64)),
    (1024, 16, 8),
    (1024, 16, 4),
)
"""Budget in words, words of a logical page, bits."""


def stream(words: Array) -> Array:
    """`[S, D]` what the second layer reads: each word beside the one before it."""
    params, slots = induction.params(), induction.layout()
    codes = params["embedding"][:, slots["code"]]
    before = jnp.concatenate([words[:1], words[:-1]])
    return params["embedding"][words].at[:, slots["before"]].set(codes[before])


def second_layer() -> Params:
    """Its parameters."""
    return jax.tree.map(lambda x: x[1], induction.params()["layers"])


def answers(words: Array, asked: Array) -> Array:
    """`int32[len(SETTINGS) + 1, n]` words after each question; the first row dense.

    Args:
      words: `int32[S]` the text.
      asked: `int32[n]` keys, each asked alone at the end of it.
    """
    config, layer, size = induction.CONFIG, second_layer(), words.shape[0]
    x = stream(words)[None]
    positions = jnp.arange(size + 1, dtype=jnp.int32)[None]
    _, keys, values = transformer.queries_keys_values(
        config, layer, x, positions[:, :size]
    )
    keys, values = keys[0, 0], values[0, 0]

    def one(word: Array) -> Array:
        ends = stream(jnp.stack([words[-1], word]))[None, 1:]
        queries, key, value = transformer.queries_keys_values(
            config, layer, ends, positions[:, size:]
        )
        asking = queries[0, 0, : config.num_heads // config.kv_heads]
        room = ((0, PAGE), (0, 0))
        held = [
            jnp.pad(old, room).at[size].set(new[0, 0, 0])
            for old, new in ((keys, key), (values, value))
        ]
        mixed = [read(asking, *held, size + 1, s) for s in (None, *SETTINGS)]
        return jnp.stack([said(config, layer, ends, found) for found in mixed])

    return jax.lax.map(one, asked).T


def read(asking: Array, keys: Array, values: Array, used: int, setting: Any) -> Array:
    """`[g, d]` over the pages of one setting; over all of them for None."""
    if setting is None:
        seen = jnp.broadcast_to(jnp.arange(len(keys)) < used, (len(asking), len(keys)))
        return sparse_attention.masked(asking, keys, values, seen)
    budget, logical, bits = setting
    rule = {"budget": budget // PAGE, "sink": 1, "recent": 1}
    pages = sparse_attention.selected_pages(asking, keys, used, (PAGE, logical), **rule)
    if bits:
        keys, values = (
            paged.dequantize(*paged.quantize(x, bits), bits) for x in (keys, values)
        )
    return sparse_attention.decode(asking, keys, values, pages, PAGE, used)


def said(config: transformer.Config, layer: Params, x: Array, mixed: Array) -> Array:
    """The likeliest word, of what the first group of heads read."""
    params = induction.params()
    every = jnp.zeros((1, 1, config.num_heads, config.head_size))
    every = every.at[0, 0, : len(mixed)].set(mixed)
    x = transformer.after_attention(config, layer, x, every)
    x = transformer.normalize(config, params["final"], x)
    return jnp.argmax(transformer.logits(config, params, x)[0, 0]).astype(jnp.int32)


def trial(length: int, key: Key) -> Array:
    """`bool[len(SETTINGS) + 1, n]` whether each answer is right, for one text."""
    text = tasks.Text(length, keys=6, rate=0.1)
    words, asked, wanted = tasks.needles(text, jnp.array(DEPTHS), key)
    return answers(words, asked) == wanted[None]


def main() -> None:
    """All settings, into `results/constructed.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=10)
    count, rows = parser.parse_args().texts, []
    for length in LENGTHS:
        run = jax.jit(functools.partial(jax.lax.map, functools.partial(trial, length)))
        right = np.asarray(run(jax.random.split(jax.random.key(length), count)))
        for index, setting in enumerate((None, *SETTINGS)):
            here = right[:, index]
            names = ("budget", "logical", "bits")
            row = {"length": length, "kind": "sparse" if setting else "dense"}
            row |= dict(zip(names, setting or (None,) * 3, strict=True))
            rows.append({**row, **share(int(here.sum()), here.size)})
            print(rows[-1], flush=True)
    content = {**records.origin("lserve.constructed"), "texts": count, "rows": rows}
    records.write(RESULTS / "constructed.json", content)


if __name__ == "__main__":
    main()
