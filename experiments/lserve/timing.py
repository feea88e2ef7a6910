"""How speed is measured here: contestants in turn, and the model they all run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.generation import heads
from rlx.networks import transformer

RESULTS = Path(__file__).parent / "results"
HEADS, GROUPS, WIDTH = 8, 4, 64
SINK, WINDOW, BUDGET = 64, 256, 1024
STEPS = 32
"""Tokens of a timed decode: a multiple of every reuse interval."""
Contestants = dict[str, Callable[[], Any]]


def race(contestants: Contestants, base: str, turns: int) -> dict[str, Any]:
    """Medians of each one's times and of the ratios base / itself, with their range.

    Processor time counts what this process computed, whoever else was there.
    """
    for run in contestants.values():
        jax.block_until_ready(run())
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, run in contestants.items():
            begin = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            end = time.perf_counter(), time.process_time()
            spent[name].append((end[0] - begin[0], end[1] - begin[1]))
    found = {}
    for name, pairs in spent.items():
        seconds = np.array(pairs)
        ratios = np.array(spent[base]) / seconds
        wall, processor = (1e3 * float(x) for x in np.median(seconds, axis=0))
        faster, cheaper = (round(float(x), 2) for x in np.median(ratios, axis=0))
        found[name] = {
            "milliseconds": round(wall, 3),
            "processor_milliseconds": round(processor, 3),
            "times_faster": faster,
            "range": [
                round(float(x), 2) for x in np.percentile(ratios[:, 0], [0, 100])
            ],
            "times_less_processor_time": cheaper,
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


def in_place(run: Callable, state: Any, *inputs: Any) -> Callable[[], Any]:
    """`run(state, *inputs) -> (state, out)` again and again, without a copy of it."""
    compiled = jax.jit(run, donate_argnums=0)
    held = [jax.tree.map(jnp.array, state)]

    def once() -> Any:
        held[0], out = compiled(held[0], *inputs)
        return out

    return once
