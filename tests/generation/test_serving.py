"""Continuous batching: the same answers, in any number of slots."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.generation import engine, heads, serving
from rlx.generation.sampling import Sampling
from rlx.generation.sparse import Sparse
from rlx.generation.speakers import sampler
from rlx.networks import transformer

CONFIG = transformer.Config(
    vocabulary_size=6, width=16, num_layers=1, num_heads=2, max_length=32
)
MAP = heads.HeadMap(((True, False),), 2, 4, heads.fingerprint(CONFIG))
SPARSE = Sparse(heads=MAP, page_size=4, logical_size=2, budget=12, interval=2, bits=8)
OPTIONS = Sampling(max_tokens=9, stop_tokens=(2,), pad_token=5)
LENGTHS = (8, 3, 1, 7, 4, 8, 2)


@functools.cache
def asked() -> tuple:
    params = jax.tree.map(lambda x: 5 * x, transformer.init(CONFIG, jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (len(LENGTHS), 8), 0, 6)
    return params, tokens, jnp.arange(8)[None] >= 8 - jnp.array(LENGTHS)[:, None]


@functools.cache
def served(slots: int, pool: int | None, samples: int, seed: int | None):
    run = serving.server(CONFIG, OPTIONS, SPARSE, slots=slots, pool=pool)
    key = None if seed is None else jax.random.key(seed)
    inputs = asked()
    return jax.jit(lambda: run(*inputs, key, samples))()


def test_greedy_answers_are_those_of_the_engine_in_lockstep() -> None:
    made, inputs = sampler(engine.speaker(CONFIG, SPARSE), OPTIONS), asked()
    expected = jax.jit(lambda: made(*inputs, None))()
    found = served(3, None, 1, None).found
    np.testing.assert_array_equal(found.tokens[:, 0], expected.tokens)
    np.testing.assert_array_equal(found.mask[:, 0], expected.mask)
    np.testing.assert_allclose(
        found.log_prob[:, 0], expected.log_prob, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("slots", "pool"), [(1, None), (3, 16), (7, None)])
def test_what_is_said_depends_on_nobody_else(slots: int, pool: int | None) -> None:
    expected, found = served(2, None, 3, 0), served(slots, pool, 3, 0)
    np.testing.assert_array_equal(found.found.tokens, expected.found.tokens)
    np.testing.assert_array_equal(found.found.mask, expected.found.mask)
    np.testing.assert_allclose(
        found.found.log_prob, expected.found.log_prob, rtol=1e-4, atol=1e-5
    )
    lengths = found.found.mask.sum(axis=-1)
    assert 1 <= int(lengths.min()) < int(lengths.max()) <= 9
    assert (found.found.tokens[:, 0] != found.found.tokens[:, 1]).any(axis=-1).all()


def test_everything_is_given_back_and_slots_do_not_wait() -> None:
    for slots, pool in ((1, None), (3, 16)):
        state = served(slots, pool, 3, 0)
        assert (state.cache.references == 0).all() and not state.alive.any()
        assert int(state.following) == len(LENGTHS)
    one, three = (int(served(n, None, 1, None).steps) for n in (1, 3))
    lengths = served(1, None, 1, None).found.mask.sum(axis=-1)
    assert one == int(lengths.sum()) - len(LENGTHS)  # the first comes with the prompt
    assert three < one


def test_a_sampler_serves_with_the_same_signature() -> None:
    made = serving.sampler(CONFIG, OPTIONS, SPARSE, slots=2)
    inputs = asked()
    found = jax.jit(lambda: made(*inputs, jax.random.key(0), 3))()
    expected = served(2, None, 3, 0).found
    assert found.tokens.shape == (3 * len(LENGTHS), 9)
    np.testing.assert_array_equal(found.tokens[4], expected.tokens[1, 1])


def test_what_can_never_be_served_is_refused() -> None:
    with pytest.raises(ValueError, match="slots must be positive"):
        serving.server(CONFIG, OPTIONS, SPARSE, slots=0)
    run = serving.server(CONFIG, OPTIONS, SPARSE, slots=1, pool=5)
    with pytest.raises(ValueError, match="may need 11 pages"):
        run(*asked(), None, 3)
    long = dataclasses.replace(OPTIONS, max_tokens=30)
    with pytest.raises(ValueError, match="positions"):
        serving.server(CONFIG, long, SPARSE, slots=1)(*asked(), None)
