"""Policy evaluation in continuous time: closed forms, limits, the loop."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import diffusion as df
from rlx import loop
from rlx.data.paths import paths as paths_source
from rlx.data.rollout import rollout
from rlx.methods import martingale
from rlx.networks.features import linear_family
from rlx.ops import martingale as ops
from tests.methods.martingale_paths import (
    direction,
    solved,
)

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.fixture(scope="module")
def brownian_batch():
    with jax.enable_x64(True):
        problem = df.brownian_quadratic()
        time = df.mesh(1.0, 1 / 64)
        paths = df.simulate(problem, jax.random.key(3), time, 8000, "exact")
        return df.transitions(problem, paths)


def brownian_features(observation):
    left = 1.0 - observation[..., 0]
    return jnp.stack([observation[..., 1] ** 2 * left, left**2], -1)


BROWNIAN = linear_family(brownian_features, 2)


def brownian_increment(batch, theta):
    values = [
        brownian_features(x) @ jnp.asarray(theta)
        for x in (batch.observation, batch.next_observation)
    ]
    last = jnp.zeros(batch.reward.shape, bool).at[-1].set(True)
    steps = ops.Steps(batch.reward, batch.discount, batch.extras["duration"], last)
    return ops.increments(*values, steps), steps, values[0]


def test_convergent_methods_and_the_one_that_is_not(brownian_batch):
    """Truth (1, 1/2); the mean-square TD error goes to (0, 0.4375) instead."""
    plain = functools.partial(martingale.Config, discount_rate=0.0)
    for config in (plain("clstd"), plain("clstd", lambda_=1.0), plain("gmm")):
        found, _ = solved(config, brownian_batch, BROWNIAN)
        # Two per cent of bias at this mesh, and the sampling error.
        np.testing.assert_allclose(found, [1.0, 0.5], atol=0.03)
    # The naive objective is quadratic: one Newton step finds its minimum.
    naive = plain("mean_square_td")
    columns = [
        direction(naive, brownian_batch, theta, BROWNIAN)
        for theta in (jnp.zeros(2), *jnp.eye(2))
    ]
    hessian = np.stack([columns[0] - c for c in columns[1:]], 1)
    minimum = np.linalg.solve(hessian, columns[0])
    np.testing.assert_allclose(minimum, [0.0, 0.4375], atol=0.04)


def test_quadratic_variation_limit(brownian_batch):
    increment, steps, _ = brownian_increment(brownian_batch, (1.0, 0.5))
    loss = ops.mean_square_td_loss(increment, steps.duration)
    measured = float(jnp.sum(loss * steps.duration) / increment.shape[1])
    # ½ E ∫ (2x(1-t))² dt with E x² = ¼ + t.
    np.testing.assert_allclose(measured, 2 * (0.25 / 3 + 1 / 12), rtol=0.05)


def test_moments_vanish_at_the_truth_only(brownian_batch):
    batch = brownian_batch
    x, t = batch.observation[..., 1], batch.observation[..., 0]
    instruments = jnp.stack([jnp.ones_like(x), t, x, x**2], -1)
    instruments = jnp.concatenate(
        [instruments, brownian_features(batch.observation)], -1
    )
    increment, _, _ = brownian_increment(batch, (1.0, 0.5))
    # The left rule misses Δt/2 per step on average: known, and taken out.
    scores = ops.moment_z_scores(instruments, increment + 0.5 / 64**2)
    assert np.abs(scores).max() < 4
    wrong, _, _ = brownian_increment(batch, (1.0, 0.6))
    assert np.abs(ops.moment_z_scores(instruments, wrong)).max() > 4


def test_martingale_loss_is_a_distance(brownian_batch):
    """ML(θ) - ML(θ*) = ½ E ∫ (J^θ - J)² dt."""
    losses, values = [], []
    for theta in ((1.3, 0.2), (1.0, 0.5)):
        increment, steps, value = brownian_increment(brownian_batch, theta)
        residual = ops.reverse_sum(increment, steps.cut)
        loss = ops.martingale_loss(residual, steps.duration)
        losses.append(loss.sum(0))
        values.append(value)
    distance = 0.5 * ((values[0] - values[1]) ** 2 * steps.duration).sum(0)
    gap = np.asarray(losses[0] - losses[1] - distance)
    assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(len(gap)) + 2e-3


# -------------------------------------------------------------------- the method's loop


def test_training_loop_on_fresh_paths(key):
    problem = df.brownian_quadratic()
    time = df.mesh(1.0, 0.05)

    def sample(key):
        return df.transitions(problem, df.simulate(problem, key, time, 64))

    spec = df.make(problem, 0.05).spec
    config = martingale.Config(
        "ctd", discount_rate=0.0, learning_rate=0.3, num_minibatches=2
    )
    method = martingale.make(spec, config, BROWNIAN)
    source = paths_source(sample, 64, 20)
    run = jax.jit(
        lambda key: loop.run(method, source, loop.init(method, source, key), 400)[0]
    )
    theta = jax.vmap(run)(jax.random.split(key, 4)).learner.params["value"]
    # The left rule's bias at this mesh is about -0.02 in the second parameter.
    np.testing.assert_allclose(np.mean(theta, 0), [1.0, 0.48], atol=0.08)


def test_online_average_reward(key):
    """One environment, one step a batch: V of the ergodic problem to a few per cent."""
    diffusion = df.ergodic_lq()
    env = df.make(diffusion, 0.05, duration=1e4)

    def policy(observation, key):
        return diffusion.policy(0.0, observation, key)[0], {}

    config = martingale.Config(
        "ctd", discount_rate=0.0, average_reward=True, learning_rate=0.02
    )
    method = martingale.make(env.spec, config, policy=policy)
    source = rollout(env, num_envs=8, length=1)

    def run(key):
        def body(state, _):
            state, _ = loop.step(method, source, state)
            return state, state.learner.params["average_reward"]

        state = loop.init(method, source, key)
        return jax.lax.scan(body, state, None, length=10000)[1][5000:].mean()

    assert abs(jax.jit(run)(key) - (6 - 2 * math.sqrt(7) - 0.05)) < 0.05
