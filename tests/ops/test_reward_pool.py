"""The pool against lists, row by row."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import reward_pool
from rlx.ops.control_tokens import Controls, Rated
from rlx.ops.sequences import Sequences

CONTROLS = Controls(num_words=10, num_metrics=2, num_styles=3, num_bins=4)
WIDTH = 4


def rated(seed: int, rows: int) -> Rated:
    """Rows whose first token says which they are."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 10, (rows, WIDTH)).astype(np.int32)
    tokens[:, 0] = 1000 * seed + np.arange(rows)
    there = np.ones((rows, WIDTH), bool)
    return Rated(
        Sequences(*map(jnp.asarray, (tokens, there, there))),
        jnp.asarray(generator.integers(0, 3, rows)),
        jnp.asarray(generator.normal(size=(rows, 2)).astype(np.float32)),
    )


insert = jax.jit(reward_pool.insert, static_argnames="keep")
binned = jax.jit(reward_pool.binned, static_argnames=("controls", "ties"))


def filled(parts: list[Rated], capacity: int, keep: str) -> reward_pool.Pool:
    pool = reward_pool.empty(parts[0], CONTROLS, capacity)
    for i, part in enumerate(parts):
        everything = jnp.ones(len(part.style), bool)
        pool = insert(pool, part, everything, jax.random.key(i), keep=keep)
    return binned(pool, CONTROLS)


def names(pool: reward_pool.Pool) -> list[list[int]]:
    """The first tokens of each style's rows."""
    first = np.asarray(pool.rows.sequences.tokens[:, 0]).reshape(3, -1)
    return [x[:n].tolist() for x, n in zip(first, np.asarray(pool.counts), strict=True)]


@pytest.mark.parametrize("keep", reward_pool.KEEPS)
def test_with_room_for_all_rows_lie_in_order(keep: str) -> None:
    parts = [rated(1, 20), rated(2, 9)]
    pool = filled(parts, 3 * 29, keep)
    style = np.concatenate([part.style for part in parts])
    first = np.concatenate([part.sequences.tokens[:, 0] for part in parts])
    assert names(pool) == [first[style == s].tolist() for s in range(3)]
    np.testing.assert_array_equal(pool.rows.style[pool.there], np.sort(style))


def test_inserting_bit_by_bit_bins_as_at_once() -> None:
    first, second = rated(1, 20), rated(2, 9)
    together = jax.tree.map(lambda *x: jnp.concatenate(x), first, second)
    apart = filled([first, second], 90, "ring")
    at_once = filled([together], 90, "ring")
    for a, b in zip(*map(jax.tree.leaves, (apart, at_once)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.asarray(apart.bins)[np.asarray(apart.there)].max() == 3


def test_a_ring_keeps_the_newest() -> None:
    parts = [rated(1, 20), rated(2, 17)]
    pool = filled(parts, 3 * 4, "ring")
    style = np.concatenate([part.style for part in parts])
    first = np.concatenate([part.sequences.tokens[:, 0] for part in parts])
    for s, found in enumerate(names(pool)):
        assert sorted(found) == sorted(first[style == s][-4:].tolist())


def test_a_reservoir_is_a_loop_of_algorithm_r() -> None:
    """The same draws, one row at a time."""
    part, room = rated(1, 40), 4
    pool = filled([part], 3 * room, "reservoir")
    style = np.asarray(part.style)
    rank = np.array([np.sum(style[:i] == s) for i, s in enumerate(style)])
    drawn = jax.random.randint(jax.random.key(0), (40,), 0, jnp.asarray(rank + 1))
    expected: list[list[int]] = [[], [], []]
    for i, s in enumerate(style):
        if rank[i] < room:
            expected[s].append(1000 + i)
        elif drawn[i] < room:
            expected[s][int(drawn[i])] = 1000 + i
    assert names(pool) == expected


def test_a_reservoir_is_a_uniform_sample() -> None:
    """Each of 12 rows stays with chance 4/12, over 3000 keys."""
    part = rated(1, 12).replace(style=jnp.zeros(12, int))
    empty = reward_pool.empty(part, CONTROLS, 12)
    everything = jnp.ones(12, bool)

    @jax.jit
    @jax.vmap
    def kept(key: jax.Array) -> jax.Array:
        pool = reward_pool.insert(empty, part, everything, key, "reservoir")
        return pool.rows.sequences.tokens[:4, 0] - 1000

    found = np.asarray(kept(jax.random.split(jax.random.key(0), 3000)))
    share = np.bincount(found.ravel(), minlength=12) / 3000
    np.testing.assert_allclose(share, 1 / 3, atol=0.04)


def test_rows_that_are_not_there_are_not_offered() -> None:
    part = rated(1, 10)
    there = jnp.arange(10) % 2 == 0
    empty = reward_pool.empty(part, CONTROLS, 30)
    pool = insert(empty, part, there, jax.random.key(0), keep="ring")
    found = sorted(sum(names(pool), []))
    assert found == [1000, 1002, 1004, 1006, 1008]
    assert int(jnp.sum(pool.offered)) == 5


@pytest.mark.parametrize("balanced", [False, True])
def test_rows_are_drawn_uniformly(balanced: bool) -> None:
    part = rated(1, 12).replace(style=jnp.array([0] * 8 + [2] * 4))
    pool = filled([part], 30, "ring")
    draw = jax.jit(functools.partial(reward_pool.draw, count=20_000, balanced=balanced))
    drawn = draw(pool, jax.random.key(0))
    share = np.bincount(drawn, minlength=30) / 20_000
    first, last = (1 / 16, 1 / 8) if balanced else (1 / 12, 1 / 12)
    np.testing.assert_allclose(share[:8], first, atol=0.01)
    np.testing.assert_allclose(share[20:24], last, atol=0.01)
    assert share[8:20].sum() == share[24:].sum() == 0


def test_a_capacity_that_styles_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the 3 styles"):
        reward_pool.empty(rated(1, 3), CONTROLS, 10)
