"""Whole episodes: every batch begins one in every column."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import probe
from rlx.data.episodes import episodes
from rlx.types import Policy

POLICY = Policy(lambda o, c, key: (jnp.zeros(o.shape[:-1], int), c, {}), lambda: ())


def test_every_batch_begins_episodes_and_holds_them_whole(key: jax.Array):
    source = episodes(probe.make("cartpole", time_limit=30), num_envs=3)
    assert (source.steps_per_batch, source.num_envs) == (90, 3)
    state = source.init(key, POLICY)
    following = jax.jit(lambda key: source.next(state, POLICY, key)[1:])
    starts = []
    for part in jax.random.split(key, 3):
        batch, metrics = following(part)
        assert batch.reward.shape == (30, 3)
        # Cart-poles start within 0.05 of upright; pushed one way, none stays there.
        assert np.all(np.abs(batch.observation[0]) <= 0.05)
        ends = np.argmax(np.asarray(batch.discount) == 0, axis=0)
        assert np.all((ends > 5) & (ends < 29))
        after = [batch.observation[end + 1, i] for i, end in enumerate(ends)]
        assert np.all(np.abs(after) <= 0.05)
        assert metrics["episodes"] >= 3
        starts.append(np.asarray(batch.observation[0]))
    assert len(np.unique(starts, axis=0)) == 3 and len(np.unique(starts)) == 36


def test_what_ends_with_the_batch_is_cut_by_the_limit(key: jax.Array):
    source = episodes(probe.make("pendulum", time_limit=4), num_envs=2)
    act = POLICY._replace(act=lambda o, c, key: (jnp.zeros((2, 1)), c, {}))
    _, batch, metrics = source.next((), act, key)
    np.testing.assert_array_equal(batch.truncated[:, 0], [False] * 3 + [True])
    assert metrics["episode_length"] == 4
    shorter = episodes(probe.make("pendulum"), num_envs=2, length=3)
    assert shorter.next((), act, key)[1].reward.shape == (3, 2)


def test_an_endless_environment_needs_a_length():
    with pytest.raises(ValueError, match="no time limit: say with length"):
        episodes(probe.make("pendulum", time_limit=None))
