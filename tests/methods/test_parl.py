"""A-PARL: its estimators on a world where all trajectories can be written down."""

from __future__ import annotations

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from envs import probe
from rlx import train
from rlx.data.rollout import rollout
from rlx.methods import _parl, _parl_learning, _preference, parl
from rlx.ops import distributions, policy_dependence, preference
from rlx.ops.segments import Where
from rlx.types import Transition
from tests.methods import preference_learning

SMALL = {
    **preference_learning.REWARD,
    "hidden_sizes": (8,),
    "num_epochs": 2,
    "num_minibatches": 2,
    "session_interval": 2,
    "num_candidates": 4,
    "upper_steps": 3,
    "unlabelled_pairs": 6,
}


def case(env, **fields):
    config = parl.Config(**{**SMALL, **fields})
    return parl.make(env.spec, config), rollout(env, num_envs=4, length=8)


def conformance_cases():
    return {"pendulum": case(probe.make("pendulum", time_limit=8))}


def test_worked_numbers():
    # As PPO's: a ratio of 2 with A = 1 is clipped to 1.2, with A = -1 it is not.
    log_prob = jnp.log(jnp.array([2.0, 2.0]))
    losses = parl.loss(log_prob, jnp.zeros(2), jnp.array([1.0, -1.0]), clip=0.2)
    np.testing.assert_allclose(losses, [-1.2, 2.0], rtol=1e-6)
    # The implicit term of length 10 is cut to ρ = ½ of the direct one's 4.
    total, report = _parl.combine(
        {"x": jnp.array([4.0])}, {"x": jnp.array([10.0])}, 1.0, 0.5
    )
    np.testing.assert_allclose(total["x"], [6.0])
    np.testing.assert_allclose(report["implicit_scale"], 0.2)
    utility = _parl.utilities("utility", jnp.zeros(3), jnp.array([1.0, 0.5, 0.0]))
    np.testing.assert_allclose(utility, [[0.25, -0.25], [0, 0], [-0.25, 0.25]])


# ----------------------------------------------------------- two states, three steps

STEPS, GAMMA, LAMBDA = 3, 0.9, 0.5
ACTIONS = np.array(list(itertools.product([0, 1], repeat=STEPS)))
"""At θ = 0 the policy is uniform and the world deterministic: these eight trajectories
have equal chances, and means over them are expectations."""


def states():
    """The action taken is the next state; the first state is 0."""
    before = np.concatenate([np.zeros((8, 1), int), ACTIONS[:, :-1]], 1)
    return before.T


def distribution(params, observation):
    return distributions.Categorical(jnp.take(params, observation, axis=0))


def world():
    first = np.zeros((STEPS, 8), bool)
    first[0] = True
    seen = _parl.Trajectories(
        jnp.asarray(states()), jnp.asarray(ACTIONS.T), jnp.asarray(first)
    )
    return _parl.Lower(distribution, jnp.zeros((2, 2)), seen, GAMMA, LAMBDA)


def chances(theta):
    """Probability of each of the eight trajectories `[8]`."""
    log_pi = jax.nn.log_softmax(theta)
    return jnp.exp(jnp.sum(log_pi[states(), ACTIONS.T], 0))


@pytest.fixture
def rewards(generator):
    """r_ν(s, a) = ν[s, a] for some ν, on all trajectories `[3, 8]`."""
    nu = jnp.asarray(generator.normal(size=(2, 2)))
    return nu, nu[states(), ACTIONS.T]


def test_the_slope_is_that_of_the_enumerated_expectation(
    rewards, generator, double_precision
):
    utility = jnp.asarray(generator.normal(size=(8, 8)))
    first, second = (x.ravel() for x in np.meshgrid(range(8), range(8), indexing="ij"))
    pairs = Where(
        start=jnp.zeros((64, 2), int), stream=jnp.asarray(np.stack([first, second], 1))
    )
    flat = jnp.stack([utility.ravel()] * 2, 1)
    found = _parl.slope(world(), pairs, STEPS, flat, jnp.ones(64))

    def expected(theta):
        p = chances(theta)
        return p @ utility @ p

    # The mean over the others of all 64 is 64/63 of what independent draws would see.
    np.testing.assert_allclose(
        found * 63 / 64, jax.grad(expected)(jnp.zeros((2, 2))), atol=1e-12
    )


