"""How often the page that matters is selected, by how small pages are scored.

    python -m experiments.lserve.selection [--trials 400]

No model: S random keys of norm 1, one of them (the needle) with a cosine of 0.9 to the
query, whose energy is on `c` of its 64 channels. Pages of 64 tokens are read, 16 of
them; their scores are bounds over logical pages of N tokens. Bounds of least and
greatest keys say little about isotropic ones: with c = 64 the needle's page is found
no more often than by chance, unless a logical page is a single key or two. That is a
property of the rule, and why it needs models whose queries use few channels.
"""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import records
from rlx.ops import paged
from rlx.types import Array, Key

RESULTS = Path(__file__).parent / "results"
WIDTH, PAGE, PAGES, COSINE = 64, 64, 16, 0.9
CHANNELS, LOGICAL, LENGTHS = (4, 8, 16, 32, 64), (1, 4, 16, 64), (16_384, 65_536)


def share(hits: int, trials: int) -> dict[str, float]:
    """A proportion with its 95 % interval (Wilson 1927)."""
    z, p = 1.96, hits / trials
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    half = z / (1 + z * z / trials) * spread
    found = {"share": p, "low": max(middle - half, 0), "high": min(middle + half, 1)}
    return {name: round(value, 4) for name, value in found.items()}


def unit(x: Array) -> Array:
    """Of norm 1."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def trial(length: int, key: Key) -> Array:
    """`bool[len(CHANNELS), len(LOGICAL)]` whether the needle's page is selected."""
    keys = jax.random.split(key, 4)
    hay = unit(jax.random.normal(keys[0], (length, WIDTH)))
    place = jax.random.randint(keys[1], (), 0, length)
    rest = jax.random.normal(keys[2], (WIDTH,))
    found = []
    for channels in CHANNELS:
        some = jax.random.normal(jax.random.fold_in(keys[3], channels), (WIDTH,))
        query = unit(jnp.where(jnp.arange(WIDTH) < channels, some, 0))
        aside = unit(rest - jnp.dot(rest, query) * query)
        needle = COSINE * query + math.sqrt(1 - COSINE**2) * aside
        here = hay.at[place].set(needle)
        found.append([hit(here, query, place // PAGE, size) for size in LOGICAL])
    return jnp.array(found)


def hit(keys: Array, query: Array, page: Array, size: int) -> Array:
    """Whether a page is among those of the greatest scores."""
    valid = jnp.ones(keys.shape[:1], bool)
    scores = paged.page_scores(query, *paged.key_bounds(keys, valid, size))
    scores = paged.physical_scores(scores, jnp.ones_like(scores, bool), PAGE // size)
    return jnp.any(jax.lax.top_k(scores, PAGES)[1] == page)


def main() -> None:
    """All cells, into `results/selection.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=400)
    trials = parser.parse_args().trials
    rows = []
    for length in LENGTHS:
        run = jax.jit(functools.partial(jax.lax.map, functools.partial(trial, length)))
        hits = np.asarray(run(jax.random.split(jax.random.key(length), trials)))
        rows += [
            {
                "length": length,
                "channels": channels,
                "logical": size,
                "chance": round(PAGES * PAGE / length, 4),
                **share(int(hits[:, i, j].sum()), trials),
            }
            for i, channels in enumerate(CHANNELS)
            for j, size in enumerate(LOGICAL)
        ]
        print(length, hits.mean(axis=0).round(2), flush=True)
    content = {**records.origin("lserve.selection"), "trials": trials, "rows": rows}
    records.write(RESULTS / "selection.json", content)


if __name__ == "__main__":
    main()
