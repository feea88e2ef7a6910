"""Mixed sources: the share of the dataset, determinism, warm starts, bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import train
from rlx.data import dataset
from rlx.data.dataset import DatasetError, Metadata
from rlx.data.dataset_record import from_arrays
from rlx.data.mixed import mixed
from rlx.data.replay import ReplayState
from rlx.methods import iql
from tests import fitting
from tests.data.test_rollout import counter, policy
from tests.fit_process import settings

RECORDED = -1000.0
"""Reward of every recorded step; the environment's are never negative."""


def recorded(number: int = 30, width: int = 2) -> dataset.Dataset:
    """Steps that no run could have met."""
    seen = np.arange(100.0, 100.0 + number)[:, None] + np.zeros(width)
    arrays = {
        "observations": seen,
        "actions": np.linspace(-0.9, 0.4, number)[:, None],
        "rewards": np.full(number, RECORDED),
        "terminals": np.zeros(number),
        "timeouts": (np.arange(number) + 1) % 3 == 0,
        "next_observations": seen + 1.0,
    }
    return from_arrays(arrays, Metadata(env="counter"))


def batches(source, count: int = 3, seed: int = 0):
    """The batches of a run, one after another, stacked."""
    chosen = policy(0.0)
    init_key, key = jax.random.split(jax.random.key(seed))

    def one(state: ReplayState, key):
        state, batch, _ = source.next(state, chosen, key)
        return state, batch

    @jax.jit
    def run(init_key, key):
        state = source.init(init_key, chosen)
        return jax.lax.scan(one, state, jax.random.split(key, count))[1]

    return run(init_key, key)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_each_minibatch_holds_its_share_of_the_dataset(share):
    source = mixed(
        counter(), recorded(), share=share, num_envs=2, batch_size=10, num_minibatches=4
    )
    found = batches(source)
    old = np.asarray(found.reward) == RECORDED
    assert found.reward.shape == (3, 4, 10)
    np.testing.assert_array_equal(old.sum(-1), round(share * 10))
    np.testing.assert_array_equal(old[..., : round(share * 10)], True)
    # Whole rows belong together: a recorded successor is one further.
    change = np.asarray(found.next_observation - found.observation)
    np.testing.assert_allclose(change[old], 1.0, atol=1e-6)


def test_both_halves_reach_everything_there_is():
    data = recorded()
    source = mixed(counter(), data, num_envs=2, batch_size=64, num_minibatches=8)
    found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), batches(source))
    old = np.asarray(found.reward) == RECORDED
    assert len(np.unique(np.asarray(found.action)[old])) == data.num_steps
    # Three steps of two environments from distinct starts: six distinct transitions.
    assert len(np.unique(np.asarray(found.observation)[~old], axis=0)) == 6


def test_a_vmapped_seed_draws_what_it_draws_alone():
    source = mixed(counter(), recorded(), num_envs=2, batch_size=6)
    chosen = policy(0.0)

    def run(key):
        init_key, key = jax.random.split(key)
        state = source.init(init_key, chosen)
        return source.next(state, chosen, key)[1]

    keys = jax.random.split(jax.random.key(4), 3)
    many = jax.jit(jax.vmap(run))(keys)
    one = jax.jit(run)(keys[1])
    fitting.assert_same(jax.tree.map(lambda x: x[1], many), one)


def test_iql_goes_on_online_from_what_it_learned_offline():
    env, data = counter(), recorded()
    method = iql.make(env.spec, iql.Config(hidden_sizes=(8,)))
    options = {"seeds": 2, "settings": settings()}
    offline = train.fit(method, dataset.sample(data, env=env), num_steps=16, **options)
    source = mixed(env, data, num_envs=2, batch_size=8, capacity=64)
    online = train.fit(
        method,
        source,
        num_steps=32,
        start={"params": offline.state.learner.params},
        **options,
    )
    np.testing.assert_array_equal(online.returns[0].shape, (2,))
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)),
        online.state.learner.params,
        offline.state.learner.params,
    )
    assert all(jax.tree.leaves(moved["actor"]))
    # The dataset is no part of what a checkpoint holds.
    rings = online.state.source.ring.rows.reward
    assert not np.any(np.asarray(rings) == RECORDED)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]"):
        mixed(counter(), recorded(), share=share)


def test_data_of_another_shape_are_refused():
    with pytest.raises(DatasetError, match="observations"):
        mixed(counter(), recorded(width=3))


def test_the_dataset_may_be_a_file(tmp_path):
    path = dataset.save(recorded(), tmp_path / "counter.h5")
    options = {"num_envs": 2, "batch_size": 6}
    fitting.assert_same(
        batches(mixed(counter(), path=str(path), **options)),
        batches(mixed(counter(), recorded(), **options)),
    )
    with pytest.raises(DatasetError, match="which dataset"):
        mixed(counter())
