"""Continuous-time policy evaluation: identities, oracles, limits, bad input."""

from __future__ import annotations

import functools
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
from rlx.networks.features import linear_family
from rlx.ops import linear
from rlx.ops import martingale as ops
from rlx.types import Box, EnvSpec, Network, Transition

T, B, P = 7, 3, 4
SPEC = EnvSpec("test", Box((2,)), Box((1,)))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


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


def random_steps(generator, duration=None, inner_ends=True):
    """Random rewards, durations and path ends, some inside the batch."""
    discount = np.ones((T, B))
    truncated = np.zeros((T, B), bool)
    if inner_ends:
        discount[2, 0] = 0.0
        truncated[3, 1] = True
    discount[-1, 2] = 0.0
    cut = (discount == 0) | truncated
    cut[-1] = True
    if duration is None:
        duration = generator.uniform(0.1, 0.7, (T, B))
    reward = generator.normal(size=(T, B))
    return ops.Steps(*map(jnp.asarray, (reward, discount, duration, cut)))


def random_batch(generator, steps, size=2):
    """Transitions with unrelated successors: identities must hold on any data."""
    observation = generator.normal(size=(T, B, size))
    following = generator.normal(size=(T, B, size))
    return Transition(
        observation=jnp.asarray(observation),
        action=jnp.zeros((T, B, 1)),
        reward=steps.reward,
        discount=steps.discount,
        truncated=steps.cut & (steps.discount > 0),
        next_observation=jnp.asarray(following),
        extras={"duration": steps.duration},
    )


def feature_pairs(batch):
    """φ of the observations and of the successors, as NumPy arrays."""
    pair = (batch.observation, batch.next_observation)
    return tuple(np.asarray(features(x)) for x in pair)


def chained(batch):
    """The same with each observation the last successor, within a path."""
    ends = (batch.discount == 0) | batch.truncated
    first = batch.observation[1:]
    following = jnp.where(ends[:-1, :, None], batch.next_observation[:-1], first)
    return batch.replace(next_observation=batch.next_observation.at[:-1].set(following))


def features(observation):
    x, y = observation[..., 0], observation[..., 1]
    return jnp.stack([jnp.ones_like(x), x, x * y, jnp.sin(y)], -1)


FAMILY = linear_family(features, P)


def direction(config, batch, theta, value=FAMILY, spec=SPEC):
    """Minus the gradient of the method's loss, for the value's parameters."""
    method = martingale.make(spec, config, value)
    state = learner.init(method, jax.random.key(0))
    state = state.replace(params=state.params | {"value": theta})
    stats, prepared = method.prepare(state, batch)

    def loss(params, prepared):
        return method.loss_fn(params, params, stats, prepared, jax.random.key(0))[0]

    return -jax.jit(jax.grad(loss))(state.params, prepared)["value"]


def solved(config, batch, value=FAMILY, times=1, instruments=None):
    method = martingale.make(SPEC, config, value, instruments)
    state = learner.init(method, jax.random.key(0))
    # The batch is an argument: closed over, it would be a constant to fold.
    update = jax.jit(lambda x, y: learner.update(method, x, y, jax.random.key(0)))
    for _ in range(times):
        state, metrics = update(state, batch)
    return np.asarray(state.params["value"]), metrics


# --------------------------------------------------------------- against NumPy loops


def naive_increments(value, following, steps, beta):
    reward, discount, duration, cut = map(np.asarray, steps)
    out = np.zeros((T, B))
    for b in range(B):
        now = 0.0
        for i in range(T):
            later = now + duration[i, b]
            worth = math.exp(-beta * later) * following[i, b] * discount[i, b]
            gained = math.exp(-beta * now) * (reward[i, b] - value[i, b])
            out[i, b] = worth + gained
            now = 0.0 if cut[i, b] else later
    return out


def test_increments_and_sums_against_a_loop(generator):
    steps = random_steps(generator)
    value, following = generator.normal(size=(2, T, B))
    expected = naive_increments(value, following, steps, 0.3)
    found = ops.increments(jnp.asarray(value), jnp.asarray(following), steps, 0.3)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    sums = np.asarray(ops.reverse_sum(found, steps.cut))
    cut = np.asarray(steps.cut)
    for b in range(B):
        for i in range(T):
            end = i + int(np.argmax(cut[i:, b]))
            np.testing.assert_allclose(sums[i, b], expected[i : end + 1, b].sum())