def test_a_segments_slope_counts_the_actions_that_led_to_it(
    generator, double_precision
):
    """Utilities of the last step alone, which the first action decides too."""
    utility = jnp.asarray(generator.normal(size=(2, 2)))
    last = utility[states()[2], ACTIONS.T[2]]
    pairs = Where(start=jnp.full((8, 2), 2), stream=jnp.stack([jnp.arange(8)] * 2, 1))
    flat = jnp.stack([last, jnp.zeros(8)], 1)
    found = _parl.slope(world(), pairs, 1, flat, jnp.ones(8))
    expected = jax.grad(lambda theta: chances(theta) @ last)(jnp.zeros((2, 2)))
    np.testing.assert_allclose(found * 7 / 8, expected, atol=1e-12)
    assert np.abs(expected[0]).min() > 1e-3


def test_the_curvature_is_the_fisher_matrix_of_the_occupancy(double_precision):
    product = _parl.curvature(world(), 0.0)
    matrix = jax.vmap(lambda v: product(v.reshape(2, 2)).ravel())(jnp.eye(4))
    # State 0 at step 0, each state with chance ½ at steps 1 and 2.
    occupancy = np.array([1 + 0.5 * (0.9 + 0.81), 0.5 * (0.9 + 0.81)])
    block = np.array([[0.25, -0.25], [-0.25, 0.25]])
    expected = LAMBDA * np.kron(np.diag(occupancy), block)
    np.testing.assert_allclose(matrix, expected, atol=1e-12)


def test_the_implicit_term_is_the_enumerated_cross_derivative(
    rewards, double_precision
):
    nu, _ = rewards
    slope = jnp.asarray([[0.3, -0.3], [-0.2, 0.2]])
    solution = _parl.implicit_weight(world(), slope, "cg_fisher", 10, 0.0)
    assert solution.residual < 1e-6
    product = _parl.curvature(world(), 0.0)
    matrix = jax.vmap(lambda v: product(v.reshape(2, 2)).ravel())(jnp.eye(4))
    u = jnp.linalg.pinv(matrix) @ slope.ravel()

    def value(nu, theta):
        discount = GAMMA ** jnp.arange(STEPS)[:, None]
        return chances(theta) @ jnp.sum(discount * nu[states(), ACTIONS.T], 0)

    def along(nu):
        return jax.jvp(
            lambda theta: value(nu, theta), (jnp.zeros((2, 2)),), (u.reshape(2, 2),)
        )[1]

    expected = jax.grad(along)(nu)
    found = jax.grad(lambda nu: jnp.sum(solution.weight * nu[states(), ACTIONS.T]))(nu)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    dense = _parl.implicit_weight(world(), slope, "dense", 1, 0.0)
    np.testing.assert_allclose(dense.weight, solution.weight, atol=1e-6)
    series = _parl.implicit_weight(world(), slope, "neumann", 200, 0.0)
    np.testing.assert_allclose(series.weight, solution.weight, atol=1e-6)
    none = _parl.implicit_weight(world(), slope, "none", 1, 0.0)
    np.testing.assert_array_equal(none.weight, 0.0)


def test_a_constant_reward_does_not_reach_the_implicit_term(double_precision):
    """Moving the policy moves no return of a constant reward: Σ w γʰ has mean 0."""
    slope = jnp.asarray([[0.3, -0.3], [-0.2, 0.2]])
    weight = _parl.implicit_weight(world(), slope, "cg_fisher", 10, 0.0).weight
    np.testing.assert_allclose(jnp.sum(weight), 0.0, atol=1e-12)
    assert np.abs(weight).max() > 0.01


