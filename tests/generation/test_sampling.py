"""Sampling: the cache, the distribution, the ends of responses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rlx.generation.sampling import Sampling
from rlx.generation.speakers import of_decoder, sampler
from rlx.networks import transformer
from rlx.ops import language

CONFIG = transformer.Config(vocabulary_size=5, width=16, num_heads=2, max_length=16)
NETWORK = transformer.decoder(CONFIG)
PROMPT = jnp.array([[0, 0, 3], [1, 2, 4]], jnp.int32)
MASK = jnp.array([[False, False, True], [True, True, True]])


@functools.cache
def params() -> dict:
    made = transformer.init(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda x: 8 * x, made)


@functools.cache
def generate(**options: object):
    weights, made = params(), sampler(of_decoder(CONFIG), Sampling(**options))
    return jax.jit(lambda key: made(weights, PROMPT, MASK, key))


def rows(found: object) -> tuple:
    tokens = jnp.concatenate([PROMPT, found.tokens], axis=1)
    mask = jnp.concatenate([MASK, found.mask], axis=1)
    response = jnp.concatenate([jnp.zeros_like(MASK), found.mask], axis=1)
    return tokens, mask, response


def test_log_probs_are_those_of_one_pass_without_a_cache() -> None:
    found = generate(max_tokens=6, stop_tokens=(3,))(jax.random.key(1))
    tokens, mask, response = rows(found)
    logits = NETWORK.apply(params(), tokens, mask)
    expected = language.response_log_prob(logits, tokens, response)[:, 3:]
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-4, atol=1e-5)


def test_greedy_takes_the_most_probable_at_every_step() -> None:
    found = generate(max_tokens=4)(None)
    tokens, mask, _ = rows(found)
    logits = NETWORK.apply(params(), tokens, mask)
    np.testing.assert_array_equal(found.tokens, jnp.argmax(logits[:, 2:-1], axis=-1))
    assert found.mask.all()


def test_a_stop_token_ends_its_row_and_belongs_to_it() -> None:
    draw = generate(max_tokens=6, stop_tokens=(3,), pad_token=4)
    ended = 0
    for seed in range(20):
        found = draw(jax.random.key(seed))
        for tokens, mask in zip(
            np.asarray(found.tokens), np.asarray(found.mask), strict=True
        ):
            length = mask.sum()
            assert mask[:length].all() and (tokens[~mask] == 4).all()
            assert 3 not in tokens[: length - 1]
            assert length == 6 or tokens[length - 1] == 3
            ended += length < 6
    assert ended


def test_tokens_come_as_often_as_they_are_probable() -> None:
    made = sampler(of_decoder(CONFIG), Sampling(max_tokens=1, temperature=1.5))
    many = jnp.tile(PROMPT[1:], (4000, 1))
    found = jax.jit(made)(params(), many, jnp.ones(many.shape, bool), jax.random.key(0))
    logits = NETWORK.apply(params(), PROMPT[1:])[0, -1]
    expected = jax.nn.softmax(logits / 1.5)
    counts = np.bincount(np.asarray(found.tokens[:, 0]), minlength=5)
    share = np.asarray(expected, np.float64)
    assert stats.chisquare(counts, 4000 * share / share.sum()).pvalue > 1e-3


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.999}])
def test_the_narrowest_filter_is_greedy(options: dict) -> None:
    narrow = generate(max_tokens=4, **options)(jax.random.key(0))
    np.testing.assert_array_equal(narrow.tokens, generate(max_tokens=4)(None).tokens)
    np.testing.assert_allclose(narrow.log_prob, 0.0, atol=1e-6)


def test_seeds_together_are_seeds_alone() -> None:
    draw = generate(max_tokens=6, stop_tokens=(3,))
    keys = jax.random.split(jax.random.key(3), 3)
    together = jax.vmap(draw)(keys)
    for i, key in enumerate(keys):
        alone = draw(key)
        np.testing.assert_array_equal(together.tokens[i], alone.tokens)
        np.testing.assert_array_equal(together.mask[i], alone.mask)


@pytest.mark.parametrize(
    "change", [{"max_tokens": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"min_p": 1.0}]
)
def test_impossible_options_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Sampling(**{"max_tokens": 4, **change})


def test_what_has_no_positions_is_refused() -> None:
    made = sampler(of_decoder(CONFIG), Sampling(max_tokens=14))
    with pytest.raises(ValueError, match="need 17 positions"):
        made(params(), PROMPT, MASK, None)


def test_no_key_is_used_twice() -> None:
    made = sampler(of_decoder(CONFIG), Sampling(max_tokens=3, stop_tokens=(3,)))
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: made(params(), PROMPT, MASK, key))(jax.random.key(0))


def test_a_prompt_answered_often_is_as_many_prompts() -> None:
    made = sampler(of_decoder(CONFIG), Sampling(max_tokens=4))
    key = jax.random.key(7)
    once = jax.jit(lambda key: made(params(), PROMPT, MASK, key, samples=3))(key)
    prompt, mask = (jnp.repeat(x, 3, axis=0) for x in (PROMPT, MASK))
    each = jax.jit(lambda key: made(params(), prompt, mask, key))(key)
    np.testing.assert_array_equal(once.tokens, each.tokens)
    np.testing.assert_allclose(once.log_prob, each.log_prob, rtol=1e-5)