@pytest.mark.parametrize("lambda_", [0.0, 1e-9, 0.4, 1.0])
def test_trace_against_a_loop_and_its_adjoint(generator, lambda_):
    steps = random_steps(generator)
    gradient = generator.normal(size=(T, B, P))
    increment = generator.normal(size=(T, B))
    duration, cut = np.asarray(steps.duration), np.asarray(steps.cut)
    expected = np.zeros((T, B, P))
    for b in range(B):
        z = np.zeros(P)
        for i in range(T):
            dt = duration[i, b]
            if lambda_ == 0:
                weight = 1.0
            elif lambda_ == 1:
                weight = dt
            else:
                weight = (1 - lambda_**dt) / (1 - lambda_)
            z = lambda_**dt * z + weight * gradient[i, b]
            expected[i, b] = z
            if cut[i, b]:
                z = np.zeros(P)
    found = ops.trace(jnp.asarray(gradient), steps.duration, steps.cut, lambda_)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    coefficient = ops.reverse_trace(
        jnp.asarray(increment), steps.duration, steps.cut, lambda_
    )
    forward = np.einsum("tbp,tb->p", expected, increment)
    backward = np.einsum("tbp,tb->p", gradient, np.asarray(coefficient))
    np.testing.assert_allclose(forward, backward, atol=1e-10)


def test_lambda_may_be_swept():
    duration, cut = jnp.full((5, 1), 0.1), jnp.zeros((5, 1), bool)
    lambdas = jnp.array([0.0, 0.3, 1.0])

    def total(lambda_):
        return ops.trace(jnp.ones((5, 1, 1)), duration, cut, lambda_).sum()

    solo = [total(float(x)) for x in lambdas]
    np.testing.assert_allclose(jax.vmap(total)(lambdas), solo, rtol=1e-12)
    # (At 0 itself the slope of λ^Δt is infinite.)
    assert np.isfinite(jax.vmap(jax.grad(total))(lambdas[1:])).all()


def test_paper_trace_tends_to_the_gradient():
    # -ln λ ∫ λ^{t-s} g_s ds → g_t as λ → 0, for a smooth g on a fine mesh.
    time = jnp.linspace(0.0, 1.0, 2001)[:-1]
    g = jnp.cos(3 * time)[:, None, None]
    duration, cut = jnp.full((2000, 1), 1 / 2000), jnp.zeros((2000, 1), bool)
    gaps = []
    for lambda_ in (1e-4, 1e-8, 1e-16):
        z = ops.trace(g, duration, cut, lambda_) * (1 - lambda_)  # ∫ times -ln λ
        gaps.append(float(jnp.abs(z[1000:] - g[1000:]).max()))
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.1


# --------------------------------------------------- reductions to discrete methods


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


# ------------------------------------------------------------------------- gradients


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


def test_sherman_morrison_and_sandwich(generator):
    matrix = generator.normal(size=(P, P)) + 3 * np.eye(P)
    u, v = generator.normal(size=(2, P))
    found = linear.sherman_morrison(*map(jnp.asarray, (np.linalg.inv(matrix), u, v)))
    np.testing.assert_allclose(found, np.linalg.inv(matrix + np.outer(u, v)), rtol=1e-9)
    # A mean is the root of E (x - θ) = 0, with the familiar standard error.
    sample = generator.normal(size=(500, 1))
    error = linear.sandwich(jnp.ones((1, 1)), jnp.asarray(sample - sample.mean()))
    np.testing.assert_allclose(error, sample.std(ddof=1) / math.sqrt(500), rtol=1e-9)


# ------------------------------------------------- on diffusions, to closed forms


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


def test_wrong_shapes_raise():
    steps = ops.Steps(*(jnp.zeros((T, B)),) * 3, jnp.zeros((T, B), bool))
    with pytest.raises(AssertionError):
        ops.increments(jnp.zeros((T, B, 1)), jnp.zeros((T, B)), steps)
    with pytest.raises(AssertionError):
        ops.martingale_loss(jnp.zeros((T, B)), jnp.zeros((T,)))
    with pytest.raises(AssertionError):
        ops.reverse_trace(jnp.zeros((T, B)), jnp.zeros((T, 1)), steps.cut, 0.5)
