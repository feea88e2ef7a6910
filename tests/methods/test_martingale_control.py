"""Control by martingale conditions: loops, reductions, the known optimum, bad input."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import diffusion as df
from envs import probe
from rlx import learner, loop
from rlx.data.rollout import rollout
from rlx.methods import martingale, martingale_control
from rlx.networks.features import linear_family, linear_gaussian
from rlx.types import Box, Discrete, EnvSpec
from tests.methods.martingale_paths import (
    FAMILY,
    SPEC,
    B,
    P,
    T,
    features,
    naive_increments,
    random_batch,
    random_steps,
)

TEMPERATURE, BETA = 0.2, 0.3

pytestmark = pytest.mark.usefixtures("double_precision")


def conformance_cases():
    """Both conditions: on-policy without a horizon, on another's actions with one."""
    ergodic = df.make(df.ergodic_lq(), 0.05, duration=1.0)
    on_policy = martingale_control.Config(
        discount_rate=0.0, average_reward=True, num_minibatches=2
    )
    market = df.make(df.mean_variance(), 0.1)
    off_policy = martingale_control.Config(
        "q_learning", hidden_sizes=(8,), num_epochs=2, constant_steps=10.0
    )

    def behaviour(observation, key):
        return jax.random.normal(key, (*observation.shape[:-1], 1)), {}

    return {
        "policy_gradient": (
            martingale_control.make(ergodic.spec, on_policy),
            rollout(ergodic, num_envs=4, length=8),
        ),
        "q_learning": (
            martingale_control.make(market.spec, off_policy, behaviour=behaviour),
            rollout(market, num_envs=4, length=10),
        ),
    }


def acted_batch(generator, steps):
    batch = random_batch(generator, steps)
    return batch.replace(action=jnp.asarray(generator.normal(size=(T, B, 1))))


def random_params(generator, average=False):
    params = {
        "value": jnp.asarray(generator.normal(size=P)),
        "actor": {
            "weights": jnp.asarray(generator.normal(size=(2, 1))),
            "offset": jnp.asarray(generator.normal(size=1)),
            "log_variance": jnp.asarray([-0.7]),
        },
    }
    return params | ({"average_reward": jnp.asarray(0.4)} if average else {})


def direction(config, batch, params):
    """Minus the gradient of the method's loss."""
    method = martingale_control.make(SPEC, config, FAMILY)
    state = learner.init(method, jax.random.key(0)).replace(params=params)
    stats, prepared = method.prepare(state, batch)

    def loss(params):
        return method.loss_fn(params, params, stats, prepared, jax.random.key(0))[0]

    return jax.tree.map(jnp.negative, jax.jit(jax.grad(loss))(params))


def test_worked_numbers():
    # J = 2, log π = -1, dM = 0.5, w = 0.1: -(0.5)(2 - 0.1) = -0.95, slopes -0.5, -0.05.
    numbers = (jnp.array([2.0]), jnp.array([-1.0]), jnp.array([0.5]))

    def total(*arrays):
        return martingale_control.loss(*arrays, actor_weight=0.1).sum()

    np.testing.assert_allclose(total(*numbers), -0.95)
    slopes = jax.grad(total, (0, 1, 2))(*numbers)
    np.testing.assert_allclose(np.concatenate(slopes), [-0.5, -0.05, 0.0])