def test_sums_begin_anew_with_an_episode():
    first = jnp.array([True, False, True, False, False])[:, None]
    x = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    found = policy_dependence.episode_sum(x, first)[:, 0]
    np.testing.assert_allclose(found, [1, 3, 3, 7, 12])
    discount = policy_dependence.episode_discount(first, 0.5)[:, 0]
    np.testing.assert_allclose(discount, [1, 0.5, 1, 0.5, 0.25])


# ------------------------------------------------------------------------ the method


def test_centred_weights_are_unbiased_where_the_policy_ends_episodes(
    rewards, double_precision
):
    """All 64 pairs of streams; action 1 in the first state ends an episode."""
    lower, (_, reward) = world(), rewards
    first = lower.trajectories.first.at[1].set(ACTIONS.T[0] == 1)
    u = jnp.asarray([[0.3, -0.3], [-0.2, 0.5]])
    sums = {False: [], True: []}
    for pair in itertools.product(range(8), repeat=2):
        index = jnp.array(pair)
        seen = _parl.Trajectories(
            *(jnp.asarray(x)[:, index] for x in (states(), ACTIONS.T, first))
        )
        two = lower._replace(trajectories=seen)
        for centred, found in sums.items():
            weight = _parl.reward_weight(two, u, centred) * jnp.sum(seen.first)
            found.append(float(jnp.sum(weight * reward[:, index])))
    np.testing.assert_allclose(np.mean(sums[True]), np.mean(sums[False]), atol=1e-12)
    assert abs(np.mean(sums[False])) > 0.01
    assert np.abs(np.subtract(sums[True], sums[False])).max() > 0.01


def test_unlabelled_pairs_are_a_control_variate(generator, double_precision):
    """What is expected is the mean over answers, and leaves the slope where it was."""
    difference = jnp.asarray(generator.normal(size=64))
    p = jax.nn.sigmoid(difference)[:, None]
    for upper in ("utility", "likelihood"):
        answers = jnp.zeros(64), jnp.ones(64)
        either = [_parl.utilities(upper, difference, y) for y in answers]
        expected = _parl.expected_utilities(upper, difference)
        np.testing.assert_allclose(expected, (1 - p) * either[0] + p * either[1])
    pairs = Where(
        start=jnp.zeros((64, 2), int),
        stream=jnp.asarray(generator.integers(0, 8, (64, 2))),
    )
    utility = jnp.asarray(generator.normal(size=(64, 2)))
    one = jnp.ones(64)
    whole, left, rest = (
        _parl.slope(world(), pairs, STEPS, x, one)
        for x in (utility, utility - expected, expected)
    )
    np.testing.assert_allclose(left + rest, whole, atol=1e-12)
    assert np.abs(rest).max() > 1e-3


@pytest.fixture(scope="module")
def terms():
    """Both terms on some labels and trajectories, and the reward."""
    generator = np.random.default_rng(3)
    spec = probe.make("pendulum", time_limit=8).spec
    config = parl.Config(**SMALL)
    reward = _preference.make_reward(spec, config)
    labels = preference_learning.buffer(spec, generator)
    index = jnp.asarray(generator.integers(0, 6, (3, 4)))
    observation = jnp.asarray(generator.normal(size=(8, 4, 3)), jnp.float32)
    action = jnp.asarray(generator.normal(size=(8, 4, 1)), jnp.float32)
    zero = jnp.zeros((8, 4))
    seen = Transition(observation, action, zero, zero, zero > 0, observation)
    weight = jnp.asarray(generator.normal(size=(8, 4)), jnp.float32)
    params = reward.members.init(jax.random.key(1))

    @jax.jit
    def both(params):
        found = _parl_learning.hypergradient(
            config, reward, params, labels, index, seen, weight
        )
        learned = reward.mean(params, observation, action)
        scale = jax.lax.stop_gradient(jnp.std(learned))

        def pushed(nu):
            return jnp.sum(weight * reward.mean(nu, observation, action)) / scale

        def pebble(nu):
            return _preference.label_loss(reward, nu, labels, index).loss

        return found, jax.grad(pushed)(params), jax.grad(pebble)(params)

    return both(params)


