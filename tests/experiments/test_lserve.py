"""The texts, the model that retrieves by construction, and how it is asked."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lserve import (
    asking,
    constructed,
    gpu,
    induction,
    roofline,
    selection,
    tasks,
)
from rlx.generation import heads
from rlx.generation.sparse import Sparse, plan
from rlx.networks import transformer

TEXT = tasks.Text(256, keys=6, rate=0.2)


@functools.cache
def told() -> tuple[np.ndarray, np.ndarray]:
    words, known = jax.jit(functools.partial(tasks.text, TEXT))(jax.random.key(0))
    return np.asarray(words), np.asarray(known)


def test_a_value_follows_its_key_and_is_known_from_the_second_time_on() -> None:
    words, known = told()
    said: dict[int, int] = {}
    follows = tasks.successors()
    last = None
    for i in range(1, len(words)):
        before, word = int(words[i - 1]), int(words[i])
        if tasks.KEYS <= before < tasks.VALUES:
            assert word >= tasks.VALUES
            assert known[i] == (before in said)
            assert said.setdefault(before, word) == word
        else:
            assert word < tasks.VALUES and not known[i]
        if word < tasks.KEYS:
            assert last is None or word - tasks.FILLER in follows[last - tasks.FILLER]
            last = word
    assert 2 <= len(said) <= TEXT.keys and known.sum() > 10


def test_needles_stand_where_they_are_put_and_are_said_once() -> None:
    depths = jnp.array([0.0, 0.5, 1.0])
    words, asked, answers = jax.jit(functools.partial(tasks.needles, TEXT))(
        depths, jax.random.key(1)
    )
    place = [0, 127, 254]
    assert words[jnp.array(place)].tolist() == asked.tolist()
    assert words[jnp.array(place) + 1].tolist() == answers.tolist()
    for key in asked.tolist():
        assert (np.asarray(words) == key).sum() == 1
    assert (answers >= tasks.VALUES).all() and len(set(asked.tolist())) == 3


def test_the_constructed_model_knows_all_that_was_said_before() -> None:
    words, known = told()
    found = np.asarray(jax.jit(induction.predict)(words[None]))[0]
    assert (found[:-1] == words[1:])[known[1:]].all()


def test_codes_are_told_apart() -> None:
    codes = induction.codes()
    agree = codes @ codes.T
    np.testing.assert_allclose(np.diag(agree), 1)
    assert (agree - np.eye(len(codes))).max() < 0.51


def test_the_word_before_is_the_only_one_at_any_distance() -> None:
    """The scores of the first head, from the rotary rule: what leaks from elsewhere."""
    weight = np.arange(induction.FAST, 0, -1.0)
    angles = induction.BASE ** (-np.arange(induction.FAST) / induction.PAIRS)
    apart = np.concatenate([[-1], np.arange(1, induction.CONFIG.max_length)])
    score = np.cos(apart[:, None] * angles) @ (weight / weight.sum())
    sharp = induction.SHARP[0] / np.sqrt(induction.WIDTH)
    assert np.exp(sharp * (score - 1)).sum() < 1e-6


def test_the_second_layer_reads_each_word_beside_the_one_before_it() -> None:
    """What `constructed` takes for granted, from the first layer's parameters."""
    config, params = induction.CONFIG, induction.params()
    words = told()[0][None]
    place = jnp.arange(words.shape[1])[None]
    layer = jax.tree.map(lambda x: x[0], params["layers"])
    x = transformer.embed(config, params, words, place)
    read = transformer.queries_keys_values(config, layer, x, place)
    seen = jnp.tri(words.shape[1], dtype=bool)[None]
    mixed = transformer.attention(*read, seen)
    x = transformer.after_attention(config, layer, x, mixed)
    np.testing.assert_allclose(constructed.stream(words[0]), x[0], atol=1e-3)


@functools.cache
def question() -> tuple:
    words, asked, answers = jax.jit(functools.partial(tasks.needles, TEXT))(
        jnp.array([0.1, 0.4, 0.7]), jax.random.key(2)
    )
    return words, asked[:, None], answers[:, None]


def asked(sparse: Sparse) -> tuple:
    made = plan(induction.CONFIG, sparse)
    return asking.ask(made, induction.params(), *question())


def test_asked_through_the_engine_it_says_what_the_network_says() -> None:
    right, surprise = asked(asking.everything(256 + 2))
    assert right.all()
    words, keys, answers = question()
    texts = jnp.concatenate([jnp.tile(words[None], (3, 1)), keys], axis=1)
    logits = transformer.decoder(induction.CONFIG).apply(induction.params(), texts)
    chances = jax.nn.log_softmax(logits[:, -1])
    wanted = -jnp.take_along_axis(chances, answers, axis=1)
    np.testing.assert_allclose(surprise, wanted, rtol=1e-3, atol=1e-4)


def test_streaming_heads_forget_and_pages_do_not() -> None:
    config = induction.CONFIG
    found = heads.HeadMap(induction.RETRIEVAL, 16, 16, heads.fingerprint(config))
    options = {"page_size": 16, "logical_size": 4, "interval": 1}
    few = Sparse(heads=found, budget=64, **options)
    narrow = dataclasses.replace(few, heads=heads.all_streaming(config, 16, 16))
    assert asked(few)[0].all() and not asked(narrow)[0].any()


def test_shares_have_wilsons_interval() -> None:
    found = selection.share(9, 10)
    assert found == {"share": 0.9, "low": 0.5958, "high": 0.9821}
    assert selection.share(0, 10)["low"] == 0


def test_single_keys_are_scored_exactly_and_large_pages_hide_isotropic_ones() -> None:
    hay = selection.unit(jax.random.normal(jax.random.key(0), (8192, selection.WIDTH)))
    query = selection.unit(jax.random.normal(jax.random.key(1), (selection.WIDTH,)))
    hay = jnp.concatenate([hay, selection.COSINE * query[None], hay[:63]])
    found = [bool(selection.hit(hay, query, 128, size)) for size in (1, 64)]
    assert found == [True, False]
    few = selection.unit(jnp.where(jnp.arange(selection.WIDTH) < 4, query, 0))
    sparse = hay.at[8192].set(selection.COSINE * few)
    assert selection.hit(sparse, few, 128, 64)


def test_the_counts_are_those_of_the_formula() -> None:
    """Of all bytes, (1 - ρ) (B / S + 1 / (N C)) + ρ (s + w) / S, all of 2 bytes."""
    layer, length = roofline.Attention(), 262144
    moved = roofline.decode_bytes(layer, length)
    share = 0.5 * (4096 / length + 1 / (16 * 4)) + 0.5 * 384 / length
    assert moved["sparse"] / moved["dense"] == pytest.approx(share)
    assert moved["dense"] == 8 * 4 * 128 * length
    short = roofline.decode_bytes(layer, 1024)
    assert short["bounds"] == 0 and short["pages"] == 4 * 512 * 1024
    assert roofline.prefill_pairs(layer, 1024) == (36, 26)
    flops = roofline.prefill_flops(layer, 1024)
    assert flops["sparse"] / flops["dense"] == pytest.approx((36 + 26) / 72)


@pytest.mark.slow
def test_the_gpu_command_runs_interpreted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--tiny", "--repeats", "1"])
    gpu.main()
    printed = capsys.readouterr().out
    assert "256 decode" in printed and "kernel, some streaming" in printed