@pytest.mark.parametrize("algorithm", martingale_control.ALGORITHMS)
@pytest.mark.parametrize("power", [0.0, -1.0])
def test_against_a_loop(generator, algorithm, power):
    """Score of a Gaussian by hand: ((a-m)/v) x, (a-m)/v and ((a-m)²/v - 1)/2."""
    steps = random_steps(generator)
    batch = acted_batch(generator, steps)
    params = random_params(generator, average=True)
    config = martingale_control.Config(
        algorithm, BETA, TEMPERATURE, average_reward=True, instrument_power=power
    )
    found = direction(config, batch, params)
    x, action = np.asarray(batch.observation), np.asarray(batch.action)[..., 0]
    weights = np.asarray(params["actor"]["weights"])[:, 0]
    gap = action - x @ weights - float(params["actor"]["offset"][0])
    variance = math.exp(-0.7)
    log_prob = -0.5 * (gap**2 / variance + math.log(2 * math.pi * variance))
    duration, cut = np.asarray(steps.duration), np.asarray(steps.cut)
    rate = TEMPERATURE * log_prob + 0.4
    theta = np.asarray(params["value"])
    phi, then = (
        np.asarray(features(o)) for o in (batch.observation, batch.next_observation)
    )
    rewarded = steps._replace(reward=np.asarray(steps.reward) - rate * duration)
    increment = naive_increments(phi @ theta, then @ theta, rewarded, BETA)
    expected = {"value": 0.0, "weights": 0.0, "offset": 0.0, "log_variance": 0.0}
    factor = 1.0 if algorithm == "policy_gradient" else TEMPERATURE
    for b in range(B):
        time = 0.0
        for i in range(T):
            step = math.exp(-BETA * time * power) * increment[i, b] / B
            score = gap[i, b] / variance
            expected["value"] += phi[i, b] * step
            expected["weights"] += factor * score * x[i, b] * step
            expected["offset"] += factor * score * step
            curved = (gap[i, b] ** 2 / variance - 1) / 2
            expected["log_variance"] += factor * curved * step
            time = 0.0 if cut[i, b] else time + duration[i, b]
    np.testing.assert_allclose(found["value"], expected["value"], rtol=1e-9)
    np.testing.assert_allclose(
        found["actor"]["weights"][:, 0], expected["weights"], rtol=1e-9
    )
    for name in ("offset", "log_variance"):
        np.testing.assert_allclose(found["actor"][name], expected[name], rtol=1e-9)
    np.testing.assert_allclose(found["average_reward"], increment.sum() / B, rtol=1e-9)


def test_the_critic_is_ctd_on_rewards_with_entropy(generator):
    batch = acted_batch(generator, random_steps(generator))
    params = random_params(generator)
    found = direction(
        martingale_control.Config(discount_rate=BETA, temperature=TEMPERATURE),
        batch,
        params,
    )
    mean, log_scale = linear_gaussian(2, 1).apply(params["actor"], batch.observation)
    noise = (batch.action - mean) * jnp.exp(-log_scale)
    log_prob = (-0.5 * noise**2 - log_scale - 0.5 * math.log(2 * math.pi))[..., 0]
    bonus = -TEMPERATURE * log_prob * batch.extras["duration"]
    method = martingale.make(SPEC, martingale.Config("ctd", BETA), FAMILY)
    state = learner.init(method, jax.random.key(0))
    rewarded = batch.replace(reward=batch.reward + bonus)
    stats, prepared = method.prepare(state, rewarded)
    loss = lambda p: method.loss_fn(p, p, stats, prepared, None)[0]  # noqa: E731
    expected = jax.jit(jax.grad(loss))({"value": params["value"]})["value"]
    np.testing.assert_allclose(found["value"], -expected, rtol=1e-9)


# ------------------------------------------------------------ at the known optimum


def ergodic_family():
    def two(observation):
        x = observation[..., 0]
        return jnp.stack([x**2 / 2, x], -1)

    return linear_family(two, 2)


def optimal_params(temperature):
    slope, offset, variance = df.ergodic_optimum(temperature)
    best = df.ergodic_value(slope, offset, variance, temperature)
    return {
        "value": jnp.array([best.quadratic, best.linear]),
        "actor": {
            "weights": jnp.full((1, 1), slope),
            "offset": jnp.full((1,), offset),
            "log_variance": jnp.full((1,), math.log(variance)),
        },
        "average_reward": jnp.asarray(best.average),
    }


def behaviour(observation, key):
    return 0.5 * jax.random.normal(key, observation.shape) - 0.6, {}


@functools.cache
def path_moments(algorithm):
    """`(params, key)` -> all conditions, path by path `[B, K]`: ergodic LQ."""
    env = df.make(df.ergodic_lq(), 0.005, duration=2.0)
    config = martingale_control.Config(algorithm, 0.0, 0.1, average_reward=True)
    other = behaviour if algorithm == "q_learning" else None
    method = martingale_control.make(
        env.spec, config, ergodic_family(), behaviour=other
    )
    source = rollout(env, num_envs=2000, length=100)

    @jax.jit
    def moments(params, key):
        state = learner.init(method, key).replace(params=params)
        policy = learner.policy(method, state)
        first, then = jax.random.split(jax.random.fold_in(key, 1))
        _, batch, _ = source.next(source.init(first, policy), policy, then)
        stats, prepared = method.prepare(state, batch)

        def loss(params, path):
            path = jax.tree.map(lambda x: x[None], path)
            return method.loss_fn(params, params, stats, path, key)[0]

        leaves = jax.tree.leaves(jax.vmap(jax.grad(loss), (None, 0))(params, prepared))
        return jnp.concatenate([x.reshape(2000, -1) for x in leaves], 1)

    return moments