def test_with_kappa_0_the_gradient_is_pebbles(terms):
    (direct, implicit, _), _, pebble = terms
    expected = jax.tree.map(jnp.negative, pebble)
    for kappa, cap in ((0.0, 1.0), (1.0, 0.0)):
        total, _ = _parl.combine(direct, implicit, kappa, cap)
        chex.assert_trees_all_close(total, expected, rtol=1e-6)
    total, _ = _parl.combine(direct, implicit, 1.0, 1.0)
    sizes = [jnp.linalg.norm(ravel_pytree(x)[0]) for x in (total, direct)]
    assert abs(sizes[0] - sizes[1]) > 1e-3


def test_the_implicit_term_is_scaled_as_the_policys_reward_is(terms):
    (_, implicit, _), expected, _ = terms
    chex.assert_trees_all_close(implicit, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def run():
    """Metrics and final learners with κ = 1 and κ = 0, vmapped: one program."""
    env = probe.make("pendulum", time_limit=8)
    source = rollout(env, num_envs=4, length=8)

    def one(kappa, budget):
        config = parl.Config(**{**SMALL, "kappa": kappa, "num_labels": budget})
        method = parl.make(env.spec, config)
        state = train.init(method, source, jax.random.key(0))
        state, metrics = train.run(method, source, state, 8)
        return state.learner, metrics

    return jax.jit(jax.vmap(one))(jnp.array([1.0, 0.0]), jnp.array([6.0, 6.0]))


def test_sessions_come_every_k_batches_until_the_budget_is_spent(run):
    _, metrics = run
    np.testing.assert_array_equal(metrics["asked"][0], [4, 4, 6, 6, 6, 6, 6, 6])


def test_both_terms_are_visible_and_the_cap_holds(run):
    learner, metrics = run
    after = {name: np.asarray(metrics[name])[:, 0] for name in _parl_learning.REPORT}
    assert np.all(after["direct_norm"] > 0)
    assert np.all(after["implicit_norm"] > 0)
    np.testing.assert_array_equal(after["implicit_scale"] > 0, [True, False])
    assert np.all(np.abs(after["cosine"]) <= 1)
    assert np.all(np.asarray(metrics["residual"])[:, 0] < 1e-2)
    rewards = learner.params["reward"]
    apart = [float(jnp.abs(x[0] - x[1]).max()) for x in jax.tree.leaves(rewards)]
    assert max(apart) > 1e-4


def test_the_true_reward_is_read_by_the_teacher_alone():
    """On discrete actions, with the other upper level and another solver."""
    env = probe.make("cartpole")

    def silent(key, first, second):
        del key, second
        none = jnp.zeros(first.shape[1:])
        return preference.Answer(none + 0.5, none)

    config = parl.Config(**{**SMALL, "upper": "utility", "solver": "neumann"})
    method = parl.make(env.spec, config, silent)

    def run(scale):
        def step(state, action, key):
            state, result = env.step(state, action, key)
            return state, result.replace(reward=scale * result.reward)

        source = rollout(env._replace(step=step), num_envs=4, length=8)
        state = train.init(method, source, jax.random.key(0))
        return train.run(method, source, state, 3)[0].learner

    runs = jax.jit(jax.vmap(run))(jnp.array([1.0, -7.0]))
    for leaf in jax.tree.leaves(runs):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    assert int(runs.stats.labels.skipped[0]) == 8
    start = method.init(jax.random.split(jax.random.key(0), 3)[0])
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[0], runs.params["reward"]), start["reward"]
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"upper": "best"}, "upper"),
        ({"solver": "lu"}, "solver must be one of none, cg_fisher"),
        ({"num_candidates": 2}, "num_candidates"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"kappa": -1.0}, "kappa must not be negative"),
        ({"recurrent_size": 4}, "without memory"),
        ({"upper_steps": 0}, "upper_steps"),
        ({"unlabelled_pairs": -1}, "unlabelled_pairs"),
        ({"segment_length": 9}, "longer than an episode"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    spec = probe.make("pendulum", time_limit=8).spec
    config = dataclasses.replace(parl.Config(**SMALL), **fields)
    with pytest.raises(ValueError, match=message):
        parl.make(spec, config).init_stats(2)
