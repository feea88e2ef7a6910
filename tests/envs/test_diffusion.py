"""Diffusions: closed forms, transition laws, meshes, environments, bad input."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats

import envs
from envs import diffusion as df
from envs.diffusion import catalogue
from rlx.data.episodes import episodes
from rlx.types import Policy

pytestmark = pytest.mark.usefixtures("double_precision")


MARKET = df.Market()
SLOPED = df.MeanVariancePolicy(0.8 * MARKET.sharpe / 0.2, -1.0, 0.7)
LQ = df.LinearQuadratic(
    dynamics=np.array([[0.1, 1.0], [-0.5, -0.2]]),
    control=np.array([[0.0], [1.0]]),
    noise=np.array([[0.3, 0.0], [0.1, 0.4]]),
    state_cost=np.diag([1.0, 0.5]),
    action_cost=np.array([[0.7]]),
    terminal_cost=np.diag([0.5, 0.2]),
    discount_rate=0.2,
    temperature=0.3,
)
GAIN = np.array([[0.8, 1.1]])

# name: (diffusion, mean of the action, its variance, average reward, without -γ log π)
PROBLEMS = {
    "brownian": (df.brownian_quadratic(), None),
    "ou": (df.ornstein_uhlenbeck(0.8, 0.6, 1.3, 0.4, 0.25), None),
    "ou unstable": (df.ornstein_uhlenbeck(-0.3, 0.6, 1.3, 0.4, 0.0), None),
    "ou infinite": (df.ornstein_uhlenbeck(horizon=math.inf), None),
    "call": (df.call_option(), None),
    "basket": (df.geometric_basket(), None),
    "mean-variance optimum": (
        df.mean_variance(),
        lambda t, x: (
            -MARKET.sharpe / 0.2 * (x - 1.6),
            0.1 / 0.08 * jnp.exp(MARKET.sharpe**2 * (1 - t)),
        ),
    ),
    "mean-variance other": (
        df.mean_variance(MARKET, SLOPED),
        lambda t, x: (-SLOPED.gain * (x - 1.6), jnp.exp(-1.0 + 0.7 * (1 - t))),
    ),
    "lq gain": (
        df.linear_quadratic(LQ, GAIN),
        lambda t, x: (-jnp.asarray(GAIN) @ x, jnp.asarray(0.3 / 1.4)),
    ),
    "lq gain infinite": (
        df.linear_quadratic(LQ._replace(horizon=math.inf), GAIN),
        lambda t, x: (-jnp.asarray(GAIN) @ x, jnp.asarray(0.3 / 1.4)),
    ),
}


def residual(problem, action_law, time, state):
    """J_t + LJ + r - γ E log π - βJ, averaged exactly over a Gaussian action.

    Coefficients are at most quadratic in the action, so the mean of two points one
    standard deviation to either side is exact.
    """
    value = problem.value

    def generator(action):
        drift = problem.drift(time, state, action)
        volatility = problem.volatility(time, state, action)
        gradient = jax.grad(value, 1)(time, state)
        hessian = jax.hessian(value, 1)(time, state)
        spread = 0.5 * jnp.trace(volatility.T @ hessian @ volatility)
        return drift @ gradient + spread + problem.reward(time, state, action)

    if action_law is None:
        average = generator(jnp.zeros((0,)))
    else:
        mean, variance = action_law(time, state)
        spread = jnp.sqrt(variance)
        average = 0.5 * (generator(mean + spread) + generator(mean - spread))
        entropy = 0.5 * jnp.log(2 * math.pi * math.e * variance)
        average = average + problem.temperature * entropy
    slope = jax.grad(value)(time, state)
    return slope + average - problem.discount_rate * value(time, state)


@pytest.mark.parametrize("name", PROBLEMS)
def test_values_solve_their_equation(name, generator):
    problem, action_law = PROBLEMS[name]
    solve = jax.jit(jax.vmap(lambda t, x: residual(problem, action_law, t, x)))
    times = jnp.asarray(generator.uniform(0.01, 0.95, 20))
    states = jnp.asarray(generator.uniform(0.5, 1.8, (20, problem.dimension)))
    assert np.abs(solve(times, states)).max() < 1e-6
    if math.isfinite(problem.horizon):
        end = jax.vmap(lambda x: problem.value(jnp.asarray(problem.horizon), x))
        payoff = jax.vmap(problem.terminal)(states)
        np.testing.assert_allclose(end(states), payoff, atol=1e-9)


def test_a_wrong_value_is_noticed():
    right, law = PROBLEMS["ou"]
    wrong = right._replace(value=lambda t, x: 1.02 * right.value(t, x))
    assert abs(residual(wrong, law, jnp.asarray(0.3), jnp.ones((1,)))) > 1e-2


def test_ergodic_value_solves_its_equation(generator):
    for slope, offset, variance in ((-0.3, 0.2, 0.5), (0.9, -1.0, 0.1)):
        solution = df.ergodic_value(slope, offset, variance, 0.1)
        problem = df.ergodic_lq(slope, offset, variance, 0.1)

        def law(t, x, slope=slope, offset=offset, variance=variance):
            return slope * x + offset, jnp.asarray(variance)

        for x in generator.normal(size=(5, 1)):
            left = residual(problem, law, jnp.asarray(0.0), jnp.asarray(x))
            assert abs(left - solution.average) < 1e-10


def test_ergodic_optimum_is_the_published_one():
    slope, offset, variance = df.ergodic_optimum(0.1)
    np.testing.assert_allclose([slope, offset], [-0.35425, -0.70850], atol=5e-6)
    np.testing.assert_allclose(variance, 0.035425, atol=5e-7)
    np.testing.assert_allclose(
        df.ergodic_value(slope, offset, variance).average, 0.65850, atol=5e-6
    )
    best = df.ergodic_value(slope, offset, variance, 0.1).average
    entropy = 0.5 * math.log(2 * math.pi * math.e * variance)
    np.testing.assert_allclose(best, 6 - 2 * math.sqrt(7) - 0.05 + 0.1 * entropy)
    # No Gaussian policy nearby does better.
    for change in ((0.02, 0, 0), (-0.02, 0, 0), (0, 0.02, 0), (0, -0.02, 0)):
        near = np.add((slope, offset, variance), change)
        assert df.ergodic_value(*near, 0.1).average < best
    for factor in (0.9, 1.1):
        near = df.ergodic_value(slope, offset, variance * factor, 0.1)
        assert near.average < best


def test_mean_variance_optimum_beats_its_neighbours():
    best = df.mean_variance_optimum(MARKET.sharpe, 0.2, 0.1)

    def worth(policy):
        problem = df.mean_variance(MARKET, policy)
        return problem.value(jnp.asarray(0.0), jnp.ones((1,)))

    for field, size in (("gain", 0.3), ("log_variance", 0.2), ("growth", 0.3)):
        for sign in (-1, 1):
            near = best._replace(**{field: getattr(best, field) + sign * size})
            assert worth(near) < worth(best)


def test_riccati_against_scipy():
    infinite = LQ._replace(horizon=math.inf)
    problem = df.linear_quadratic(infinite)
    shifted = LQ.dynamics - 0.1 * np.eye(2)
    matrix = scipy.linalg.solve_continuous_are(
        shifted, LQ.control, LQ.state_cost, LQ.action_cost
    )
    hessian = jax.hessian(problem.value, 1)(jnp.asarray(0.0), jnp.ones((2,)))
    np.testing.assert_allclose(-hessian / 2, matrix, atol=1e-10)

    def slope(_, flat):
        p = flat.reshape(2, 2)
        k = LQ.control.T @ p / 0.7
        out = LQ.state_cost - 0.7 * k.T @ k + LQ.dynamics.T @ p + p @ LQ.dynamics
        return (out - 0.2 * p).reshape(-1)

    start = LQ.terminal_cost.reshape(-1)
    flow = scipy.integrate.solve_ivp(slope, (0, 0.63), start, rtol=1e-11, atol=1e-12)
    value = df.linear_quadratic(LQ).value
    hessian = jax.hessian(value, 1)(jnp.asarray(0.37), jnp.ones((2,)))
    np.testing.assert_allclose(-hessian / 2, flow.y[:, -1].reshape(2, 2), atol=1e-9)


def test_optimal_gain_beats_another():
    best = df.linear_quadratic(LQ).value(jnp.asarray(0.0), jnp.ones((2,)))
    other = df.linear_quadratic(LQ, GAIN).value(jnp.asarray(0.0), jnp.ones((2,)))
    assert best > other + 1e-3


@pytest.mark.parametrize(
    "problem",
    [
        df.ornstein_uhlenbeck(),
        df.call_option(),
        df.geometric_basket(),
        df.mean_variance(),
        df.linear_quadratic(LQ),
    ],
    ids=lambda x: x.name,
)
def test_simulated_return_is_the_value(problem, key):
    time = df.mesh(1.0, 1 / 125)
    paths = df.simulate(problem, key, time, 4000, quadrature="trapezoid")
    weight = np.exp(-problem.discount_rate * np.asarray(time))
    total = weight[:-1] @ (np.asarray(paths.reward) / 125)
    total = total + weight[-1] * np.asarray(paths.terminal)
    total = total - np.asarray(jax.vmap(problem.value, (None, 0))(0.0, paths.state[0]))
    error = total.std() / math.sqrt(len(total))
    assert abs(total.mean()) < 4 * error + 0.01


def test_exact_transitions_have_the_right_law(key):
    time = df.mesh(1.0, 0.5)
    ou = df.ornstein_uhlenbeck(0.8, 0.6)
    ou = ou._replace(initial=lambda key: jnp.ones((1,)))
    last = np.asarray(df.simulate(ou, key, time, 20000, "exact").state[-1, :, 0])
    law = scipy.stats.norm(math.exp(-0.8), 0.6 * math.sqrt((1 - math.exp(-1.6)) / 1.6))
    assert scipy.stats.kstest(last, law.cdf).pvalue > 1e-3
    last = df.simulate(df.call_option(), key, time, 20000, "exact").state[-1, :, 0]
    law = scipy.stats.norm(0.01 - 0.045, 0.3)
    assert scipy.stats.kstest(np.log(last), law.cdf).pvalue > 1e-3


def test_refined_noise_is_the_same_path(key):
    brownian = jax.jit(df.brownian, static_argnums=2)
    fine = brownian(key, df.mesh(1.0, 1 / 48), (5, 2))
    for factor in (2, 8, 16):
        coarse = brownian(key, df.mesh(1.0, factor / 48), (5, 2))
        np.testing.assert_allclose(df.coarsen(fine, factor), coarse, atol=1e-12)
    uneven = jnp.array([0.0, 0.1, 0.4, 0.5, 1.2, 1.3, 1.4, 2.0])[:7]
    fine = brownian(key, uneven, (20000,))
    variance = np.asarray(fine).var(1)
    np.testing.assert_allclose(variance, np.diff(uneven), rtol=0.05)
    between = np.corrcoef(np.asarray(fine))
    assert np.abs(between - np.eye(6)).max() < 0.03


def _gaps(problem, schemes, key, num_paths=20000):
    """Errors `[mesh, scheme, path, d]` at the horizon, all meshes on one noise."""
    counts = (4, 16, 64)
    shape = (num_paths, problem.noise_dimension)
    fine = math.sqrt(1 / counts[-1]) * jax.random.normal(key, (counts[-1], *shape))

    def run(noise):
        time = df.mesh(1.0, 1 / len(noise))
        last = [
            df.simulate(problem, key, time, num_paths, scheme, noise=noise).state[-1]
            for scheme in ("exact", *schemes)
        ]
        return jnp.stack([x - last[0] for x in last[1:]])

    return np.stack(
        [jax.jit(run)(df.coarsen(fine, counts[-1] // count)) for count in counts]
    )


def _order(errors):
    return -np.polyfit(np.log([4, 16, 64]), np.log(errors), 1)[0]


def test_strong_and_weak_orders(key):
    stock = df.call_option(rate=0.5, volatility=0.8)
    gaps = _gaps(stock, ("euler", "milstein"), key)
    size = np.sqrt((gaps**2).mean((2, 3)))
    assert abs(_order(size[:, 0]) - 0.5) < 0.1
    assert abs(_order(size[:, 1]) - 1.0) < 0.1
    gaps = _gaps(df.call_option(rate=0.5, volatility=0.2), ("euler",), key)
    assert abs(_order(abs(gaps.mean((1, 2, 3)))) - 1.0) < 0.15


def test_milstein_with_several_noises_is_of_order_one(key):
    gaps = _gaps(df.geometric_basket((0.5, 0.9), 0.0), ("milstein",), key, 4000)
    assert abs(_order(np.sqrt((gaps**2).mean((1, 2, 3)))) - 1.0) < 0.1


def test_transitions_hold_the_horizon(key):
    problem = df.ornstein_uhlenbeck()
    paths = df.simulate(problem, key, df.mesh(1.0, 0.25), 3)
    batch = df.transitions(problem, paths)
    np.testing.assert_array_equal(batch.discount[:, 0], [1, 1, 1, 0])
    assert not batch.truncated.any()
    np.testing.assert_allclose(batch.observation[1, :, 0], 0.25)
    np.testing.assert_array_equal(batch.observation[1:], batch.next_observation[:-1])
    expected = 0.25 * paths.reward[-1] + math.exp(-0.025) * paths.terminal
    np.testing.assert_allclose(batch.reward[-1], expected)
    endless = df.ornstein_uhlenbeck(horizon=math.inf)
    batch = df.transitions(endless, df.simulate(endless, key, df.mesh(2.0, 0.5), 3))
    np.testing.assert_array_equal(batch.truncated[:, 0], [0, 0, 0, 1])
    assert batch.discount.all() and batch.observation.shape == (4, 3, 1)


def test_environment_agrees_with_simulation(key):
    problem = df.linear_quadratic(LQ._replace(temperature=0.0), GAIN)
    env = df.make(problem, 0.1)
    step = jax.jit(env.step)
    state, observation = env.reset(key)
    total, x = 0.0, np.asarray(state.state)
    for i in range(10):
        noise_key = jax.random.fold_in(key, i)
        action = -GAIN @ x
        state, result = step(state, jnp.asarray(action), noise_key)
        noise = math.sqrt(0.1) * np.asarray(jax.random.normal(noise_key, (2,)))
        total = -(x @ LQ.state_cost @ x + 0.7 * action @ action) * 0.1
        x = x + 0.1 * (LQ.dynamics @ x + LQ.control @ action) + LQ.noise @ noise
        if i == 9:
            total -= math.exp(-0.02) * (x @ LQ.terminal_cost @ x)
        np.testing.assert_allclose(result.reward, total)
        np.testing.assert_allclose(result.observation, [(i + 1) / 10, *x])
        assert bool(result.terminated) == (i == 9) and not result.truncated


def test_explosion_stops_the_environment(key):
    wild = df.ornstein_uhlenbeck()._replace(drift=lambda t, x, a: x**9 * 1e6)
    wild = wild._replace(initial=lambda key: jnp.full((1,), 1e3))
    env = df.make(wild, 0.25)
    state, _ = env.reset(key)
    for _ in range(12):
        state, result = env.step(state, jnp.zeros((1,)), key)
        if result.truncated:
            break
    assert result.info["exploded"] == 1 and result.reward == 0
    assert np.isfinite(result.observation).all() and not result.terminated


def test_endless_environment_is_truncated(key):
    env = df.make(df.ergodic_lq(), 0.5, duration=1.0)
    state, _ = env.reset(key)
    state, result = env.step(state, jnp.ones((1,)), key)
    assert not result.truncated
    state, result = env.step(state, jnp.ones((1,)), key)
    assert result.truncated and not result.terminated
    assert env.spec.time_limit == 2 and env.spec.control_frequency == 2.0


@pytest.mark.parametrize(
    "problem", [df.mean_variance(), df.linear_quadratic(LQ)], ids=lambda x: x.name
)
def test_under_its_own_policy_the_environment_has_the_value(problem, key):
    # The agent's actions do nothing, and the entropy counts: without it the returns
    # would miss the value by several times the bound below.
    env = df.make(problem, 1 / 100, own_policy=True)
    source = episodes(env, num_envs=4000)
    weight = np.exp(-problem.discount_rate * np.arange(100) / 100)

    @jax.jit
    def batch_of(action):
        actions = jnp.full((source.num_envs, problem.action_dimension), action)
        policy = Policy(lambda observation, carry, key: (actions, carry, {}), tuple)
        return source.next((), policy, key)[1]

    total = []
    for action in (0.0, 9.0):
        batch = batch_of(action)
        total.append(weight @ np.asarray(batch.reward))
        assert np.all(np.asarray(batch.discount[:, 0]) == [1.0] * 99 + [0.0])
    np.testing.assert_array_equal(*total)
    start = batch.observation[0, :, 1:]
    error = total[0] - np.asarray(jax.vmap(problem.value, (None, 0))(0.0, start))
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(len(error)) + 0.01
    assert abs(problem.temperature) > 0


def test_diffusions_by_name(key):
    for name in catalogue.names():
        env = envs.make(f"diffusion/{name}")
        state, observation = env.reset(key)
        state, result = env.step(state, jnp.zeros(env.spec.action.shape), key)
        assert env.spec.name == f"diffusion/{name}"
        assert observation.shape == result.observation.shape
        assert observation.shape == env.spec.observation.shape
        assert env.spec.time_limit == (
            500 if name in ("ergodic_lq", "pendulum") else 50
        )
    env = envs.make("diffusion/mean_variance", start=2.0, horizon=0.5, step_size=0.1)
    np.testing.assert_array_equal(env.reset(key)[1], [0.0, 2.0])
    assert env.spec.time_limit == 5
    endless = envs.make("diffusion/ornstein_uhlenbeck", horizon=math.inf, duration=3)
    assert endless.spec.time_limit == 150 and endless.spec.observation.shape == (1,)
    with pytest.raises(TypeError, match="no option strik; .*scheme.*strike"):
        envs.make("diffusion/call_option", strik=1.0)
    with pytest.raises(ValueError, match="nearest step that does is 0.0196"):
        envs.make("diffusion/call_option", horizon=0.51)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: df.mesh(1.0, 0.3), "nearest step that does is 0.333"),
        (lambda: df.mesh(1.0, -0.1), "positive"),
        (lambda: df.mesh(math.inf, 0.1), "horizon must be positive and finite"),
        (lambda: df.ornstein_uhlenbeck(noise=math.nan), "noise must be finite"),
        (lambda: df.ornstein_uhlenbeck(horizon=-1.0), "horizon must be positive"),
        (
            lambda: df.ornstein_uhlenbeck(horizon=math.inf, discount_rate=0.0),
            "needs discount_rate > 0",
        ),
        (lambda: df.call_option(volatility=0.0), "volatility must be positive"),
        (lambda: df.geometric_basket(correlation=-0.9), "impossible for 3 assets"),
        (lambda: df.mean_variance(df.Market(target=math.inf)), "target must be finite"),
        (lambda: df.ergodic_value(1.5, 0.0, 1.0), r"slope\^2|slope² < 2"),
        (
            lambda: df.linear_quadratic(LQ._replace(noise=np.full((2, 2), np.nan))),
            "noise must be finite",
        ),
        (
            lambda: df.linear_quadratic(
                LQ._replace(horizon=math.inf), np.array([[0.0, -3.0]])
            ),
            "infinite",
        ),
        (lambda: df.make(df.ergodic_lq(), 0.1), "give duration"),
        (lambda: df.make(df.mean_variance(), 0.3), "does not divide"),
        (lambda: df.make(df.mean_variance(), 0.1, scheme="exact"), "no exact"),
        (lambda: df.make(df.mean_variance(), 0.1, scheme="heun"), "unknown scheme"),
    ],
)
def test_bad_parameters(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_bad_simulations(key):
    ou = df.ornstein_uhlenbeck()
    time = df.mesh(1.0, 0.1)
    with pytest.raises(ValueError, match="horizon at 1.0"):
        df.simulate(ou, key, df.mesh(2.0, 0.1), 3)
    with pytest.raises(ValueError, match="increase strictly"):
        df.simulate(ou, key, time[::-1], 3)
    with pytest.raises(ValueError, match="unknown quadrature"):
        df.simulate(ou, key, time, 3, quadrature="simpson")
    broken = ou._replace(drift=lambda t, x, a: x / 0.0)
    with pytest.raises(ValueError, match="drift is not finite at time 0"):
        df.simulate(broken, key, time, 3)
    flat = ou._replace(volatility=lambda t, x, a: jnp.ones((1,)))
    with pytest.raises(ValueError, match=r"volatility must have shape \(1, 1\)"):
        df.simulate(flat, key, time, 3)
    wild = ou._replace(drift=lambda t, x, a: 50.0 * x**3)
    with pytest.raises(ValueError, match="exploded on .* take a smaller step"):
        df.simulate(wild, key, time, 30)