def z_scores(rows):
    rows = np.asarray(rows)
    return rows.mean(0) / (rows.std(0, ddof=1) / math.sqrt(len(rows)))


@pytest.mark.parametrize("algorithm", martingale_control.ALGORITHMS)
def test_all_conditions_hold_at_the_optimum(key, algorithm):
    scores = z_scores(path_moments(algorithm)(optimal_params(0.1), key))
    assert np.abs(scores).max() < 4, scores


@pytest.mark.parametrize("algorithm", martingale_control.ALGORITHMS)
def test_they_fail_away_from_it(key, algorithm):
    params = optimal_params(0.1)
    params["actor"]["offset"] = params["actor"]["offset"] + 0.3
    scores = z_scores(path_moments(algorithm)(params, key))
    assert np.abs(scores).max() > 4, scores


@pytest.mark.parametrize("algorithm", martingale_control.ALGORITHMS)
def test_learning_approaches_the_optimum(key, algorithm):
    """From a gap of 1 the exact average reward closes nine tenths, on four seeds."""
    env = df.make(df.ergodic_lq(), 0.05, duration=1e4)
    config = martingale_control.Config(
        algorithm,
        discount_rate=0.0,
        average_reward=True,
        learning_rate=0.2,
        actor_learning_rate=0.04 if algorithm == "policy_gradient" else 0.4,
        average_learning_rate=0.1,
        initial_variance=0.2,
    )
    other = behaviour if algorithm == "q_learning" else None
    method = martingale_control.make(
        env.spec, config, ergodic_family(), behaviour=other
    )
    source = rollout(env, num_envs=64, length=5)

    def run(key):
        state = loop.init(method, source, key)
        return loop.run(method, source, state, 1500)[0].learner.params["actor"]

    actor = jax.jit(jax.vmap(run))(jax.random.split(key, 4))
    best = df.ergodic_value(*df.ergodic_optimum(0.1), 0.1).average
    start = df.ergodic_value(0.0, 0.0, 0.2, 0.1).average
    for seed in range(4):
        slope, offset, log_variance = (
            float(actor[name][seed].reshape(()))
            for name in ("weights", "offset", "log_variance")
        )
        reached = df.ergodic_value(slope, offset, math.exp(log_variance), 0.1).average
        assert (best - reached) / (best - start) < 0.1, (seed, slope, offset)


# --------------------------------------------------------------------- bad input


def test_evaluation_is_the_learned_mean_whoever_acts(key):
    config = martingale_control.Config("q_learning")
    method = martingale_control.make(SPEC, config, behaviour=behaviour_of_two)
    params = method.init(key)
    params["actor"]["offset"] = jnp.array([0.7])
    observation = jnp.zeros((5, 2))
    action, _, _ = method.act(params, (), observation, (), None)
    np.testing.assert_allclose(action, np.full((5, 1), 0.7))
    action, _, extras = method.act(params, (), observation, (), key)
    np.testing.assert_allclose(action, np.full((5, 1), 9.0))
    assert extras == {"who": "another"}


def behaviour_of_two(observation, key):
    del key
    return jnp.full((*observation.shape[:-1], 1), 9.0), {"who": "another"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"algorithm": "sarsa"}, "unknown algorithm"),
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"discount_rate": math.nan}, "discount_rate must be at least 0"),
        ({"max_gradient": 0.0}, "max_gradient must be positive"),
        ({"num_minibatches": 0}, "num_minibatches must be positive"),
    ],
)
def test_impossible_fields(fields, words):
    config = dataclasses.replace(martingale_control.Config(), **fields)
    with pytest.raises(ValueError, match=words):
        martingale_control.make(SPEC, config)


def test_impossible_spaces_and_behaviours():
    make = martingale_control.make
    with pytest.raises(ValueError, match="its own actions only"):
        make(SPEC, behaviour=behaviour)
    with pytest.raises(ValueError, match="actions lie in"):
        make(probe.make("pendulum").spec)
    with pytest.raises(ValueError, match="real vectors"):
        make(EnvSpec("x", Box((2,)), Discrete(3)))
    with pytest.raises(ValueError, match="vector observations"):
        make(EnvSpec("x", Box((2, 2)), Box((1,))))
