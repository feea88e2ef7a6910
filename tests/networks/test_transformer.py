"""The decoder against a forward pass in NumPy, and its cache against none."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.networks import transformer
from rlx.networks.transformer import Config

LLAMA = Config(
    vocabulary_size=11,
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_length=32,
    tied=False,
)
GPT2 = Config(
    vocabulary_size=11,
    width=16,
    num_layers=2,
    num_heads=4,
    max_length=32,
    positions="learned",
    normalization="layer",
    activation="gelu",
    bias=True,
)
BOTH = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])


def params_of(config: Config) -> dict:
    """Large random parameters, so that nothing is lost in roundings."""
    params = transformer.init(config, jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


TOKENS = np.random.default_rng(0).integers(0, 11, (2, 7)).astype(np.int32)


def oracle(config: Config, params: dict, tokens: np.ndarray) -> np.ndarray:  # noqa: C901
    """One sequence, head by head and token by token, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x: np.ndarray, weights: dict) -> np.ndarray:
        if config.normalization == "layer":
            x = (x - x.mean()) / np.sqrt(x.var() + config.epsilon)
            return x * weights["scale"] + weights["shift"]
        return x / np.sqrt((x**2).mean() + config.epsilon) * weights["scale"]

    def linear(x: np.ndarray, weights: dict) -> np.ndarray:
        return x @ weights["kernel"] + weights.get("bias", 0.0)

    def turned(head: np.ndarray, position: int) -> np.ndarray:
        if config.positions == "learned":
            return head
        half = len(head) // 2
        angle = position / config.rope_base ** (np.arange(half) / half)
        pairs = (head[:half] + 1j * head[half:]) * np.exp(1j * angle)
        return np.concatenate([pairs.real, pairs.imag])

    rows = p["embedding"][tokens]
    if config.positions == "learned":
        rows = rows + p["positions"][: len(tokens)]
    size, share = config.head_size, config.num_heads // config.kv_heads
    for number in range(config.num_layers):
        layer = jax.tree.map(lambda x, n=number: x[n], p["layers"])
        normal = [norm(x, layer["attention_norm"]) for x in rows]
        q, k, v = (
            np.stack([linear(x, layer[name]).reshape(-1, size) for x in normal])
            for name in ("query", "key", "value")
        )
        out = []
        for t, x in enumerate(rows):
            heads = []
            for h in range(config.num_heads):
                past = [turned(k[s, h // share], s) for s in range(t + 1)]
                score = np.array(past) @ turned(q[t, h], t) / math.sqrt(size)
                weight = np.exp(score - score.max())
                heads.append(weight / weight.sum() @ v[: t + 1, h // share])
            x = x + linear(np.concatenate(heads), layer["output"])
            normal_x = norm(x, layer["mlp_norm"])
            inner = linear(normal_x, layer["up"])
            if config.activation == "swiglu":
                gate = linear(normal_x, layer["gate"])
                inner = inner * gate / (1 + np.exp(-gate))
            else:
                cubic = np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)
                inner = 0.5 * inner * (1 + np.tanh(cubic))
            out.append(x + linear(inner, layer["down"]))
        rows = np.stack(out)
    head = p["embedding"].T if config.tied else p["head"]
    return np.stack([norm(x, p["final"]) for x in rows]) @ head


@BOTH
def test_logits_are_those_of_a_plain_loop(config: Config) -> None:
    params = params_of(config)
    found = jax.jit(transformer.decoder(config).apply)(params, TOKENS)
    expected = [oracle(config, params, row) for row in TOKENS]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@BOTH
@pytest.mark.parametrize("long", [transformer.LONG, 2])
def test_a_cache_changes_nothing(
    config: Config, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "LONG", long)  # above it prompts go in blocks
    params, network = params_of(config), transformer.decoder(config)
    whole = network.apply(params, TOKENS)
    cache = transformer.init_cache(config, 2, 10)
    first, cache = network.apply(params, TOKENS[:, :4], cache=cache)
    step = jax.jit(lambda tokens, cache: network.apply(params, tokens, cache=cache))
    rows = [first]
    for t in range(4, 7):
        found, cache = step(TOKENS[:, t : t + 1], cache)
        rows.append(found)
    np.testing.assert_allclose(
        jnp.concatenate(rows, axis=1), whole, rtol=1e-4, atol=1e-5
    )


@BOTH
def test_padding_on_the_left_is_not_there(config: Config) -> None:
    params, network = params_of(config), transformer.decoder(config)
    alone = network.apply(params, TOKENS[:1, :4])
    padded = np.concatenate([np.full((1, 3), 7, np.int32), TOKENS[:1, :4]], axis=1)
    mask = np.arange(7)[None] >= 3
    found = network.apply(params, padded, mask=mask)[:, 3:]
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)
    cache = transformer.init_cache(config, 1, 9)
    _, cache = network.apply(params, padded[:, :5], mask=mask[:, :5], cache=cache)
    later, _ = network.apply(params, padded[:, 5:], cache=cache)
    np.testing.assert_allclose(later, alone[:, 2:], rtol=1e-4, atol=1e-5)


def test_nothing_looks_ahead() -> None:
    network, params = transformer.decoder(LLAMA), params_of(LLAMA)
    other = TOKENS.copy()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    np.testing.assert_array_equal(
        network.apply(params, TOKENS)[:, :5], network.apply(params, other)[:, :5]
    )


def test_adapters_begin_as_nothing_and_are_told_apart() -> None:
    adapted = dataclasses.replace(LLAMA, lora_rank=2)
    params = transformer.init(adapted, jax.random.key(0))
    is_adapter = transformer.is_adapter(params)
    assert sum(jax.tree.leaves(is_adapter)) == 2 * 4
    plain = transformer.init(LLAMA, jax.random.key(0))
    np.testing.assert_array_equal(
        transformer.decoder(adapted).apply(params, TOKENS),
        transformer.decoder(LLAMA).apply(plain, TOKENS),
    )
    grown = jax.tree.map(lambda x, a: x + 0.1 * a, params, is_adapter)
    moved = transformer.decoder(adapted).apply(grown, TOKENS)
    assert not np.allclose(moved, transformer.decoder(LLAMA).apply(plain, TOKENS))


def test_half_precision_gives_float32_logits_nearby() -> None:
    params = transformer.init(LLAMA, jax.random.key(0))
    half = dataclasses.replace(LLAMA, dtype="bfloat16")
    found = transformer.decoder(half).apply(params, TOKENS)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        found, transformer.decoder(LLAMA).apply(params, TOKENS), atol=0.02
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"width": 15}, "no multiple"),
        ({"num_kv_heads": 3}, "does not divide"),
        ({"positions": "sine"}, "positions must be"),
        ({"head_width": 3}, "even head"),
        ({"num_layers": 0}, "num_layers"),
    ],
)
def test_impossible_shapes_are_refused(change: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(LLAMA, **change)


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="positions for 32"):
        transformer.decoder(LLAMA).apply(params_of(LLAMA), jnp.zeros((1, 33), int))
