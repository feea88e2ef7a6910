"""Speakers and their products: caches against none, samples against probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.generation import sampling, speakers
from rlx.generation.experts import Parts, product
from rlx.generation.sampling import Sampling
from rlx.networks import transformer
from rlx.ops import experts

WORDS, BEGIN, STOP, PROMPT, STEPS = 8, 0, 1, 3, 4
CONFIG = transformer.Config(
    vocabulary_size=WORDS, width=8, num_layers=2, num_heads=2, max_length=8
)
BASE, EXPERT = (transformer.init(CONFIG, jax.random.key(i)) for i in range(2))
TABLES = jax.random.normal(jax.random.key(2), (2, WORDS, WORDS))
PROMPTS = jnp.array([[0, 4, 5], [3, 6, 7], [0, 0, 2]])
MASK = jnp.array([[False, True, True], [True] * 3, [False, False, True]])
WHICH = jnp.array([0, 1, 1])


def big(params: dict) -> dict:
    """Far from uniform: embeddings of deviation 1."""
    return {**params, "embedding": 50.0 * params["embedding"]}


def without_cache(params: Parts, said: jax.Array, strength: float, nucleus: float):
    """Logits of every token of `said [B, T]`, all from whole rows."""
    apply = transformer.decoder(CONFIG).apply
    rows = jnp.concatenate([PROMPTS, said], axis=1)
    there = jnp.concatenate([MASK, jnp.ones(said.shape, bool)], axis=1)
    base = apply(params.base, rows, mask=there)[:, PROMPT - 1 : -1]
    begin = jnp.full((len(said), 1), BEGIN)
    expert = apply(params.expert, jnp.concatenate([begin, said], axis=1))[:, :-1]
    tables, which = params.anti_expert
    last = jnp.concatenate([begin, said[:, :-1]], axis=1)
    anti = tables[which[:, None], last]
    return experts.product(base, expert, anti, strength=strength, nucleus=nucleus)


def test_a_product_with_caches_is_one_without() -> None:
    """Its log-probabilities are those of whole rows, and it says only what they may."""
    speaker = product(
        speakers.of_decoder(CONFIG),
        speakers.unprompted(speakers.of_decoder(CONFIG), BEGIN),
        speakers.unprompted(speakers.of_table, BEGIN),
        strength=0.7,
        nucleus=0.8,
    )
    options = Sampling(max_tokens=STEPS, temperature=0.9, top_p=0.9)
    params = Parts(big(BASE), big(EXPERT), (TABLES, WHICH))
    speaks = jax.jit(speakers.sampler(speaker, options))
    found = speaks(params, PROMPTS, MASK, jax.random.key(4))
    logits = without_cache(params, found.tokens, 0.7, 0.8)
    logits = sampling.filtered(logits, options)
    each = jnp.take_along_axis(
        jax.nn.log_softmax(logits), found.tokens[..., None], axis=-1
    )[..., 0]
    np.testing.assert_allclose(found.log_prob, each, rtol=1e-4, atol=1e-5)
    again = speaks(params, PROMPTS, MASK, jax.random.key(4))
    np.testing.assert_array_equal(found.tokens, again.tokens)
    greedy = speaks(params, PROMPTS, MASK, None)
    logits = without_cache(params, greedy.tokens, 0.7, 0.8)
    np.testing.assert_array_equal(greedy.tokens, jnp.argmax(logits, axis=-1))


def test_samples_have_the_probabilities_of_the_product() -> None:
    """Pairs of tokens in a world of three words, 20,000 times."""
    tables = jax.random.normal(jax.random.key(5), (3, 3, 3))
    rows = 20_000
    base, expert, anti = ((tables, jnp.full(rows, i)) for i in range(3))
    speaker = product(*[speakers.of_table] * 3, strength=0.5, nucleus=1.0)
    speaks = jax.jit(speakers.sampler(speaker, Sampling(max_tokens=2)))
    prompt = jnp.zeros((rows, 1), jnp.int32)
    found = speaks(
        Parts(base, expert, anti), prompt, jnp.ones((rows, 1), bool), jax.random.key(6)
    )
    p, e, a = (np.exp(np.asarray(x, np.float64)) for x in tables)
    p, e, a = (x / x.sum(-1, keepdims=True) for x in (p, e, a))
    step = p * np.sqrt(e / a)
    step /= step.sum(-1, keepdims=True)
    expected = step[0][:, None] * step
    counts = np.zeros((3, 3))
    np.add.at(counts, tuple(np.asarray(found.tokens).T), 1)
    np.testing.assert_allclose(counts / rows, expected, atol=0.012)


def test_a_restricted_speaker_says_few_words() -> None:
    speaker = speakers.restricted(speakers.of_decoder(CONFIG), 3)
    speaks = jax.jit(speakers.sampler(speaker, Sampling(max_tokens=STEPS)))
    prompt, mask = jnp.tile(PROMPTS, (50, 1)), jnp.tile(MASK, (50, 1))
    found = speaks(big(BASE), prompt, mask, jax.random.key(7))
    assert set(np.unique(found.tokens)) == {0, 1, 2}


def test_too_long_texts_are_refused() -> None:
    speaks = speakers.sampler(speakers.of_decoder(CONFIG), Sampling(max_tokens=6))
    with pytest.raises(ValueError, match="need 9 positions"):
        speaks(BASE, PROMPTS, MASK, None)


def test_other_vocabularies_are_refused() -> None:
    speaker = product(speakers.of_decoder(CONFIG), speakers.of_table)
    speaks = speakers.sampler(speaker, Sampling(max_tokens=2))
    with pytest.raises(AssertionError):
        speaks(Parts(BASE, (TABLES[:, 1:, 1:], WHICH)), PROMPTS, MASK, None)
