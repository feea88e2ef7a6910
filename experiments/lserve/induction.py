"""A transformer that retrieves by construction, at any length, without training.

Two layers of `rlx.networks.transformer`, whose parameters are written down. In the
first, one head attends to the word before, by rotary positions alone: its query and key
are constants, and their angles agree one step back. In the second, one head asks for
the places where that word before was the word now (an induction head, Olsson et al.
2022, https://arxiv.org/abs/2209.11895) and copies the word that stands there. All other
heads, and both MLPs, give nothing.

Words have sparse codes: words of filler in channels of their own, keys and values in
others. Slow rotary pairs hold the codes, fast ones hold positions, as in trained
models of long contexts.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lserve import tasks
from rlx.networks import transformer
from rlx.types import Array, Params

WIDTH, HEADS, GROUPS = 64, 4, 2
"""d, H and K."""
PAIRS = WIDTH // 2
BASE = 1e12
"""Of the wavelengths: 2π at the fastest, 10^12 at the slowest."""
FAST = 10
"""Rotary pairs, the fastest, that tell the word before; the faster, the heavier."""
CODE = 32
"""Channels of the codes: the slowest 16 pairs."""
RARE = 24
"""Of these, channels of keys and values; 4 of them, with signs, are a word's code."""
COMMON = CODE - RARE
"""And of filler, 2 a word."""
SHARP = (2000.0, 300.0)
"""Greatest score of the first and of the second head, before / sqrt(d)."""
SIZES = {"code": CODE, "value": WIDTH, "one": 1, "before": CODE, "out": WIDTH}
"""What the residual stream holds."""
CONFIG = transformer.Config(
    vocabulary_size=tasks.WORDS,
    width=200,
    num_layers=2,
    num_heads=HEADS,
    num_kv_heads=GROUPS,
    head_width=WIDTH,
    hidden_width=8,
    max_length=1 << 18,
    rope_base=BASE,
    tied=False,
)
RETRIEVAL = ((False, False), (True, False))
"""`[L][K]` the one head that needs all tokens."""


def codes() -> np.ndarray:
    """`[V, CODE]` of norm 1; any two agree in half of it at most."""
    rng_free = np.random.default_rng(4)
    found = np.zeros((tasks.WORDS, CODE))
    for word in range(tasks.WORDS):
        common = word < tasks.KEYS
        count, room, first = (2, COMMON, RARE) if common else (4, RARE, 0)
        peers = found[: tasks.KEYS] if common else found[tasks.KEYS :]
        while True:
            row = np.zeros(CODE)
            channels = first + rng_free.permutation(room)[:count]
            row[channels] = rng_free.choice([-1, 1], count) / np.sqrt(count)
            if (peers @ row).max() < 0.51:
                break
        found[word] = row
    return found


def layout() -> dict[str, slice]:
    """Where in the residual stream each thing is."""
    ends = np.cumsum(list(SIZES.values()))
    return {
        name: slice(int(end) - size, int(end))
        for (name, size), end in zip(SIZES.items(), ends, strict=True)
    }


def _code_channels() -> np.ndarray:
    """Channels of a head whose angles hardly move: both halves of the slow pairs."""
    slow = np.arange(PAIRS - CODE // 2, PAIRS)
    return np.concatenate([slow, PAIRS + slow])


@functools.cache
def params() -> Params:
    """The parameters, of `rlx.networks.transformer` with `CONFIG`."""
    slots, width = layout(), CONFIG.width
    rng_free = np.random.default_rng(5)
    content = rng_free.choice([-1, 1], (tasks.WORDS, WIDTH)) / np.sqrt(WIDTH)
    embedding = np.zeros((tasks.WORDS, width))
    embedding[:, slots["code"]] = codes()
    embedding[:, slots["value"]] = content
    embedding[:, slots["one"]] = 1.0
    head = np.zeros((width, tasks.WORDS))
    head[slots["out"]] = content.T
    layers = [_previous(slots), _induction(slots)]
    stacked = {
        name: {"kernel": np.stack([layer[name] for layer in layers])}
        for name in layers[0]
    }
    norms = {"scale": np.ones((2, width))}
    made = {
        "embedding": embedding,
        "head": head,
        "layers": {**stacked, "attention_norm": norms, "mlp_norm": norms},
        "final": {"scale": np.ones(width)},
    }
    with jax.ensure_compile_time_eval():  # kept, so never a tracer
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), made)


def _nothing() -> dict[str, np.ndarray]:
    """A layer whose output is its input."""
    whole, part = HEADS * WIDTH, GROUPS * WIDTH
    width, inner = CONFIG.width, CONFIG.hidden
    shapes = {
        "query": (width, whole),
        "key": (width, part),
        "value": (width, part),
        "output": (whole, width),
        "up": (width, inner),
        "gate": (width, inner),
        "down": (inner, width),
    }
    return {name: np.zeros(shape) for name, shape in shapes.items()}


def _previous(slots: dict[str, slice]) -> dict[str, np.ndarray]:
    """The first layer: the code of the word before into `before`.

    Its input has norm sqrt(3), of code, content and one, and is multiplied by
    sqrt(D / 3) on its way in.
    """
    layer, norm = _nothing(), np.sqrt(CONFIG.width / 3)
    angles = BASE ** (-np.arange(FAST) / PAIRS)
    weight = np.arange(FAST, 0, -1.0)
    size = np.sqrt(SHARP[0] * weight / weight.sum()) / norm
    layer["query"][slots["one"], :FAST] = size
    layer["key"][slots["one"], :FAST] = size * np.cos(angles)
    layer["key"][slots["one"], PAIRS : PAIRS + FAST] = size * np.sin(angles)
    layer["value"][slots["code"], :CODE] = np.eye(CODE) / norm
    layer["output"][:CODE, slots["before"]] = np.eye(CODE)
    return layer


def _induction(slots: dict[str, slice]) -> dict[str, np.ndarray]:
    """The second layer: what stood after the word now, into `out`."""
    layer, norm = _nothing(), np.sqrt(CONFIG.width / 4)
    channels, size = _code_channels(), np.sqrt(SHARP[1]) / norm
    rows = np.arange(CODE)
    layer["query"][slots["code"].start + rows, channels] = size
    layer["key"][slots["before"].start + rows, channels] = size
    layer["value"][slots["value"], :WIDTH] = np.eye(WIDTH) / norm
    layer["output"][:WIDTH, slots["out"]] = np.eye(WIDTH)
    return layer


def predict(words: Array) -> Array:
    """`int32[B, T]` the likeliest word after each of `int32[B, T]`."""
    logits = transformer.decoder(CONFIG).apply(params(), words)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
