"""What attention must move and compute, dense and sparse: bytes, FLOPs, ideal times.

    python -m experiments.lserve.roofline

Counts per layer, from the shapes alone. A decode step reads keys and values once
(2 d b bytes for each token and key-value head), the bounds of its pages once every C
steps, and nothing else that grows: with S tokens, ρ of the heads streaming, N tokens in
a logical page,

    dense    2 d S b K
    sparse   K [(1 − ρ) (2 d min(B, S) b + 2 d (S / N) b' / C) + ρ 2 d (s + w) b].

Prefill is counted in pairs of blocks that are multiplied. Times are the larger of bytes
over bandwidth and FLOPs over the peak: no kernel is faster, most are slower.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from experiments import records
from rlx.ops import sparse_attention

RESULTS = Path(__file__).parent / "results"
LENGTHS = tuple(1024 * 2**i for i in range(2, 9))


@dataclasses.dataclass(frozen=True)
class Device:
    """A machine, by its data sheet."""

    name: str
    bandwidth: float
    """Bytes of memory in a second."""
    peak: float
    """FLOPs in a second, bfloat16, dense."""


H200 = Device("NVIDIA H200", 4.8e12, 989e12)
A100 = Device("NVIDIA A100 80GB", 2.039e12, 312e12)


@dataclasses.dataclass(frozen=True)
class Attention:
    """One layer's attention, and how it is made sparse."""

    heads: int = 32
    """H."""
    groups: int = 8
    """K key-value heads."""
    width: int = 128
    """d."""
    streaming: float = 0.5
    """ρ, share of heads that stream."""
    sink: int = 128
    """s."""
    window: int = 256
    """w."""
    budget: int = 4096
    """B, tokens that the others read."""
    logical: int = 16
    """N, tokens of a logical page."""
    interval: int = 4
    """C, steps between two selections."""
    bits: int = 16
    """Of a number in the cache; 8 and 4 have a scale and a zero of 4 bytes a vector."""
    bound_bytes: int = 2
    """b', of a number of the bounds."""
    block: int = 128
    """Tokens of a block of prefill."""

    @property
    def token_bytes(self) -> float:
        """Of a key and a value of one head."""
        scales = 0 if self.bits == 16 else 16
        return 2 * self.width * self.bits / 8 + scales


def decode_bytes(layer: Attention, length: int) -> dict[str, float]:
    """What one step of one row reads."""
    many, few = layer.groups * (1 - layer.streaming), layer.groups * layer.streaming
    plain = 4 * layer.width  # a key and a value of 16 bits, as rings are kept
    bounds = 2 * layer.width * layer.bound_bytes * length / layer.logical
    parts = {
        "pages": many * layer.token_bytes * min(layer.budget, length),
        "bounds": many * bounds / layer.interval if length > layer.budget else 0.0,
        "rings": few * plain * min(layer.sink + layer.window, length),
    }
    return {
        "dense": layer.groups * plain * length,
        "sparse": sum(parts.values()),
    } | parts


def decode_flops(layer: Attention, length: int) -> dict[str, float]:
    """Of one step of one row: 4 d for each token and head, and again for each bound."""
    many, few = layer.heads * (1 - layer.streaming), layer.heads * layer.streaming
    each = 4 * layer.width
    chosen = length / layer.logical / layer.interval if length > layer.budget else 0.0
    read = many * (min(layer.budget, length) + chosen)
    ring = few * min(layer.sink + layer.window, length)
    return {"dense": each * layer.heads * length, "sparse": each * (read + ring)}


def prefill_pairs(layer: Attention, length: int) -> tuple[int, int]:
    """Pairs of blocks that a causal head multiplies, and that a streaming one does."""
    count = -(-length // layer.block)
    few = sparse_attention.blocks(length, layer.block, layer.sink, layer.window)
    return count * (count + 1) // 2, int(few.sum())


def prefill_flops(layer: Attention, length: int) -> dict[str, float]:
    """Of one row's prompt."""
    causal, narrow = prefill_pairs(layer, length)
    pair = 4 * layer.width * layer.block**2
    mixed = (1 - layer.streaming) * causal + layer.streaming * narrow
    return {"dense": pair * layer.heads * causal, "sparse": pair * layer.heads * mixed}


def prefill_bytes(layer: Attention, length: int) -> float:
    """Queries, keys, values and outputs once each, 2 bytes a number; both alike."""
    return 4 * layer.width * length * (layer.heads + layer.groups)


def cache_bytes(layer: Attention, length: int) -> dict[str, float]:
    """Of one row, while it grows."""
    many, few = layer.groups * (1 - layer.streaming), layer.groups * layer.streaming
    plain = 4 * layer.width
    bounds = 2 * layer.width * layer.bound_bytes / layer.logical
    pages = many * (layer.token_bytes + bounds) * length
    rings = few * plain * min(layer.sink + layer.window, length)
    return {"dense": layer.groups * plain * length, "sparse": pages + rings}


def seconds(device: Device, moved: float, computed: float) -> float:
    """The ideal time."""
    return max(moved / device.bandwidth, computed / device.peak)


def row(device: Device, layer: Attention, length: int) -> dict[str, Any]:
    """Ideal times of one length, and what sparsity gains at best."""
    moved, flops = decode_bytes(layer, length), decode_flops(layer, length)
    prompt, once = prefill_flops(layer, length), prefill_bytes(layer, length)
    held = cache_bytes(layer, length)
    found: dict[str, Any] = {"length": length}
    steps, prompts = (
        {kind: seconds(device, x[kind], y[kind]) for kind in ("dense", "sparse")}
        for x, y in ((moved, flops), ({"dense": once, "sparse": once}, prompt))
    )
    for kind in ("dense", "sparse"):
        found[f"decode_{kind}_us"] = round(1e6 * steps[kind], 3)
        found[f"decode_{kind}_bytes"] = round(moved[kind])
        found[f"prefill_{kind}_ms"] = round(1e3 * prompts[kind], 4)
        found[f"prefill_{kind}_flops"] = prompt[kind]
        found[f"cache_{kind}_bytes"] = round(held[kind])
    found["decode_gain"] = round(steps["dense"] / steps["sparse"], 2)
    found["prefill_gain"] = round(prompts["dense"] / prompts["sparse"], 2)
    found["cache_share"] = round(held["sparse"] / held["dense"], 3)
    return found


SHAPES = {
    "Llama-3-8B, A100, 8 bits": (A100, Attention(bits=8)),
    "Llama-3-8B, H200, 16 bits": (H200, Attention()),
    "200M, H200, 16 bits": (H200, Attention(heads=16, groups=4, width=64)),
    "200M, H200, 4 bits": (H200, Attention(heads=16, groups=4, width=64, bits=4)),
}


def main() -> None:
    """All shapes and lengths, into `results/roofline.json`."""
    content: dict[str, Any] = records.origin("lserve.roofline")
    for name, (device, layer) in SHAPES.items():
        rows = [row(device, layer, length) for length in LENGTHS]
        content[name] = {
            "device": dataclasses.asdict(device),
            "layer": dataclasses.asdict(layer),
            "rows": rows,
        }
        for found in rows:
            print(name, found["length"], found["decode_gain"], found["prefill_gain"])
    records.write(RESULTS / "roofline.json", content)


if __name__ == "__main__":
    main()
