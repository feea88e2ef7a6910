"""On-line CTD(λ): traces that go on from batch to batch."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import diffusion as df
from rlx import learner, loop
from rlx.data.rollout import rollout
from rlx.methods import martingale
from rlx.networks.features import linear_family
from tests.methods.martingale_paths import (
    FAMILY,
    SPEC,
    B,
    P,
    T,
    direction,
    feature_pairs,
    random_batch,
    random_steps,
)

pytestmark = pytest.mark.usefixtures("double_precision")


LAMBDA, BETA, RATE = 0.4, 0.3, 0.05


def on_line(config):
    """The method and its learner for `B` streams."""
    method = martingale.make(SPEC, config, FAMILY)
    return method, learner.init(method, jax.random.key(0), B)


def pieces(batch, *lengths):
    """The batch cut along time."""
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        yield jax.tree.map(lambda x, a=start, b=end: x[a:b], batch)


@pytest.mark.parametrize("lambda_", [0.0, LAMBDA, 1.0])
@pytest.mark.parametrize("power", [0.0, -1.0])
def test_pieces_of_paths_sum_to_the_whole(generator, lambda_, power):
    batch = random_batch(generator, random_steps(generator))
    theta = jnp.asarray(generator.normal(size=P))
    config = martingale.Config("ctd", BETA, lambda_, instrument_power=power)
    whole = direction(config, batch, theta)
    method, state = on_line(dataclasses.replace(config, carry_traces=True))
    state = state.replace(params={"value": theta})

    @jax.jit
    def one(state, piece):
        stats, prepared = method.prepare(state, piece)
        loss = lambda p: method.loss_fn(p, p, stats, prepared, None)[0]  # noqa: E731
        return state.replace(stats=stats), -jax.grad(loss)(state.params)["value"]

    for lengths in ((1,) * T, (3, 1, 3)):
        total, current = jnp.zeros(P), state
        for piece in pieces(batch, *lengths):
            current, step = one(current, piece)
            total = total + step
        np.testing.assert_allclose(total, whole, rtol=1e-9, atol=1e-12)


def test_cutting_the_traces_is_another_method(generator):
    """The test above can fail: without carried traces the sum differs."""
    batch = random_batch(generator, random_steps(generator))
    theta = jnp.asarray(generator.normal(size=P))
    config = martingale.Config("ctd", BETA, LAMBDA)
    parts = [direction(config, x, theta) for x in pieces(batch, *(1,) * T)]
    assert np.abs(sum(parts) - direction(config, batch, theta)).max() > 1e-2


def naive_on_line(batch, theta, lambda_, average=None):
    """Step by step: θ moves at every time step, the trace keeps old gradients."""
    phi, then = feature_pairs(batch)
    reward, discount = np.asarray(batch.reward), np.asarray(batch.discount)
    ended = (discount == 0) | np.asarray(batch.truncated)
    duration = np.asarray(batch.extras["duration"])
    z, time = np.zeros((B, P)), np.zeros(B)
    for i in range(len(reward)):
        move, total = np.zeros(P), 0.0
        for b in range(B):
            dt = duration[i, b]
            weight = (1 - lambda_**dt) / (1 - lambda_)
            z[b] = lambda_**dt * z[b] + weight * phi[i, b]
            target = reward[i, b] - (average or 0.0) * dt
            target += math.exp(-BETA * dt) * discount[i, b] * then[i, b] @ theta
            increment = math.exp(-BETA * time[b]) * (target - phi[i, b] @ theta)
            move, total = move + z[b] * increment / B, total + increment / B
            time[b] += dt
            if ended[i, b]:
                z[b], time[b] = 0.0, 0.0
        theta = theta + RATE * move
        if average is not None:
            average += RATE * total
    return theta, average


@pytest.mark.parametrize("average", [False, True])
def test_on_line_against_a_loop(generator, average):
    batch = random_batch(generator, random_steps(generator))
    # Three times as long, so that traces outlive an end in the middle.
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * 3), batch)
    config = martingale.Config(
        "ctd",
        BETA,
        LAMBDA,
        carry_traces=True,
        average_reward=average,
        learning_rate=RATE,
    )
    method, state = on_line(config)
    theta = generator.normal(size=P)
    state = state.replace(params=state.params | {"value": jnp.asarray(theta)})
    update = jax.jit(lambda x, y: learner.update(method, x, y, jax.random.key(0)))
    for piece in pieces(batch, *(1,) * (3 * T)):
        state, _ = update(state, piece)
    start = 0.0 if average else None
    expected, value = naive_on_line(batch, theta, LAMBDA, start)
    np.testing.assert_allclose(state.params["value"], expected, rtol=1e-9)
    if average:
        np.testing.assert_allclose(state.params["average_reward"], value, rtol=1e-9)


def test_a_rollout_of_single_steps_finds_the_value(key):
    """On-line CTD(λ) on Brownian paths: truth (1, 1/2) up to the mesh and the rate."""
    problem = df.brownian_quadratic()
    env = df.make(problem, 0.05)

    def two(observation):
        left = 1.0 - observation[..., 0]
        return jnp.stack([observation[..., 1] ** 2 * left, left**2], -1)

    config = martingale.Config("ctd", 0.0, 0.5, carry_traces=True, learning_rate=0.1)
    method = martingale.make(env.spec, config, linear_family(two, 2))
    source = rollout(env, num_envs=32, length=1)

    def run(key):
        def body(state, _):
            state, _ = loop.step(method, source, state)
            return state, state.learner.params["value"]

        state = loop.init(method, source, key)
        return jax.lax.scan(body, state, None, length=8000)[1][4000:].mean(0)

    theta = jax.jit(jax.vmap(run))(jax.random.split(key, 4))
    np.testing.assert_allclose(np.mean(theta, 0), [1.0, 0.47], atol=0.08)


def test_impossible_combinations():
    for fields in ({"algorithm": "clstd"}, {"num_epochs": 2}, {"num_minibatches": 2}):
        config = martingale.Config(carry_traces=True, **fields)
        with pytest.raises(ValueError, match="carry_traces needs ctd"):
            martingale.make(SPEC, config, FAMILY)
