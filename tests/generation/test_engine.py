"""The sparse engine: where it must be dense, and what it may leave out."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.generation import engine, heads, language_model, paged_cache
from rlx.generation.sampling import Sampling
from rlx.generation.sparse import Sparse, plan
from rlx.generation.speakers import sampler
from rlx.networks import transformer
from rlx.ops import paged, sparse_attention

CONFIG = transformer.Config(
    vocabulary_size=13,
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_width=16,  # the least that kernels take
    max_length=64,
)
LENGTHS, SIZE, STEPS = (11, 3, 8), 11, 7
ALL = Sparse(page_size=4, logical_size=2, budget=24, interval=3)
FEW = dataclasses.replace(ALL, budget=12, interval=1)
MIXED = heads.HeadMap(((True, False), (False, False)), 2, 5, heads.fingerprint(CONFIG))


@functools.cache
def params() -> dict:
    made = transformer.init(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda x: 6 * x, made)


def prompts() -> tuple[jax.Array, jax.Array]:
    tokens = jax.random.randint(jax.random.key(1), (3, SIZE), 0, 13)
    mask = jnp.arange(SIZE)[None] >= SIZE - jnp.array(LENGTHS)[:, None]
    return tokens, mask


def said(sparse: Sparse | None, key=None, samples: int = 1, **options: object):
    options = {"max_tokens": STEPS, "stop_tokens": (10,), **options}
    made = sampler(engine.speaker(CONFIG, sparse), Sampling(**options))
    asked = (params(), *prompts())
    return jax.jit(lambda: made(*asked, key, samples))()


def same(found, expected, **tolerance: float) -> None:
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)
    tolerance = {"rtol": 1e-4, "atol": 1e-5, **tolerance}
    np.testing.assert_allclose(found.log_prob, expected.log_prob, **tolerance)


def everything(sink: int, window: int) -> heads.HeadMap:
    return dataclasses.replace(MIXED, sink=sink, window=window)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    "sparse",
    [
        ALL,
        dataclasses.replace(ALL, heads=everything(4, 16)),
        dataclasses.replace(ALL, heads=everything(0, 20)),
        Sparse(page_size=16, logical_size=8, budget=48, backend="pallas"),
    ],
    ids=["pages", "sinks and rings", "rings", "kernels"],
)
def test_reading_everything_is_dense(sparse: Sparse, samples: int) -> None:
    if sparse.backend == "pallas" and samples > 1:
        return  # the interpreter compiles for long
    key = jax.random.key(2)
    expected = said(None, key, samples)
    assert not expected.mask.all() and expected.mask[:, 3].any()
    same(said(sparse, key, samples), expected)


def plain_logits(sparse: Sparse, tokens: np.ndarray, prompt: int) -> np.ndarray:
    """Logits after each token from `prompt` on, by the plain definitions."""
    made, weights = plan(CONFIG, sparse), engine.unstacked(params())
    rows = []
    chosen: dict[tuple[int, int], np.ndarray] = {}
    past: list[tuple] = []

    def layer(i: int, x, place):
        return transformer.queries_keys_values(
            CONFIG, weights["layers"][i], x, place[None]
        )

    # The prompt: all heads at once.
    place = jnp.arange(prompt)
    x = transformer.embed(CONFIG, weights, tokens[None, :prompt], place[None])
    for i in range(CONFIG.num_layers):
        queries, keys, values = layer(i, x, place)
        past.append((keys[0], values[0]))
        streams = np.isin(np.arange(CONFIG.kv_heads), made.streaming[i])
        mixed = sparse_attention.prefill(
            queries,
            keys.swapaxes(1, 2),
            values.swapaxes(1, 2),
            jnp.asarray(streams),
            sink=made.sink,
            window=made.window,
        )
        x = transformer.after_attention(CONFIG, weights["layers"][i], x, mixed)
    rows.append(x[0, -1])
    # Then token by token.
    for step, t in enumerate(range(prompt, len(tokens))):
        place = jnp.array([t])
        x = transformer.embed(CONFIG, weights, tokens[None, t : t + 1], place[None])
        for i in range(CONFIG.num_layers):
            queries, *new = layer(i, x, place)
            past[i] = tuple(
                jnp.concatenate([a, b[0]], axis=1)
                for a, b in zip(past[i], new, strict=True)
            )
            groups = queries[0, 0].reshape(CONFIG.kv_heads, made.group, -1)
            mixed = []
            for k, group in enumerate(groups):
                keys, values = (x[k] for x in past[i])
                if k in made.streaming[i]:
                    seen = sparse_attention.streaming_mask(
                        place, jnp.arange(t + 1), made.sink, made.window
                    )
                    mixed.append(sparse_attention.masked(group, keys, values, seen))
                    continue
                room = -(-STEPS // 4) * 4 + 12 - t - 1
                keys, values = (jnp.pad(x, ((0, room), (0, 0))) for x in (keys, values))
                if step % sparse.interval == 0:
                    chosen[i, k] = sparse_attention.selected_pages(
                        group,
                        keys,
                        t + 1,
                        (sparse.page_size, sparse.logical_size),
                        budget=sparse.budget_pages,
                        sink=sparse.sink_pages,
                        recent=sparse.recent_pages,
                        ahead=sparse.pages_ahead,
                    )
                if sparse.bits:
                    keys, values = (
                        paged.dequantize(*paged.quantize(x, sparse.bits), sparse.bits)
                        for x in (keys, values)
                    )
                mixed.append(
                    sparse_attention.decode(
                        group, keys, values, chosen[i, k], sparse.page_size, t + 1
                    )
                )
            mixed = jnp.stack(mixed).reshape(1, 1, CONFIG.num_heads, -1)
            x = transformer.after_attention(CONFIG, weights["layers"][i], x, mixed)
        rows.append(x[0, -1])
    x = transformer.normalize(CONFIG, weights["final"], jnp.stack(rows)[None])
    return np.asarray(transformer.logits(CONFIG, weights, x)[0])


@pytest.mark.parametrize(
    ("sparse", "samples"),
    [
        (FEW, 1),
        (dataclasses.replace(FEW, interval=3), 2),
        (dataclasses.replace(FEW, logical_size=4, sink_pages=0, interval=2), 1),
        (dataclasses.replace(FEW, heads=MIXED, logical_size=1), 2),
        (dataclasses.replace(FEW, heads=MIXED, bits=8), 1),
        (dataclasses.replace(FEW, bits=4, interval=4), 2),
    ],
    ids=["each step", "reuse", "quest", "streaming", "8 bits", "4 bits"],
)
def test_the_engine_does_what_the_definitions_say(sparse: Sparse, samples: int) -> None:
    found = said(sparse, jax.random.key(5), samples, stop_tokens=())
    tokens, mask = prompts()
    for row in range(0, 3 * samples, samples + 1):
        said_tokens = found.tokens[row]
        prompt = np.asarray(tokens[row // samples])[np.asarray(mask[row // samples])]
        whole = np.concatenate([prompt, said_tokens])
        logits = plain_logits(sparse, whole, len(prompt))[:-1]
        expected = jax.nn.log_softmax(logits)[np.arange(STEPS), said_tokens]
        np.testing.assert_allclose(found.log_prob[row], expected, rtol=1e-3, atol=1e-3)


def test_less_is_read_and_it_matters() -> None:
    key = jax.random.key(5)
    apart = [
        float(jnp.abs(said(s, key).log_prob - said(None, key).log_prob).max())
        for s in (FEW, dataclasses.replace(FEW, heads=MIXED))
    ]
    assert min(apart) > 1e-2


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    tokens, mask = prompts()
    sparse = dataclasses.replace(FEW, heads=MIXED, interval=2)
    made = sampler(engine.speaker(CONFIG, sparse), Sampling(max_tokens=STEPS))
    weights = params()
    speak = jax.jit(lambda tokens, mask: made(weights, tokens, mask, None))
    together = speak(tokens, mask)
    for row in range(3):
        alone = speak(tokens[row : row + 1], mask[row : row + 1])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(
            alone.log_prob[0], together.log_prob[row], rtol=1e-4, atol=1e-5
        )


def test_runs_of_one_program_are_runs_alone() -> None:
    sparse = dataclasses.replace(FEW, heads=MIXED, interval=2)
    made = sampler(engine.speaker(CONFIG, sparse), Sampling(max_tokens=4))
    keys = jax.random.split(jax.random.key(3), 2)
    together = jax.vmap(lambda key: made(params(), *prompts(), key))(keys)
    for i, key in enumerate(keys):
        same(
            made(params(), *prompts(), key), jax.tree.map(lambda x, i=i: x[i], together)
        )


def test_shared_pages_are_stored_once() -> None:
    made = plan(CONFIG, ALL)
    length = jnp.array(LENGTHS, jnp.int32)
    cache, table = engine.begin(made, 3, SIZE + STEPS, length, STEPS, 5)
    weights = engine.unstacked(params())
    tokens, _ = engine.right_padded(*prompts())
    read = jax.jit(engine.read_prompts, static_argnums=0)
    _, cache = read(made, weights, cache, tokens, length, table)
    for prompt, size in enumerate(LENGTHS):
        rows = np.asarray(cache.table[5 * prompt : 5 * prompt + 5])
        whole, end = size // 4, -(-(size + STEPS) // 4)
        assert (rows[:, :whole] == rows[:1, :whole]).all()
        own = rows[:, whole:end]
        assert len(np.unique(own)) == own.size and (rows[:, end:] > 10**6).all()
        assert (np.asarray(cache.references)[rows[0, :whole]] == 5).all()
    used = int((cache.references > 0).sum())
    alone = sum(5 * -(-(size + STEPS) // 4) for size in LENGTHS)
    assert used == alone - 4 * sum(size // 4 for size in LENGTHS)


def test_bounds_hold_every_key_before_its_bits_are_cut() -> None:
    made = plan(CONFIG, dataclasses.replace(FEW, bits=4))
    length = jnp.array(LENGTHS, jnp.int32)
    exact = plan(CONFIG, ALL)
    weights = engine.unstacked(params())
    tokens, _ = engine.right_padded(*prompts())
    caches = []
    for one in (made, exact):
        cache, table = engine.begin(one, 3, SIZE + STEPS, length, STEPS, 1)
        caches.append(
            engine.read_prompts(one, weights, cache, tokens, length, table)[1]
        )
    first, other = (cache.pages[0] for cache in caches)
    np.testing.assert_allclose(first.least, other.least, rtol=1e-6)
    where, counts = paged_cache.listed(exact, caches[1], other.chosen)
    keys = np.asarray(other.keys)[np.minimum(np.asarray(where)[:, 0], 14), 0]
    for row, size in enumerate(LENGTHS):
        for place in range(size):
            key = keys[row, place // 4, place % 4]
            assert (np.asarray(other.least[row, 0, place // 2]) <= key + 1e-6).all()
            assert (np.asarray(other.greatest[row, 0, place // 2]) >= key - 1e-6).all()
    assert counts.shape == where.shape


def test_settings_that_cannot_be_are_refused_before_anything_is_compiled() -> None:
    for fields, words in (
        ({"budget": 128, "interval": 4}, "always read: give at least 192"),
        ({"logical_size": 7}, "does not divide"),
        ({"budget": 100}, "no multiple"),
        ({"bits": 3}, "bits must be"),
        ({"backend": "cuda"}, "backend must be"),
        ({"interval": 0}, "must be positive"),
        ({"prefill_window": 0}, "prefill_window"),
    ):
        with pytest.raises(ValueError, match=words):
            Sparse(**fields)
    other = dataclasses.replace(CONFIG, width=32)
    with pytest.raises(ValueError, match="another model"):
        engine.speaker(other, dataclasses.replace(ALL, heads=MIXED))
    with pytest.raises(ValueError, match="positions"):
        said(ALL, max_tokens=60)
    with pytest.raises(ValueError, match="more pages"):
        paged_cache.init(plan(CONFIG, ALL), 1, 64, 3)


def test_a_language_model_speaks_by_it_with_one_argument() -> None:
    model = language_model.decoder(
        CONFIG, Sampling(max_tokens=STEPS, stop_tokens=(10,)), sparse=ALL
    )
    key = jax.random.key(2)
    same(model.sampler(params(), *prompts(), key), said(None, key))
