"""Exact worlds of policy alignment: hypergradients, and where half of one fails."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.parl import linear_quadratic as lq
from experiments.parl import worlds
from rlx.ops import bilevel, policy_dependence

pytestmark = pytest.mark.usefixtures("double_precision")


def finite_difference(function, x, size=1e-5):
    function = jax.jit(function)
    steps = size * np.eye(len(x))
    return np.array([(function(x + s) - function(x - s)) / (2 * size) for s in steps])


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def tabular(name):
    world = worlds.TABULAR[name]()
    known = worlds.segments(world)
    upper = functools.partial(worlds.likelihood, world, known)
    lower = functools.partial(worlds.lower, world)
    best = functools.partial(worlds.best_policy, world)
    count = world.features.shape[-1]
    return upper, lower, best, jnp.linspace(0.9, -0.4, count)


def linear_quadratic():
    return lq.upper, lq.lower, lq.best_policy, jnp.array([0.3, -0.2])


PROBLEMS = {
    "garnet": functools.partial(tabular, "garnet"),
    "lure": functools.partial(tabular, "lure"),
    "linear_quadratic": linear_quadratic,
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_hypergradients_agree_with_finite_differences(name):
    upper, lower, best, nu = PROBLEMS[name]()
    expected = finite_difference(lambda nu: upper(nu, best(nu)), nu)
    policy = jax.jit(best)(nu)
    slope = jax.jit(jax.grad(lower, 1))(nu, policy)
    assert np.abs(slope).max() < 1e-12  # the lower problem is solved

    curvature = jax.jit(jax.hessian(lower, 1))(nu, policy).reshape((policy.size,) * 2)
    step = 1 / np.linalg.eigvalsh(curvature).max()

    @functools.partial(jax.jit, static_argnums=0)
    def implicit(solver, nu, policy):
        return bilevel.implicit(upper, lower, nu, policy, solver)

    found = {
        "dense": implicit(bilevel.dense(), nu, policy),
        "cg": implicit(bilevel.conjugate_gradient(30), nu, policy),
        "neumann": implicit(bilevel.neumann(3000, step), nu, policy),
        "unroll": jax.jit(
            lambda nu, policy: bilevel.unroll(
                upper, bilevel.gradient_step(lower, step), nu, policy, 3000
            )[0]
        )(nu, policy),
    }
    for solver, gradient in found.items():
        assert error(gradient.total(), expected) < 1e-6, solver
        assert error(gradient.direct, expected) > 1e-2, solver


@pytest.mark.parametrize("name", ["garnet", "lure"])
def test_the_closed_form_needs_no_differentiation_and_agrees(name):
    upper, lower, best, nu = PROBLEMS[name]()
    world = worlds.TABULAR[name]()
    direct, implicit = worlds.closed_form(world, worlds.segments(world), np.asarray(nu))
    expected = finite_difference(lambda nu: upper(nu, best(nu)), nu)
    assert error(direct + implicit, expected) < 1e-7
    fixed = best(nu)
    assert error(direct, jax.grad(upper)(nu, fixed)) < 1e-10


def test_segments_are_a_distribution_and_returns_add_up():
    world = worlds.garnet()
    known = worlds.segments(world)
    logits = worlds.best_policy(world, jnp.array([0.5, 0.2, -0.3]))
    chance = np.exp(np.asarray(known.log_prob(logits)))
    np.testing.assert_allclose(chance.sum(), 1.0)
    # The return by following the state distribution forward.
    policy, state, total = np.asarray(jax.nn.softmax(logits)), world.start, 0.0
    for _ in range(world.length):
        total += np.einsum("s,sa,sa", state, policy, world.true_reward)
        state = np.einsum("s,sa,sat->t", state, policy, world.transition)
    np.testing.assert_allclose(worlds.true_return(world, known, logits), total)
    both = known.preference + known.preference.T
    np.testing.assert_allclose(both, 1.0)


# ------------------------------------------------------------------- from trajectories


def test_sampled_terms_are_unbiased():
    """Weighing every trajectory by its probability gives the exact derivatives."""
    world = worlds.garnet(1)
    known = worlds.segments(world)
    generator = np.random.default_rng(0)
    logits, direction = jnp.asarray(generator.normal(size=(2, 4, 2)))
    utility = jnp.asarray(generator.normal(size=known.state.shape[1]))
    nu = jnp.array([0.5, -1.0, 0.2])
    chance = jnp.exp(known.log_prob(logits))

    def log_prob(logits):
        return jax.nn.log_softmax(logits)[known.state, known.action]

    def surrogate(logits):
        return chance @ policy_dependence.score_term(log_prob(logits), utility)

    exact = jax.grad(lambda logits: jnp.exp(known.log_prob(logits)) @ utility)(logits)
    np.testing.assert_allclose(jax.grad(surrogate)(logits), exact, atol=1e-12)

    def value(nu, logits):
        reward = world.reward(nu)[known.state, known.action]
        discount = 0.9 ** jnp.arange(3.0)
        return jnp.exp(known.log_prob(logits)) @ (discount @ reward)

    def plain(nu):
        tangent = jax.jvp(log_prob, (logits,), (direction,))[1]
        weight = policy_dependence.reward_weight(tangent)
        reward = world.reward(nu)[known.state, known.action]
        return chance @ policy_dependence.reward_term(weight, reward, 0.9)

    exact = bilevel.cross_product(value, nu, logits, direction)
    np.testing.assert_allclose(jax.grad(plain)(nu), exact, atol=1e-12)


def test_padding_takes_no_part():
    log_prob = jnp.array([[0.1, 0.2], [0.3, jnp.nan]])
    mask = jnp.array([[True, True], [True, False]])
    found = policy_dependence.score_term(log_prob, jnp.array([2.0, 3.0]), mask)
    np.testing.assert_allclose(found, [0.8, 0.6])
    weight = policy_dependence.reward_weight(log_prob, mask)
    np.testing.assert_allclose(weight, [[0.1, 0.2], [0.4, 0.0]])
    reward = jnp.array([[1.0, 1.0], [1.0, jnp.nan]])
    found = policy_dependence.reward_term(weight, reward, 0.5)
    np.testing.assert_allclose(found, [0.3, 0.2])


def test_at_the_best_policy_the_curvature_is_the_fisher_matrix():
    """∂²(−V) = λ F under the un-normalised occupancy, step by step of a sum."""
    world, nu = worlds.garnet(), jnp.array([0.5, 0.2, -0.3])
    logits = worlds.best_policy(world, nu)
    policy = np.asarray(jax.nn.softmax(logits))
    flow = np.einsum("sa,sat->st", policy, world.transition)
    occupancy = np.linalg.solve(np.eye(4) - world.gamma * flow.T, np.full(4, 0.25))

    def term(y, item):
        old, new = (jax.nn.log_softmax(x[item["state"]]) for x in (logits, y))
        return item["weight"] * jnp.exp(old) @ (old - new)

    items = {
        "state": jnp.arange(4),
        "weight": world.temperature * jnp.asarray(occupancy),
    }
    vector = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)))
    fisher = bilevel.summed_product(term, logits, items)
    lower = functools.partial(worlds.lower, world)
    exact = jax.jit(bilevel.hessian_product(lower, nu, logits))
    np.testing.assert_allclose(jax.jit(fisher)(vector), exact(vector), atol=1e-10)
    # And so the natural gradient is the hypergradient.
    upper = functools.partial(worlds.likelihood, world, worlds.segments(world))
    solver = bilevel.conjugate_gradient(20)
    implicit = jax.jit(bilevel.implicit, static_argnums=(0, 1, 4, 5))
    found = implicit(upper, lower, nu, logits, solver, fisher)
    expected = implicit(upper, lower, nu, logits, bilevel.dense())
    assert error(found.implicit, expected.implicit) < 1e-8


# ------------------------------------------------------------------ the proven failure


def lure_fields(nu):
    """The truncated and the full gradient of the lure, from its table of prizes.

    With γ/λ = 2 the chance of A is σ(−ν).
    """
    share = 1 / (1 + np.exp(nu))
    slope = -share * (1 - share)
    half = np.ones_like(nu) / 2
    chance = np.stack([share, share, 1 - share, 1 - share]) * half
    change = np.stack([slope, slope, -slope, -slope]) * half
    zero = np.zeros_like(nu)
    reward = np.stack([2 + zero, zero - 2, nu, zero])
    true = np.array([4.0, 0.0, 2.0, 0.0])
    wanted = 1 / (1 + np.exp(true[None, :] - true[:, None]))[..., None]
    difference = reward[:, None] - reward[None, :]
    utility = -wanted * np.logaddexp(0, -difference)
    utility -= (1 - wanted) * np.logaddexp(0, difference)
    known = np.array([0.0, 0.0, 1.0, 0.0])
    seen = (known[:, None] - known[None, :])[..., None]
    pair = chance[:, None] * chance[None, :]
    moved = change[:, None] * chance[None, :] + chance[:, None] * change[None, :]
    fit = (wanted - 1 / (1 + np.exp(-difference))) * seen
    direct = (pair * fit).sum((0, 1)) - 0.01 * nu
    return direct, direct + (moved * utility).sum((0, 1))


def test_the_failure_is_proven():
    """On [-6, 6] each field has its only zeros in a short interval, and points there.

    Between grid points h apart a field with |slope| <= L changes by at most L h / 2, so
    where it exceeds that in size it has no zero. The truncated field: |Δφ| <= 1, and
    |d log π| <= 1 for each segment, so L = 2 + 1/4 + μ. The full one: |U| <= log 2 + 8
    and L = 1/4 + 2·2 + (2² + 1/2)(log 2 + 8) + μ.
    """
    grid, spacing = np.linspace(-6, 6, 240_001, retstep=True)
    bounds = 2.26, 0.26 + 4 + 4.5 * (np.log(2) + 8)
    ends = []
    for field, bound in zip(lure_fields(grid), bounds, strict=True):
        unsure = grid[np.abs(field) <= bound * spacing / 2]
        low, high = unsure.min() - spacing, unsure.max() + spacing
        assert high - low < 0.2
        assert (field[grid < low] > 0).all() and (field[grid > high] < 0).all()
        ends.append((low, high))
    truncated, full = ends
    # The chance of A, which is right, is σ(−ν).
    assert 1 / (1 + np.exp(truncated[0])) < 0.3
    assert 1 / (1 + np.exp(full[1])) > 0.9


def test_the_lure_in_the_test_is_the_one_of_the_experiment():
    world = worlds.lure()
    known = worlds.segments(world)
    for nu in (-2.0, 0.5, 1.7):
        direct, implicit = worlds.closed_form(world, known, np.array([nu]))
        expected = lure_fields(np.array([nu]))
        np.testing.assert_allclose([direct, direct + implicit], expected, atol=1e-10)


def test_the_study_of_control_counts_labels_and_samples():
    from experiments.parl import summary

    grid = np.array([1.0, 10.0, 100.0])
    # Half of the way from 10 to 100 in logarithms.
    assert summary.needed(np.array([0.0, 1.0, 3.0]), grid, 2.0) == pytest.approx(
        10**1.5
    )
    assert summary.needed(np.array([5.0, 1.0, 3.0]), grid, 2.0) == 1.0
    assert summary.needed(np.array([0.0, 1.0, 1.5]), grid, 2.0) == np.inf
    # The first needs a tenth of what the second does, for every seed.
    fast = np.array([[0.0, 0.0], [4.0, 4.0], [4.0, 4.0]])
    slow = np.array([[0.0, 0.0], [0.0, 0.0], [4.0, 4.0]])
    found = summary.ratio([fast, slow], grid, 4.0)
    assert found["ratio"] == pytest.approx(0.1)
    assert found["interval_95"] == pytest.approx([0.1, 0.1])
    # One that never arrives has no ratio, and says so.
    found = summary.ratio([fast, 0 * slow], grid, 4.0)
    assert found["ratio"] is None
    assert found["interval_80"] is None
    assert found["arrives"] == [1.0, 0.0]


def test_a_plan_spreads_every_budget_over_as_many_batches():
    from experiments.parl.control import PLAN

    assert PLAN.sessions(60) == {
        "num_labels": [10, 40, 160],
        "session_interval": [60.0, 15.0, 3.0],
    }
    half = dataclasses.replace(PLAN, asking=0.5, budgets=(30,))
    assert half.sessions(60)["session_interval"] == [10.0]
    fields = PLAN.labelled(crop=3)
    assert fields["label_capacity"] == 160 and fields["crop"] == 3


def test_the_study_of_walker_joins_its_pieces_by_seed():
    from experiments.parl import walker

    def piece(seed, value):
        returns = [[[0.0], [0.0]], [[value], [10 * value]]]  # [points, budgets, seeds]
        found = {"arm": "pebble", "seeds": [seed], "steps": [0, 8]}
        metrics = {"agreement": [[0.5], [seed]]}
        labels = [[25], [50]]
        return {**found, "returns": returns, "labels": labels, "metrics": metrics,
                "wall_seconds": 1.0}  # fmt: skip

    merged = walker.merge({"pebble/1": piece(1, 2.0), "pebble/0": piece(0, 1.0)})
    assert set(merged) == {"pebble"}
    assert merged["pebble"]["seeds"] == [0, 1]
    assert merged["pebble"]["returns"][-1] == [[1.0, 2.0], [10.0, 20.0]]
    assert merged["pebble"]["labels"] == [[25, 25], [50, 50]]
    assert merged["pebble"]["metrics"]["agreement"][1] == [0, 1]
    assert merged["pebble"]["wall_seconds"] == 2.0


@pytest.mark.slow
def test_every_arm_of_the_walker_study_is_trained_summarised_and_drawn(tmp_path):
    """Two batches of each, from one command to the figure; nothing is trained twice."""
    path = tmp_path / "walker.json"
    command = [sys.executable, "-m", "experiments.parl.walker", "--tiny"]
    command += ["--seeds", "0", "--record", str(path)]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    for arm in ("ppo", "truncated", "likelihood", "utility", "sac", "pebble", "surf"):
        assert f"{arm}/0 " in first.stdout
    record = json.loads(path.read_text())
    assert record["pieces"]["utility/0"]["labels"] == [[25], [25]]
    assert path.with_suffix(".png").stat().st_size > 10_000
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "/0 " not in again.stdout
