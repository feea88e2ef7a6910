"""The kernels against dense attention on a GPU: ratios, beside what is ideal.

    python -m experiments.lserve.gpu [--lengths 8192 65536 131072] [--tiny]

Decode: cuDNN's attention through `jax.nn.dot_product_attention` and, where PyTorch is
installed, its scaled dot-product attention, both over the whole cache; this project's
kernel over the whole cache, and over the pages selected, with the selection's own cost
spread over its interval. Prefill: the same baselines, and the kernel with half the
heads streaming. Times are medians of `--repeats` runs after two that do not count, and
every ratio is against the fastest dense one. `--tiny` runs the same code on a CPU, with
the kernels interpreted: it shows that the command works, and no speed.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import records
from experiments.lserve import roofline
from rlx.generation import pallas_decode, pallas_prefill
from rlx.ops import paged
from rlx.types import Array

RESULTS = Path(__file__).parent / "results"
LENGTHS = (8192, 32768, 65536, 131072, 262144)
PAGE, BLOCK = 64, 128


def timed(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds; the call waits for its own end."""
    spans = []
    for _ in range(repeats + 2):
        begun = time.perf_counter()
        call()
        spans.append(time.perf_counter() - begun)
    return float(np.median(spans[2:]))


def waiting(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """A call of a compiled function that ends when its result is there."""
    run = jax.jit(function)
    return lambda: jax.block_until_ready(run(*arguments))


def torch_calls(tensors: dict[str, Array], causal: bool) -> dict[str, Callable]:
    """PyTorch's attention on copies of the arrays; none without PyTorch on a GPU."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    queries, keys, values = (
        torch.tensor(np.asarray(tensors[name], np.float32)).cuda().bfloat16()
        for name in ("queries", "keys", "values")
    )

    def call() -> None:
        torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=causal, enable_gqa=True
        )
        torch.cuda.synchronize()

    return {"torch": call}


def made(layer: roofline.Attention, queries: int, length: int) -> dict[str, Array]:
    """Random queries, keys and values, `[1, heads, tokens, d]` in bfloat16."""
    key = jax.random.split(jax.random.key(0), 3)
    sizes = (
        ("queries", layer.heads, queries),
        ("keys", layer.groups, length),
        ("values", layer.groups, length),
    )
    return {
        name: jax.random.normal(key[i], (1, heads, size, layer.width), jnp.bfloat16)
        for i, (name, heads, size) in enumerate(sizes)
    }


def dense(tensors: dict[str, Array], causal: bool, tiny: bool) -> dict[str, Callable]:
    """All baselines."""
    turned = [jnp.swapaxes(tensors[n], 1, 2) for n in ("queries", "keys", "values")]
    attend = functools.partial(
        jax.nn.dot_product_attention,
        is_causal=causal,
        implementation="xla" if tiny else "cudnn",
    )
    name = "xla" if tiny else "cudnn"
    return {name: waiting(attend, *turned), **torch_calls(tensors, causal)}


# ------------------------------------------------------------------------------ decode


def decode_calls(
    layer: roofline.Attention, length: int, tiny: bool
) -> dict[str, Callable]:
    """One step of one row: dense baselines, the kernel over all and over some pages."""
    tensors = made(layer, 1, length)
    calls = dense(tensors, False, tiny)
    count, groups = length // PAGE, layer.groups
    pool = [
        jnp.swapaxes(tensors[n][0].reshape(groups, count, PAGE, -1), 0, 1)
        for n in ("keys", "values")
    ]
    queries = tensors["queries"].reshape(1, groups, -1, layer.width)
    run = functools.partial(pallas_decode.decode, interpret=tiny)
    for name, budget, kept in (
        ("kernel, all pages", length, groups),
        ("kernel, selected", layer.budget, round(groups * (1 - layer.streaming))),
    ):
        pages = min(budget, length) // PAGE
        listed = jnp.broadcast_to(
            jnp.arange(pages, dtype=jnp.int32) * (count // pages), (1, kept, pages)
        )
        sizes = jnp.full(listed.shape, PAGE, jnp.int32)
        split = min(max(pages // 8, 1), 32)
        some = [x[:, :kept] for x in pool]
        calls[name] = waiting(
            functools.partial(run, split=split), queries[:, :kept], *some, listed, sizes
        )
    bounds = paged.key_bounds(
        tensors["keys"][0], jnp.ones((groups, length), bool), layer.logical
    )
    calls["selection"] = waiting(
        functools.partial(_selected, layer, count), queries[0], *bounds
    )
    return calls


def _selected(
    layer: roofline.Attention, count: int, queries: Array, least: Array, greatest: Array
) -> Array:
    kept = round(layer.groups * (1 - layer.streaming))
    asked, least, greatest = (x[:kept] for x in (queries, least, greatest))
    scores = jnp.max(
        jax.vmap(paged.page_scores, in_axes=(1, None, None))(asked, least, greatest),
        axis=0,
    )
    valid = jnp.ones(scores.shape, bool)
    physical = paged.physical_scores(scores, valid, PAGE // layer.logical)
    budget = min(layer.budget // PAGE, count)
    used = jnp.full((kept,), count, jnp.int32)
    return paged.select(physical, used, budget=budget, sink=1, recent=1)


# ----------------------------------------------------------------------------- prefill


def prefill_calls(
    layer: roofline.Attention, length: int, tiny: bool
) -> dict[str, Callable]:
    """One prompt: dense baselines, the kernel with all heads causal and with half."""
    tensors = made(layer, length, length)
    calls = dense(tensors, True, tiny)
    few = round(layer.groups * layer.streaming)
    block = 16 if tiny else BLOCK
    for name, streaming in (
        ("kernel, all causal", np.zeros(layer.groups, bool)),
        ("kernel, some streaming", np.arange(layer.groups) < few),
    ):
        rule = {"sink": layer.sink, "window": layer.window}
        lists = pallas_prefill.block_lists(length, block, streaming, **rule)
        run = functools.partial(
            pallas_prefill.prefill, block=block, interpret=tiny, **rule
        )
        calls[name] = waiting(
            lambda q, k, v, blocks, counts, kind, run=run: run(
                q, k, v, blocks, counts, jnp.array([length]), streaming=kind
            ),
            *tensors.values(),
            *(jnp.asarray(x) for x in lists),
            jnp.asarray(streaming),
        )
    return calls


def compared(seconds: dict[str, float], layer: roofline.Attention) -> dict[str, Any]:
    """Milliseconds, and how many times faster than the fastest dense baseline."""
    best = min(seconds[name] for name in ("cudnn", "xla", "torch") if name in seconds)
    if "selection" in seconds:
        spread = seconds["selection"] / layer.interval
        seconds["selected, with selection"] = seconds["kernel, selected"] + spread
    return {
        "milliseconds": {name: round(1e3 * x, 4) for name, x in seconds.items()},
        "times_faster": {name: round(best / x, 3) for name, x in seconds.items()},
    }


def main() -> None:
    """All lengths, into `results/gpu.json`; `--tiny` prints and writes nothing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if not given.tiny and jax.default_backend() != "gpu":
        raise SystemExit("no GPU here: `--tiny` runs the same code interpreted")
    layer = roofline.Attention(heads=16, groups=4, width=64)
    if given.tiny:
        layer = roofline.Attention(
            heads=4, groups=2, width=16, sink=16, window=16, budget=128
        )
    rows = []
    for length in (256,) if given.tiny else given.lengths:
        row: dict[str, Any] = {"ideal": roofline.row(roofline.H200, layer, length)}
        for phase, calls in (("decode", decode_calls), ("prefill", prefill_calls)):
            found = calls(layer, length, given.tiny)
            seconds = {name: timed(call, given.repeats) for name, call in found.items()}
            row[phase] = compared(seconds, layer)
            print(length, phase, row[phase], flush=True)
        rows.append(row)
    if not given.tiny:
        content = {**records.origin("lserve.gpu"), "rows": rows}
        records.write(RESULTS / "gpu.json", content)


if __name__ == "__main__":
    main()
