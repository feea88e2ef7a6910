"""Policy evaluation in continuous time: identities, gradients, bad input."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import diffusion as df
from rlx import learner, loop
from rlx.data.paths import paths as paths_source
from rlx.data.paths import recorded
from rlx.data.rollout import rollout
from rlx.methods import martingale
from rlx.ops import martingale as ops
from rlx.types import Box, EnvSpec, Network
from tests.methods.martingale_paths import (
    FAMILY,
    SPEC,
    B,
    P,
    T,
    chained,
    direction,
    feature_pairs,
    features,
    naive_increments,
    random_batch,
    random_steps,
    solved,
)

pytestmark = pytest.mark.usefixtures("double_precision")


def conformance_cases():
    """A gradient and a solver, on whole paths and on a rollout of a diffusion."""
    problem = df.ornstein_uhlenbeck()
    env = df.make(problem, 0.1)

    def sample(key):
        time = df.mesh(1.0, 0.1)
        return df.transitions(problem, df.simulate(problem, key, time, 8))

    trace = martingale.Config("ctd", lambda_=0.5, num_epochs=2, num_minibatches=2)
    solver = martingale.Config("clstd", ridge=0.1)
    return {
        "ctd": (martingale.make(env.spec, trace), paths_source(sample, 8, 10)),
        "clstd": (martingale.make(env.spec, solver), rollout(env, length=10)),
    }


def test_ctd0_is_td0(generator):
    beta = 0.25
    steps = random_steps(generator, np.ones((T, B)))
    batch = random_batch(generator, steps)
    theta = jnp.asarray(generator.normal(size=P))
    config = martingale.Config("ctd", beta, 0.0, instrument_power=-1.0)
    found = direction(config, batch, theta)
    phi, then = feature_pairs(batch)
    gamma = math.exp(-beta)
    error = (
        np.asarray(steps.reward)
        + gamma * np.asarray(steps.discount) * (then @ theta)
        - phi @ theta
    )
    expected = np.einsum("tbp,tb->p", phi, error) / B
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_ctd_lambda_is_td_lambda(generator):
    beta, discrete = 0.25, 0.6
    gamma = math.exp(-beta)
    steps = random_steps(generator, np.ones((T, B)))
    batch = random_batch(generator, steps)
    theta = generator.normal(size=P)
    # λ of the trace equals the discrete λ: D^-1 in ξ and D in dM make up γ's share.
    config = martingale.Config("ctd", beta, discrete, instrument_power=-1.0)
    found = direction(config, batch, jnp.asarray(theta))
    phi, then = feature_pairs(batch)
    reward, discount, _, cut = map(np.asarray, steps)
    expected = np.zeros(P)
    for b in range(B):
        trace = np.zeros(P)
        for i in range(T):
            trace = gamma * discrete * trace + phi[i, b]
            target = reward[i, b] + gamma * discount[i, b] * then[i, b] @ theta
            expected += trace * (target - phi[i, b] @ theta)
            if cut[i, b]:
                trace = np.zeros(P)
    np.testing.assert_allclose(found, expected / B, atol=1e-12)


def test_clstd_is_lstd_and_its_moments_vanish(generator):
    beta = 0.25
    steps = random_steps(generator, np.ones((T, B)))
    batch = random_batch(generator, steps)
    config = martingale.Config("clstd", beta, instrument_power=-1.0)
    found, metrics = solved(config, batch)
    phi, then = feature_pairs(batch)
    phi, then = phi.reshape(-1, P), then.reshape(-1, P)
    discount = np.asarray(steps.discount).reshape(-1, 1)
    matrix = phi.T @ (phi - math.exp(-beta) * discount * then)
    expected = np.linalg.solve(matrix, phi.T @ np.asarray(steps.reward).reshape(-1))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(
        direction(dataclass_with(config, "ctd"), batch, jnp.asarray(found)),
        0,
        atol=1e-9,
    )
    assert metrics["residual"] < 1e-9 and metrics["condition"] > 1


def dataclass_with(config, algorithm):
    return martingale.dataclasses.replace(config, algorithm=algorithm)


def test_ctd1_is_the_gradient_of_ml(generator):
    steps = random_steps(generator)
    batch = chained(random_batch(generator, steps))
    theta = jnp.asarray(generator.normal(size=P))
    ml = direction(martingale.Config("ml", 0.3), batch, theta)
    ctd = martingale.Config("ctd", 0.3, 1.0, instrument_power=1.0)
    np.testing.assert_allclose(direction(ctd, batch, theta), ml, atol=1e-12)


def test_clstd1_is_the_regression_on_returns(generator):
    steps = random_steps(generator, inner_ends=False)
    steps = steps._replace(discount=steps.discount.at[-1].set(0.0))
    batch = chained(random_batch(generator, steps))
    config = martingale.Config("clstd", 0.3, 1.0, instrument_power=1.0)
    found, _ = solved(config, batch)
    phi = np.asarray(features(batch.observation))
    duration = np.asarray(steps.duration)
    elapsed = np.cumsum(duration, 0) - duration
    worth = np.exp(-0.3 * elapsed)
    target = np.cumsum((worth * np.asarray(steps.reward))[::-1], 0)[::-1]
    root = np.sqrt(duration)
    rows = ((root * worth)[..., None] * phi).reshape(-1, P)
    expected = np.linalg.lstsq(rows, (root * target).reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_ctdc_is_discrete_tdc(generator):
    beta = 0.25
    steps = random_steps(generator, np.ones((T, B)))
    batch = random_batch(generator, steps)
    theta, weights = generator.normal(size=(2, P))
    config = martingale.Config("ctdc", beta, instrument_power=-1.0)
    method = martingale.make(SPEC, config, FAMILY)
    state = learner.init(method, jax.random.key(0))
    params = {"value": jnp.asarray(theta), "auxiliary": jnp.asarray(weights)}
    stats, prepared = method.prepare(state, batch)
    loss = lambda p: method.loss_fn(p, p, stats, prepared, None)[0]  # noqa: E731
    grad = jax.jit(jax.grad(loss))(params)
    phi, then = feature_pairs(batch)
    gamma = math.exp(-beta) * np.asarray(steps.discount)
    error = np.asarray(steps.reward) + gamma * (then @ theta) - phi @ theta
    elapsed = np.cumsum(np.ones((T, B)), 0) - 1
    for b, i in ((0, 2), (1, 3)):
        elapsed[i + 1 :, b] -= i + 1
    worth = np.exp(-beta * elapsed)
    # ξ = φ/D and dM = Dδ: the discrete update, its correction weighted by D D / D.
    first = np.einsum("tbp,tb->p", phi, error)
    projected = (phi / worth[..., None]) @ weights
    second = np.einsum("tbp,tb->p", then, worth * gamma * projected)
    np.testing.assert_allclose(-grad["value"], (first - second) / B, atol=1e-10)
    fast = np.einsum("tbp,tb->p", phi / worth[..., None], worth * error - projected)
    np.testing.assert_allclose(-grad["auxiliary"], fast / B, atol=1e-10)


@pytest.mark.parametrize("algorithm", martingale.TWO_TIMESCALE)
def test_gradient_td_rests_at_clstd(generator, algorithm):
    steps = random_steps(generator)
    batch = random_batch(generator, steps)
    root, _ = solved(martingale.Config("clstd", 0.3), batch)
    method = martingale.make(SPEC, martingale.Config(algorithm, 0.3), FAMILY)
    state = learner.init(method, jax.random.key(0))
    stats, prepared = method.prepare(state, batch)

    @jax.jit
    def gradient(theta):
        params = {"value": theta, "auxiliary": jnp.zeros(P)}
        return jax.grad(lambda p: method.loss_fn(p, p, stats, prepared, None)[0])(
            params
        )

    for leaf in jax.tree.leaves(gradient(jnp.asarray(root))):
        np.testing.assert_allclose(leaf, 0, atol=1e-10)
    assert np.abs(gradient(jnp.asarray(root) + 0.1)["auxiliary"]).max() > 1e-3


@pytest.mark.parametrize("weighting", martingale.WEIGHTINGS)
def test_gmm_with_as_many_moments_is_clstd(generator, weighting):
    batch = random_batch(generator, random_steps(generator))
    # Three paths have a covariance of rank two: the precision needs more of them.
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * 4, 1), batch)
    noise = jnp.asarray(generator.normal(size=batch.reward.shape))
    batch = batch.replace(reward=batch.reward + noise)
    root, _ = solved(martingale.Config("clstd", 0.3), batch)
    found, _ = solved(martingale.Config("gmm", 0.3, weighting=weighting), batch)
    np.testing.assert_allclose(found, root, rtol=1e-6)


def test_own_instruments_and_newton(generator):
    steps = random_steps(generator)
    batch = random_batch(generator, steps)

    def wide(observation):
        return jnp.concatenate([features(observation), observation**2], -1)

    config = martingale.Config("gmm", 0.3, weighting="identity")
    found, metrics = solved(config, batch, instruments=wide)
    xi = np.asarray(wide(batch.observation))
    worth = np.asarray(ops.start_discount(steps, 0.3))
    gamma = np.exp(-0.3 * np.asarray(steps.duration)) * np.asarray(steps.discount)
    phi, then = feature_pairs(batch)
    slope = worth[..., None] * (phi - gamma[..., None] * then)
    matrix = np.einsum("tbk,tbp->kp", xi, slope)
    vector = np.einsum("tbk,tb->k", xi, worth * np.asarray(steps.reward))
    expected = np.linalg.lstsq(matrix, vector, rcond=None)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert metrics["residual"] > 1e-3
    # A family that is not linear: repeated linearisation is Newton's method.
    curved = Network(
        lambda key: jnp.full((P,), 0.1),
        lambda params, observation: features(observation) @ (params + 0.1 * params**3),
    )
    config = martingale.Config("clstd", 0.3, accumulate=False)
    flat, _ = solved(config, batch, instruments=features)
    root, metrics = solved(config, batch, curved, 60, instruments=features)
    assert metrics["residual"] < 1e-8
    np.testing.assert_allclose(root + 0.1 * root**3, flat, rtol=1e-6)


def test_clstd_averages_batches(generator):
    batch = random_batch(generator, random_steps(generator))
    other = random_batch(generator, random_steps(generator))
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), batch, other)
    expected, _ = solved(martingale.Config("clstd", 0.3), both)
    method = martingale.make(SPEC, martingale.Config("clstd", 0.3), FAMILY)
    state = learner.init(method, jax.random.key(0))
    update = jax.jit(lambda x, y: learner.update(method, x, y, jax.random.key(0)))
    for part in (batch, other):
        state, _ = update(state, part)
    np.testing.assert_allclose(state.params["value"], expected, rtol=1e-9)
    assert state.step == 2


def test_scaling_rewards_scales_the_value(generator):
    batch = random_batch(generator, random_steps(generator))
    config = martingale.Config("clstd", 0.3, 0.5)
    once, _ = solved(config, batch)
    tripled, _ = solved(config, batch.replace(reward=3 * batch.reward))
    np.testing.assert_allclose(tripled, 3 * once, rtol=1e-9)


def test_constants_of_the_gradient(generator):
    steps = random_steps(generator)
    value, following = map(jnp.asarray, generator.normal(size=(2, T, B)))

    def total(value, following):
        return martingale.loss(value, following, steps, 0.3, 0.5).sum()

    by_value, by_next = jax.grad(total, (0, 1))(value, following)
    assert np.abs(by_value).max() > 0
    np.testing.assert_array_equal(by_next, 0)


def test_ml_and_mean_square_gradients_by_differences(generator):
    steps = random_steps(generator, inner_ends=False)
    steps = steps._replace(discount=steps.discount.at[-1].set(0.0))
    batch = chained(random_batch(generator, steps))
    theta = generator.normal(size=P)
    phi, then = feature_pairs(batch)
    duration = np.asarray(steps.duration)

    def objective(theta, algorithm):
        increment = naive_increments(phi @ theta, then @ theta, steps, 0.3)
        if algorithm == "ml":
            increment = np.cumsum(increment[::-1], 0)[::-1] * duration
        return 0.5 * (increment**2 / duration).sum() / B

    for algorithm in ("ml", "mean_square_td"):
        found = direction(martingale.Config(algorithm, 0.3), batch, jnp.asarray(theta))
        expected = [
            -(objective(theta + e, algorithm) - objective(theta - e, algorithm)) / 2e-6
            for e in 1e-6 * np.eye(P)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_recorded_paths_and_no_policy(generator, key):
    batch = random_batch(generator, random_steps(generator))
    method = martingale.make(SPEC, martingale.Config("clstd", 0.3), FAMILY)
    source = recorded(batch)
    state = loop.init(method, source, key)
    state, _ = loop.step(method, source, state)
    expected, _ = solved(martingale.Config("clstd", 0.3), batch)
    np.testing.assert_allclose(state.learner.params["value"], expected)
    action, _, _ = method.act(state.learner.params, (), jnp.zeros((5, 2)), (), None)
    np.testing.assert_array_equal(action, np.zeros((5, 1)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: martingale.make(SPEC, martingale.Config("lstd")), "unknown algorithm"),
        (
            lambda: martingale.make(SPEC, martingale.Config("gmm", weighting="best")),
            "unknown weighting",
        ),
        (
            lambda: martingale.make(SPEC, martingale.Config(), FAMILY, features),
            "uses ∇J as its test function",
        ),
        (
            lambda: martingale.make(SPEC, martingale.Config("ml", average_reward=True)),
            "ctd and clstd only",
        ),
        (
            lambda: martingale.make(EnvSpec("x", Box((2, 2)), Box((1,)))),
            "vector observations",
        ),
        (
            lambda: paths_source(lambda key: random_batch_of_zeros(), 2, 5).next(
                (), None, jax.random.key(0)
            ),
            "were announced",
        ),
        (
            lambda: recorded(jax.tree.map(lambda x: x[0], random_batch_of_zeros())),
            r"leading axes \[T, B\]",
        ),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def random_batch_of_zeros():
    generator = np.random.default_rng(0)
    return random_batch(generator, random_steps(generator))
