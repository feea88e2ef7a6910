"""Prioritised replay: frequencies, weights, ages in the ring, feedback, α = 0."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from envs import probe
from rlx import learner, program, train
from rlx.data import prioritised as lib
from rlx.data import ring
from rlx.data.prioritised import prioritised
from rlx.data.replay import memory_bytes
from rlx.types import FEEDBACK, Method
from tests.data.test_replay import filled
from tests.data.test_rollout import counter, policy

draw = jax.jit(lib.draw, static_argnums=2)


@pytest.mark.parametrize("size", [7, 50])
def test_frequencies_are_those_of_the_priorities(size):
    mass = np.random.default_rng(size).uniform(0.01, 2, size)
    mass[[0, 3, size - 1]] = 0.0
    drawn = np.asarray(draw(jnp.float32(mass), jax.random.key(size), (2, 30_000)))
    counts = np.bincount(drawn.ravel(), minlength=size)
    there = mass > 0
    assert counts[~there].sum() == 0
    expected = counts.sum() * mass[there] / mass.sum()
    assert scipy.stats.chisquare(counts[there], expected).pvalue > 1e-3


def test_equal_priorities_draw_uniformly():
    number = 60_000
    drawn = np.asarray(draw(jnp.ones((6, 2)), jax.random.key(1), (number,)))
    assert scipy.stats.chisquare(np.bincount(drawn, minlength=12)).pvalue > 1e-3
    weights = lib.importance(jnp.ones((6, 2)), drawn, 0.7)
    np.testing.assert_array_equal(weights, 1.0)


def test_small_masses_among_a_million_large_ones_keep_their_share():
    # In one running sum in float32 the second half of them would round away.
    size, number = 1_000_000, 20_000
    mass = jnp.full((size,), 1e4).at[size // 2 :].set(400.0)
    drawn = np.asarray(draw(mass, jax.random.key(2), (number,)))
    late = np.sum(drawn >= size // 2)
    share = 0.04 / 1.04
    spread = np.sqrt(number * share * (1 - share))
    assert abs(late - number * share) < 4 * spread
    # Nor do they bunch: quarters of the late half get equal parts.
    quarters = np.bincount((drawn[drawn >= size // 2] - size // 2) // (size // 8))
    assert scipy.stats.chisquare(quarters).pvalue > 1e-3


def test_with_beta_1_the_weighted_mean_is_the_uniform_one():
    generator = np.random.default_rng(0)
    mass = jnp.float32(generator.uniform(0.1, 2, 40))
    value = generator.normal(size=40)
    drawn = np.asarray(draw(mass, jax.random.key(3), (200_000,)))
    weights = np.asarray(lib.importance(mass, drawn, 1.0), np.float64)
    # Undo the normalisation by the largest weight: w = 1 / (N P).
    exact = weights * float(jnp.mean(mass)) / float(jnp.min(mass))
    estimates = exact * value[drawn]
    error = np.std(estimates) / np.sqrt(drawn.size)
    assert abs(np.mean(estimates) - value.mean()) < 4 * error
    assert weights.max() <= 1.0


@pytest.mark.parametrize("writes", [1, 2, 3, 5])
def test_places_in_memory_are_the_transitions_there(writes):
    buffer = filled(num_rows=6, length=2, writes=writes)
    places = jnp.arange(min(2 * writes, 6) * 2)
    found = ring.read(buffer, lib._ages(buffer, places))
    np.testing.assert_array_equal(found.reward, buffer.rows.reward.ravel()[places])


def test_the_largest_counts_where_one_place_was_drawn_twice():
    mass = lib.put(jnp.ones((2, 2)), jnp.array([3, 1, 3]), jnp.array([0.2, 5.0, 0.7]))
    np.testing.assert_allclose(mass, [[1.0, 5.0], [1.0, 0.7]])


def test_new_experience_has_the_largest_priority_and_feedback_sets_it():
    source = prioritised(
        counter(limit=3),
        num_envs=2,
        length=2,
        batch_size=4,
        capacity=12,
        warmup=4,
        alpha=0.5,
        smallest=0.0625,
        beta=0.5,
        beta_steps=2,
    )
    still = policy(0.0)

    @jax.jit
    def go(key):
        first_key, second_key, third_key = jax.random.split(key, 3)
        warm = source.init(first_key, still)
        first, batch, _ = source.next(warm, still, second_key)
        told = source.feedback(first, jnp.full((1, 4), 8.9375))
        second, later, _ = source.next(told, still, third_key)
        return warm, first, batch, told, second, later

    warm, first, batch, told, second, later = go(jax.random.key(0))
    np.testing.assert_array_equal(warm.mass, [[1, 1]] * 2 + [[0, 0]] * 4)
    np.testing.assert_array_equal(first.mass, [[1, 1]] * 4 + [[0, 0]] * 2)
    np.testing.assert_array_equal(batch.extras["importance"], np.ones((1, 4)))
    expected = np.where(np.isin(np.arange(12), first.drawn), 3.0, first.mass.ravel())
    np.testing.assert_allclose(told.mass.ravel(), expected)  # (8.9375 + .0625)^½
    np.testing.assert_allclose(second.mass[4:], 3.0)
    mass = np.asarray(second.mass).ravel()[np.asarray(second.drawn)]
    beta = 0.5 + 0.5 / 2
    np.testing.assert_allclose(
        later.extras["importance"], (1 / mass) ** beta, rtol=1e-6
    )
    places = np.asarray(second.drawn)
    rows = np.asarray(second.replay.ring.rows.observation).reshape(12, -1)
    np.testing.assert_array_equal(later.observation, rows[places])


def reporter(num_minibatches: int, num_epochs: int = 1) -> Method:
    """Reports as error the number of steps that the observation says."""

    def loss(params, target_params, stats, batch, key):
        del target_params, stats, key
        error = batch.observation[..., 0] + 1
        return jnp.mean(params * error), {FEEDBACK: error}

    return Method(
        init=lambda key: jnp.zeros(()),
        act=lambda params, stats, o, carry, key: (
            jnp.zeros((*o.shape[:-1], 1)),
            carry,
            {},
        ),
        loss_fn=loss,
        optimizer=optax.sgd(0.1),
        num_minibatches=num_minibatches,
        num_epochs=num_epochs,
    )


@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 1), (3, 2), (1, 2)])
def test_errors_reach_the_transitions_they_are_of(minibatches, epochs):
    source = prioritised(
        counter(limit=5),
        num_envs=2,
        batch_size=8,
        num_minibatches=minibatches,
        capacity=40,
        warmup=40,
        alpha=1.0,
    )
    method = reporter(minibatches, epochs)

    @jax.jit
    def go(key):
        return train.step(method, source, train.init(method, source, key))

    state, metrics = go(jax.random.key(0))
    assert FEEDBACK not in metrics
    drawn = np.asarray(state.source.drawn).ravel()
    observed = np.asarray(state.source.replay.ring.rows.observation)
    observed = observed.reshape(40, -1)[:, 0]
    mass = np.asarray(state.source.mass).ravel()
    np.testing.assert_allclose(mass[drawn], observed[drawn] + 1.01, rtol=1e-6)
    others = np.setdiff1d(np.arange(40), drawn)
    np.testing.assert_array_equal(mass[others], 1.0)


def test_vmapped_seeds_draw_what_they_draw_alone():
    source = prioritised(counter(limit=5), batch_size=8, capacity=40, warmup=20)
    method = reporter(1)

    def go(key):
        state, _ = train.run(method, source, train.init(method, source, key), 3)
        return state.source.drawn, state.source.mass

    keys = jax.random.split(jax.random.key(4), 2)
    together = jax.jit(jax.vmap(go))(keys)
    alone = jax.jit(go)
    for i in range(2):
        for ours, theirs in zip(together, alone(keys[i]), strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-6)


def test_training_does_not_copy_the_ring():
    env, capacity = probe.pendulum(), 100_000
    method = reporter(2)
    source = prioritised(
        env, batch_size=8, num_minibatches=2, capacity=capacity, warmup=8
    )
    programs = program.build(
        lambda hyper: method,
        source,
        program.make_runs([0], None)[0],
        evaluation_env=None,
        num_episodes=1,
    )
    assert programs.memory_bytes is not None
    # The ring, and a few arrays with one number a transition.
    ring_bytes = memory_bytes(env.spec, capacity)
    assert programs.memory_bytes < 1.3 * ring_bytes + 6 * 4 * capacity


def test_a_sum_of_losses_passes_the_feedback_of_one_term():
    def loud(params, target_params, stats, batch, key):
        return params * 1.0, {FEEDBACK: batch}

    both = learner.weighted_sum(a=(1.0, loud), b=(1.0, lambda *_: (jnp.zeros(()), {})))
    _, metrics = both(jnp.ones(()), (), (), jnp.arange(3.0), jax.random.key(0))
    np.testing.assert_array_equal(metrics[FEEDBACK], [0, 1, 2])
    twice = learner.weighted_sum(a=(1.0, loud), b=(1.0, loud))
    with pytest.raises(ValueError, match="only one term"):
        twice(jnp.ones(()), (), (), jnp.arange(3.0), jax.random.key(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": -0.1}, "alpha must not be negative"),
        ({"beta": 1.5}, "beta must lie in"),
        ({"smallest": 0.0}, "smallest must be positive"),
        ({"beta_steps": 0}, "beta_steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_envs": 8, "capacity": 100}, "ask for 96 or 104"),
    ],
)
def test_impossible_numbers_are_named(fields, message):
    sizes = {"capacity": 1_000, "warmup": 0, **fields}
    with pytest.raises(ValueError, match=message):
        prioritised(probe.make("lqr"), **sizes)
