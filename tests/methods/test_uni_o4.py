"""Uni-O4: diversity, models, AM-Q, the gate, offline rounds and the hand-over."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.test_util import check_grads

from rlx import learner, train
from rlx.methods import _offline, _uni_o4, bc, ppo, uni_o4
from rlx.methods._uni_o4_evaluation import model_step, smallest_value
from rlx.methods._uni_o4_improvement import judge
from rlx.networks.ensemble import member
from rlx.ops import distributions, normalization
from rlx.ops.distributions import DiagonalGaussian
from rlx.types import Box, EnvSpec
from tests.methods import offline

SPEC = offline.SPEC
SMALL = {
    "hidden_sizes": (8,),
    "model_hidden_sizes": (8,),
    "num_members": 2,
    "num_models": 3,
    "num_elites": 2,
    "gate_steps": 2,
    "evaluation_starts": 4,
    "horizon": 3,
}


def config_of(**fields) -> uni_o4.Config:
    return uni_o4.Config(**{**SMALL, **fields})


def conformance_cases():
    method, source = offline.case(uni_o4, **SMALL)
    data = jax.jit(lambda: source.next((), None, jax.random.key(0))[1])()
    state = jax.jit(lambda key: learner.init(method, key))(jax.random.key(0))
    config = config_of()
    base = uni_o4.foundation(source.env.spec, config, state, data)
    return {
        "data": (method, source),
        "improvement": (uni_o4.improvement(source.env.spec, config, base), source),
    }


# ------------------------------------------------------------------- elementwise losses


def test_the_surrogate_is_ppos():
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, (50,)) for key in keys]
    ours = uni_o4.loss(*arrays, clip=0.3)
    np.testing.assert_array_equal(ours, ppo.loss(*arrays, clip=0.3))
    # Ratio 2 clipped to 1.25: -1.25 for A = 1; not clipped for A = -1.
    ratio = jnp.full((2,), np.log(2.0), jnp.float32)
    found = uni_o4.loss(ratio, jnp.zeros(2), jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(found, [-1.25, 2.0], rtol=1e-6)


def gaussians(seed, number=3, dtype=None):
    """Policies `[number, 5, 2]` and actions of the data `[5, 2]`."""
    generator = np.random.default_rng(seed)
    mean, log_scale = 0.4 * generator.normal(size=(2, number, 5, 2))
    action = 0.4 * generator.normal(size=(5, 2))
    return tuple(jnp.asarray(x, dtype or "float32") for x in (mean, log_scale, action))


def density(mean, log_scale, action):
    return scipy.stats.norm(mean, np.exp(log_scale)).logpdf(action).sum(axis=-1)


def test_diversities_by_hand():
    mean, log_scale, action = gaussians(0)
    policies = DiagonalGaussian(mean, log_scale)
    found = {
        name: uni_o4.ensemble_loss(policies, action, weight=0.5, diversity=name)
        for name in ("none", "heuristic", "distribution", "overlap")
    }
    for name in found:
        free = uni_o4.ensemble_loss(policies, action, weight=0.0, diversity=name)
        np.testing.assert_allclose(free, found["none"], rtol=1e-6)
    m, s, a = (np.asarray(x, np.float64) for x in (mean, log_scale, action))
    log_prob = density(m, s, a)
    np.testing.assert_allclose(found["none"], -log_prob, rtol=1e-4, atol=1e-5)
    for i in range(3):
        others = [j for j in range(3) if j != i]
        for b in range(5):
            nearest = max(others, key=lambda j, b=b: log_prob[j, b])
            gap = log_prob[i, b] - log_prob[nearest, b]
            expected = -log_prob[i, b] - 0.5 * gap
            np.testing.assert_allclose(found["heuristic"][i, b], expected, rtol=1e-3)
            kl = np.sum(
                s[nearest, b]
                - s[i, b]
                + (np.exp(2 * s[i, b]) + (m[i, b] - m[nearest, b]) ** 2)
                / (2 * np.exp(2 * s[nearest, b]))
                - 0.5
            )
            expected = -log_prob[i, b] - 0.5 * min(kl, 2.0)
            np.testing.assert_allclose(found["distribution"][i, b], expected, rtol=1e-3)
            overlap = 0.0
            for j in others:
                total = np.exp(2 * s[i, b]) + np.exp(2 * s[j, b])
                distance = (m[i, b] - m[j, b]) ** 2 / (4 * total)
                distance += 0.5 * np.log(total / (2 * np.exp(s[i, b] + s[j, b])))
                overlap += np.exp(-distance.sum()) / 2
            expected = -log_prob[i, b] + 0.5 * overlap
            np.testing.assert_allclose(found["overlap"][i, b], expected, rtol=1e-3)


@pytest.mark.parametrize("diversity", ["none", "heuristic", "distribution", "overlap"])
def test_members_are_moved_by_their_own_loss_alone_and_may_be_permuted(diversity):
    mean, log_scale, action = gaussians(1)

    def losses(mean):
        return uni_o4.ensemble_loss(
            DiagonalGaussian(mean, log_scale), action, weight=0.5, diversity=diversity
        )

    jacobian = jax.jit(jax.jacrev(lambda mean: losses(mean).sum(axis=1)))(mean)
    for i in range(3):
        for j in range(3):
            assert bool(jnp.any(jacobian[i, j] != 0)) is (i == j)
    order = jnp.array([2, 0, 1])
    shuffled = uni_o4.ensemble_loss(
        DiagonalGaussian(mean[order], log_scale[order]),
        action,
        weight=0.5,
        diversity=diversity,
    )
    np.testing.assert_allclose(shuffled, losses(mean)[order], rtol=1e-5)


def test_the_authors_heuristic_keeps_nothing_apart():
    """Its gradient is (1 + α) times that of behaviour cloning, exactly."""
    with jax.enable_x64(True):
        mean, log_scale, action = gaussians(2, dtype="float64")

        def total(mean, log_scale, diversity):
            return uni_o4.ensemble_loss(
                DiagonalGaussian(mean, log_scale),
                action,
                weight=0.1,
                diversity=diversity,
            ).sum()

        both = [
            jax.grad(lambda m, s, d=d: total(m, s, d), (0, 1))(mean, log_scale)
            for d in ("heuristic", "none", "overlap")
        ]
        scaled = jax.tree.map(lambda x: 1.1 * x, both[1])
        chex.assert_trees_all_close(both[0], scaled, rtol=1e-12)
        assert float(jnp.max(jnp.abs(both[2][0] - both[1][0]))) > 1e-3


def test_the_overlap_pushes_members_apart_and_one_member_is_cloning():
    # Two equal members a little off each other: descending their loss parts them.
    mean = jnp.array([[[0.01]], [[-0.01]]])
    log_scale, action = jnp.zeros((2, 1, 1)), jnp.zeros((1, 1))

    def pull(weight):
        return jax.grad(
            lambda mean: uni_o4.ensemble_loss(
                DiagonalGaussian(mean, log_scale),
                action,
                weight=weight,
                diversity="overlap",
            ).sum()
        )(mean)

    extra = pull(1.0) - pull(0.0)
    assert float(extra[0, 0, 0]) < 0 < float(extra[1, 0, 0])
    one = DiagonalGaussian(mean[:1], log_scale[:1])
    for diversity in ("heuristic", "distribution", "overlap"):
        found = uni_o4.ensemble_loss(one, action, weight=9.0, diversity=diversity)
        np.testing.assert_allclose(found, -one.log_prob(action[None]), rtol=1e-6)


def test_gradients_against_finite_differences():
    with jax.enable_x64(True):
        mean, log_scale, action = gaussians(3, dtype="float64")
        fixed = jax.random.normal(jax.random.key(1), (2, 3, 5), jnp.float64)

        def total(mean, log_scale):
            # One member moves: the others are constants of its loss.
            policies = DiagonalGaussian(
                jnp.concatenate([mean[:1], jax.lax.stop_gradient(mean[1:])]),
                jnp.concatenate([log_scale[:1], jax.lax.stop_gradient(log_scale[1:])]),
            )
            cloning = sum(
                uni_o4.ensemble_loss(policies, action, weight=0.5, diversity=name)[0]
                for name in ("distribution", "overlap")
            )
            log_prob = policies.log_prob(jnp.broadcast_to(action, mean.shape))
            surrogate = uni_o4.loss(log_prob, fixed[0], fixed[1], clip=0.25)
            models = uni_o4.dynamics_loss(mean, log_scale, action)
            return jnp.sum(cloning) + jnp.sum(surrogate[0]) + jnp.sum(models[0])

        def of_first(first, first_scale):
            return total(mean.at[0].set(first), log_scale.at[0].set(first_scale))

        check_grads(
            jax.jit(of_first),
            (mean[0], log_scale[0]),
            1,
            ["rev"],
            rtol=1e-5,
            eps=1e-6,
        )


def test_the_models_loss_is_the_likelihood():
    mean, log_variance, target = gaussians(4)
    found = uni_o4.dynamics_loss(mean, log_variance, target)
    exact = -2 * scipy.stats.norm(mean, np.exp(log_variance / 2)).logpdf(target)
    np.testing.assert_allclose(
        found, exact.mean(axis=-1) - np.log(2 * np.pi), rtol=1e-4, atol=1e-4
    )


# ---------------------------------------------------------------------- AM-Q, the gate


def test_am_q_with_true_dynamics_and_values_is_the_mean_return_to_go():
    """A linear system whose policy's value is known in closed form.

    x' = 0.9 x + 0.5 u, u = −0.6 x, reward −x² − u², γ = 0.8: Q is quadratic.
    """
    gain, gamma, horizon = -0.6, 0.8, 12
    closed = 0.9 + 0.5 * gain
    worth = -(1 + gain**2) / (1 - gamma * closed**2)  # V = worth x²

    def action_value(x, u):
        after = 0.9 * x[:, 0] + 0.5 * u[:, 0]
        return -(x[:, 0] ** 2) - u[:, 0] ** 2 + gamma * worth * after**2

    start = jnp.linspace(-1, 1, 7)[:, None]
    found = uni_o4.am_q(
        lambda x: gain * x,
        action_value,
        lambda x, u, key: 0.9 * x + 0.5 * u,
        start,
        jax.random.key(0),
        horizon,
    )
    # By real rollouts, each return cut where it no longer matters.
    states = np.asarray(start)[:, 0] * closed ** np.arange(horizon + 100)[:, None]
    rewards = -(states**2) * (1 + gain**2)
    to_go = np.zeros_like(states)
    for t in reversed(range(len(states) - 1)):
        to_go[t] = rewards[t] + gamma * to_go[t + 1]
    np.testing.assert_allclose(found.score, to_go[:horizon].mean(), rtol=1e-4)
    np.testing.assert_allclose(found.total, to_go[:horizon].sum(axis=0), rtol=1e-3)


def walk(horizon, is_terminal=lambda x: x[:, 0] > 3):
    """A noisy walk to the right, whose Q is the position; and the same by a loop."""
    start = jnp.array([[0.0], [2.5], [-1.0]])
    key = jax.random.key(7)

    def step(x, u, key):
        return x + u + 0.1 * jax.random.normal(key, x.shape)

    found = uni_o4.am_q(
        lambda x: jnp.ones_like(x),
        lambda x, u: x[:, 0],
        step,
        start,
        key,
        horizon,
        is_terminal,
    )
    totals, counts = np.zeros(3), np.zeros(3)
    keys = jax.random.split(key, horizon)
    noise = [0.1 * np.asarray(jax.random.normal(k, (3, 1))) for k in keys]
    for k in range(3):
        x = float(start[k, 0])
        for t in range(horizon):
            totals[k], counts[k] = totals[k] + x, counts[k] + 1
            x += 1 + float(noise[t][k, 0])
            if x > 3:
                break
    return found, totals, counts


def test_am_q_equals_a_loop_over_rollouts_of_different_lengths():
    found, totals, counts = walk(10)
    assert len(set(counts)) == 3
    np.testing.assert_array_equal(found.visited, counts)
    np.testing.assert_allclose(found.total, totals, rtol=1e-5)
    np.testing.assert_allclose(found.score, totals.sum() / counts.sum(), rtol=1e-5)


def test_the_standard_error_is_that_of_repeated_scores():
    generator = np.random.default_rng(0)
    scores, errors = [], []
    for _ in range(300):
        visited = generator.integers(1, 6, 50).astype(np.float32)
        total = visited * generator.normal(2.0, 1.0, 50).astype(np.float32)
        evaluation = uni_o4.Evaluation(jnp.asarray(total), jnp.asarray(visited))
        scores.append(float(evaluation.score))
        errors.append(float(evaluation.standard_error))
    # 300 repetitions know a deviation to 4 %.
    np.testing.assert_allclose(np.mean(errors), np.std(scores), rtol=0.12)


def test_common_noise_makes_differences_sharp():
    generator = np.random.default_rng(1)
    shared = generator.normal(0, 10, 100)
    ones = jnp.ones(100)
    worse = uni_o4.Evaluation(jnp.asarray(shared, jnp.float32), ones)
    noise = generator.normal(0, 0.1, 100)
    better = uni_o4.Evaluation(jnp.asarray(shared + 1 + noise, jnp.float32), ones)
    difference = uni_o4.paired_difference(better, worse)
    np.testing.assert_allclose(difference.mean, 1 + noise.mean(), rtol=1e-3)
    expected = noise.std(ddof=1) / 10
    np.testing.assert_allclose(difference.standard_error, expected, rtol=1e-2)
    assert float(better.standard_error) > 0.5


def test_the_gate_accepts_what_beats_the_best():
    best, pattern = jnp.array(0.5), []
    for score in (1.0, 0.0, 2.0, 1.5, np.nan):
        accept, best = uni_o4.gate(jnp.array(score), jnp.array(0.2), best)
        pattern.append(bool(accept))
    assert pattern == [True, False, True, False, False]
    assert float(best) == 2.0
    # 2.3 is 1.5 standard errors above 2.
    for margin, accepted in ((1.0, True), (2.0, False)):
        passed = uni_o4.gate(jnp.array(2.3), jnp.array(0.2), best, margin)
        assert bool(passed.accept) is accepted


# ------------------------------------------------------------------- phase 1: the data


def test_the_sum_has_the_gradients_of_separate_losses():
    config = config_of(diversity_weight=0.3, reward_scale=2.0)
    method = uni_o4.make(SPEC, config)
    nets = _uni_o4.networks(SPEC, config)
    agent, batch = nets.agent, offline.batch()

    @jax.jit
    def both(key):
        params = method.init(key)
        target = jax.tree.map(lambda x: 0.8 * x + 0.05, params)
        action = agent.from_env(batch.action)
        here = batch.observation
        slow = agent.critics.apply(target["critics"], here, action)
        next_v = agent.value.apply(params["value"], batch.next_observation)
        goal = 2.0 * batch.reward + 0.99 * batch.discount * next_v

        def value(part):
            u = jnp.minimum(slow[0], slow[1]) - agent.value.apply(part, here)
            return jnp.mean(jnp.abs(0.7 - (u < 0)) * u**2)

        def critics(part):
            q = agent.critics.apply(part, here, action)
            return sum(0.5 * jnp.mean((x - goal) ** 2) for x in q)

        def members(part):
            losses = uni_o4.ensemble_loss(
                nets.policies(part, here), action, weight=0.3, diversity="overlap"
            )
            return sum(jnp.mean(losses[i]) for i in range(2))

        def models(part):
            total = 0.0
            for k in range(3):
                one = member(part, k)
                mean, log_variance = nets.models.apply(
                    jax.tree.map(lambda x: x[None], one), here, action
                )
                change = batch.next_observation - here
                happened = jnp.concatenate([change, batch.reward[:, None]], axis=-1)
                error = (mean[0] - happened) ** 2 * jnp.exp(-log_variance[0])
                total += jnp.mean(error + log_variance[0])
                total += 0.01 * (one["maximum"].sum() - one["minimum"].sum())
            return total

        separate = {
            loss.__name__: jax.grad(loss)(params[loss.__name__])
            for loss in (value, critics, members, models)
        }
        summed = jax.grad(
            lambda p: method.loss_fn(p, target, (), batch, jax.random.key(2))[0]
        )(params)
        return summed, separate

    chex.assert_trees_all_close(*both(jax.random.key(0)), rtol=1e-4, atol=1e-5)


def test_each_member_learns_as_if_alone():
    """Without diversity a member's gradient is that of behaviour cloning."""
    config = config_of(diversity="none")
    method = uni_o4.make(SPEC, config)
    nets, batch = _uni_o4.networks(SPEC, config), offline.batch()

    @jax.jit
    def both(key):
        params = method.init(key)
        summed = jax.grad(
            lambda p: method.loss_fn(p, params, (), batch, jax.random.key(2))[0]
        )(params)["members"]

        def alone(part):
            policy = nets.policy(part, batch.observation)
            log_prob = policy.log_prob(nets.agent.from_env(batch.action))
            return jnp.mean(bc.likelihood_loss(log_prob))

        alone_gradients = [
            jax.grad(alone)(member(params["members"], i)) for i in range(2)
        ]
        return [member(summed, i) for i in range(2)], alone_gradients

    chex.assert_trees_all_close(*both(jax.random.key(0)), rtol=1e-4, atol=1e-6)


LINEAR = EnvSpec("linear", Box((2,)), Box((1,), -1.0, 1.0))
MATRIX = np.array([[0.9, 0.2], [-0.1, 0.8]])
INPUT = np.array([0.3, 0.5])


@functools.cache
def linear_data(number=512):
    """Transitions of x' = A x + b u + 0.05 noise under random actions; reward −|x|²."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(number, 2))
    u = generator.uniform(-1, 1, (number, 1))
    after = x @ MATRIX.T + u * INPUT + 0.05 * generator.normal(size=x.shape)
    batch = offline.bandit(jnp.asarray(u[:, 0], jnp.float32), jnp.ones(number))
    return batch.replace(
        observation=jnp.asarray(x, jnp.float32),
        next_observation=jnp.asarray(after, jnp.float32),
        reward=jnp.asarray(-np.sum(x**2, axis=1), jnp.float32),
        discount=jnp.ones(number),
    )


def test_linear_models_recover_a_linear_system_and_its_noise():
    config = config_of(
        model_hidden_sizes=(),
        normalize_observations=False,
        model_learning_rate=3e-2,
        model_weight_decay=0.0,
        num_elites=3,
    )
    nets, data = _uni_o4.networks(LINEAR, config), linear_data()

    @jax.jit
    def trained(key):
        models = nets.models.init(key)
        adam = optax.adam(optax.cosine_decay_schedule(3e-2, 600))
        change = data.next_observation - data.observation

        def loss(models):
            mean, log_variance = nets.models.apply(
                models, data.observation, data.action
            )
            happened = jnp.concatenate([change, jnp.zeros((512, 1))], axis=-1)
            return jnp.sum(uni_o4.dynamics_loss(mean, log_variance, happened)) / 512

        def step(carry, _):
            models, state = carry
            updates, state = adam.update(jax.grad(loss)(models), state)
            return (optax.apply_updates(models, updates), state), None

        (models, _), _ = jax.lax.scan(step, (models, adam.init(models)), length=600)
        return models

    models = trained(jax.random.key(0))
    kernel = np.asarray(models["network"]["layer_0"]["kernel"])  # [3, 3 inputs, 6]
    for k in range(3):
        np.testing.assert_allclose(kernel[k, :2, :2].T + np.eye(2), MATRIX, atol=0.02)
        np.testing.assert_allclose(kernel[k, 2, :2], INPUT, atol=0.02)
    _, log_variance = nets.models.apply(models, data.observation, data.action)
    deviation = np.exp(0.5 * np.asarray(log_variance)[..., :2].mean(axis=1))
    np.testing.assert_allclose(deviation, 0.05, rtol=0.15)


# ------------------------------------------------------------ phase 2: the improvement


def begun(spec=SPEC, **fields):
    """A foundation from untrained parameters, and phase 2 on it."""
    config = config_of(**fields)
    pretraining = uni_o4.make(spec, config)
    state = jax.jit(lambda key: learner.init(pretraining, key))(jax.random.key(0))
    batch = offline.batch() if spec is SPEC else linear_data()
    stats = normalization.update(state.stats, 2 + 3 * batch.observation)
    state = state.replace(stats=stats)
    base = uni_o4.foundation(spec, config, state, batch)
    method = uni_o4.improvement(spec, config, base)
    return config, state, base, method, learner.init(method, jax.random.key(1))


def test_the_foundation_keeps_the_models_with_the_smallest_error():
    config, state, base, _, _ = begun()
    nets, batch = _uni_o4.networks(SPEC, config), offline.batch()
    seen, after = (
        _offline.normalize(state.stats, x)
        for x in (batch.observation, batch.next_observation)
    )
    mean, _ = nets.models.apply(
        state.params["models"], seen, nets.agent.from_env(batch.action)
    )
    change = np.asarray(after - seen)
    error = np.mean((np.asarray(mean)[..., :3] - change) ** 2, axis=(1, 2))
    order = np.argsort(error)[:2]
    chex.assert_trees_all_equal(
        base.models, jax.tree.map(lambda x: x[order], state.params["models"])
    )
    low, high = np.asarray(seen).min(axis=0), np.asarray(seen).max(axis=0)
    np.testing.assert_allclose(base.low, low - 0.25 * (high - low), rtol=1e-5)
    np.testing.assert_allclose(base.high, high + 0.25 * (high - low), rtol=1e-5)


def test_episodes_end_in_the_units_of_the_environment():
    """Models that predict no change: a rollout ends where it starts, or never."""
    _, _, base, _, _ = begun()
    config = config_of(score="visited")
    still = jax.tree.map(jnp.zeros_like, base.models)
    bounds = {k: jnp.full_like(still[k], -60.0) for k in ("minimum", "maximum")}
    base = base.replace(models={**still, **bounds})
    start = offline.batch().observation[:6]
    found = jax.jit(
        lambda: uni_o4.evaluate(
            SPEC,
            config,
            base,
            base.members,
            start,
            jax.random.key(0),
            lambda x: x[:, 0] > 0.3,
        )
    )()
    expected = np.where(np.asarray(start)[:, 0] > 0.3, 1, config.horizon)
    assert set(expected) == {1, config.horizon}
    np.testing.assert_array_equal(found.visited, np.stack([expected] * 2))
    # Over the horizon, steps after the end count zero.
    whole = uni_o4.evaluate(
        SPEC,
        config_of(score="horizon"),
        base,
        base.members,
        start,
        jax.random.key(0),
        lambda x: x[:, 0] > 0.3,
    )
    np.testing.assert_allclose(whole.total, found.total, rtol=1e-6)
    mean = np.asarray(found.total).sum(axis=1) / (6 * config.horizon)
    np.testing.assert_allclose(whole.score, mean, rtol=1e-5)
    # Every visit is worth the same: Q of the start.
    each = np.asarray(found.total / found.visited)
    alone = uni_o4.evaluate(
        SPEC, config_of(horizon=1), base, base.members, start, jax.random.key(1)
    )
    np.testing.assert_allclose(each, alone.total, rtol=1e-3)


def test_the_first_gradient_of_a_round_is_that_of_the_policy_gradient():
    config, _, base, method, state = begun()
    nets = _uni_o4.networks(SPEC, config)
    observation = offline.batch().observation
    key = jax.random.key(5)

    @jax.jit
    def both(params):
        seen = _offline.normalize(base.observation, observation)
        old = nets.policies(state.target_params["members"], seen)
        choice = old.sample(key)
        wide = jnp.stack([seen] * 2)
        q = nets.agent.critics.apply(base.critics, wide, jnp.clip(choice, -1, 1))
        v = nets.agent.value.apply(base.value, seen)
        raw = jnp.minimum(q[0], q[1]) - jnp.stack([v] * 2)
        centred = raw - jnp.mean(raw, axis=1, keepdims=True)
        advantage = centred / jnp.std(raw, axis=1, keepdims=True)

        def by_hand(members):
            log_prob = nets.policies(members, seen).log_prob(choice)
            return -jnp.sum(jnp.mean(advantage * log_prob, axis=1))

        batch = offline.batch().replace(observation=seen)
        found, metrics = jax.grad(
            lambda p: method.loss_fn(p, state.target_params, state.stats, batch, key),
            has_aux=True,
        )(params)
        return found["members"], jax.grad(by_hand)(params["members"]), metrics

    found, expected, metrics = both(state.params)
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-5)
    assert float(metrics["clip_fraction"]) == 0
    assert abs(float(metrics["behaviour_kl"])) < 1e-12


def rounds(method, state, number, seed=0):
    """Runs `number` batches; returns states after each."""
    batch = offline.batch()
    wide = jax.tree.map(lambda x: jnp.stack([x, x]), batch)
    update = jax.jit(lambda s, key: learner.update(method, s, wide, key))
    states, metrics = [state], []
    for i in range(number):
        state, found = update(state, jax.random.key(seed + i))
        states.append(state)
        metrics.append(found)
    return states, metrics


@pytest.mark.parametrize("gate", ["paired", "running"])
def test_the_chain_of_behaviour_policies(gate):
    *_, method, state = begun(gate=gate, improvement_learning_rate=1e-2)
    states, metrics = rounds(method, state, 3)
    for old, new, found in zip(states, states[1:], metrics, strict=False):
        assert int(new.step) == int(old.step) + 2
        accepted = 0
        for i in range(2):
            bound = [
                member(x["members"], i)
                for x in (new.target_params, new.params, old.target_params)
            ]
            taken, kept = (
                all(
                    bool(jnp.all(a == b))
                    for a, b in zip(
                        jax.tree.leaves(bound[0]), jax.tree.leaves(other), strict=True
                    )
                )
                for other in bound[1:]
            )
            assert taken != kept  # the new member, or what bound it before
            accepted += taken
            if gate == "running":
                beaten = new.stats.score[i] > old.stats.best[i]
                assert taken is bool(beaten) or not np.isfinite(old.stats.best[i])
        np.testing.assert_allclose(found["accepted"], accepted / 2)
        assert np.all(new.stats.best >= old.stats.best)
        # What phase 1 found stays as it is.
        chex.assert_trees_all_equal(new.stats.foundation, old.stats.foundation)


def test_each_gate_judges_by_its_own_rule():
    # Both candidates score 3 and 1; the policies that bind them 2 and 2; the best so
    # far is 3.5 and 0.5. The standard error of a difference of constants is 0.
    ones = jnp.ones((2, 4))

    def evaluation(scores):
        return uni_o4.Evaluation(jnp.array(scores)[:, None] * ones, ones)

    candidate, incumbent = evaluation([3.0, 1.0]), evaluation([2.0, 2.0])
    best = jnp.array([3.5, 0.5])
    for gate, accepted, left in (
        ("paired", [True, False], [3.5, 0.5]),
        ("running", [False, True], [3.5, 1.0]),
        ("always", [True, True], [3.5, 1.0]),
        ("never", [False, False], [3.5, 0.5]),
    ):
        found = judge(config_of(gate=gate), candidate, incumbent, best)
        np.testing.assert_array_equal(found.accept, accepted)
        np.testing.assert_allclose(found.best, left)
    # Before the first gate the score to beat is that of the cloned policies.
    nothing = jnp.full((2,), -jnp.inf)
    found = judge(config_of(gate="running"), candidate, incumbent, nothing)
    np.testing.assert_array_equal(found.accept, [True, False])
    np.testing.assert_allclose(found.best, [3.0, 2.0])


def test_scores_that_are_no_numbers_are_not_accepted():
    *_, base, _, _ = begun()
    broken = base.replace(models=jax.tree.map(lambda x: x * jnp.nan, base.models))
    method = uni_o4.improvement(SPEC, config_of(gate="running"), broken)
    state = learner.init(method, jax.random.key(1))
    states, metrics = rounds(method, state, 1)
    assert float(metrics[0]["accepted"]) == 0
    assert float(metrics[0]["broken_scores"]) == 1
    # A run is not stopped for it: what is reported are numbers, or infinity.
    chex.assert_tree_all_finite(metrics[0])
    assert not np.any(np.isnan(states[1].stats.score))
    chex.assert_trees_all_equal(states[1].target_params, states[0].target_params)


def test_each_members_gradient_is_clipped_by_its_own_norm():
    # Adam's first step has the size of the rate whatever the norm, so look at its
    # first moment: a tenth of the clipped gradient.
    *_, method, state = begun(max_gradient_norm=1e-3, gate_steps=2)
    gradient = jax.tree.map(
        lambda x: jnp.stack([jnp.full(x.shape[1:], 5.0), jnp.full(x.shape[1:], 1e-7)]),
        state.params,
    )
    _, opt_state = method.optimizer.update(gradient, state.opt_state, state.params)
    moment = next(
        s.mu
        for s in jax.tree.leaves(
            opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
        )
        if isinstance(s, optax.ScaleByAdamState)
    )
    large, small = (
        optax.tree.norm(jax.tree.map(lambda x, i=i: 10 * x[i], moment))
        for i in range(2)
    )
    np.testing.assert_allclose(large, 1e-3, rtol=1e-4)
    expected = optax.tree.norm(jax.tree.map(lambda x: x[1], gradient))
    np.testing.assert_allclose(small, expected, rtol=1e-4)


def test_one_fit_follows_another():
    """What a fit returns lies on a mesh, which the next fit would not accept."""
    config = config_of()
    source = offline.source(linear_data(), batch_size=16, num_minibatches=2)
    first = train.fit(uni_o4.make(LINEAR, config), source, num_steps=1)
    run = jax.tree.map(lambda x: x[0], first.state.learner)
    base = uni_o4.foundation(LINEAR, config, run, linear_data())
    second = train.fit(uni_o4.improvement(LINEAR, config, base), source, num_steps=1)
    assert int(second.state.learner.step[0]) == 2


def test_batches_must_hold_the_minibatches_of_a_round():
    *_, method, state = begun()
    with pytest.raises(ValueError, match="num_minibatches=2"):
        method.prepare(state, offline.batch())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"diversity": "kl"}, "diversity must be one of"),
        ({"gate": "maybe"}, "gate must be one of"),
        ({"score": "best"}, "score must be one of"),
        ({"num_members": 0}, "num_members must be at least 1"),
        ({"num_elites": 9}, "num_elites must be at most num_models=3"),
        ({"evaluation_starts": 1}, "evaluation_starts must be at least 2"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"expectile": 0.0}, "expectile must lie in"),
        ({"gate_margin": -1.0}, "gate_margin must not be negative"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        uni_o4.make(SPEC, config_of(**fields))


# ---------------------------------------------------------------------------- the whole


def true_returns(gains, number=256, horizon=40, gamma=0.9):
    """Mean discounted return of u = clip(g x) in the linear system, by simulation."""
    generator = np.random.default_rng(3)
    returns = []
    start = generator.normal(size=(number, 2))
    noise = 0.05 * generator.normal(size=(horizon, number, 2))
    for gain in gains:
        x, total = start, np.zeros(number)
        for t in range(horizon):
            total += gamma**t * -np.sum(x**2, axis=1)
            u = np.clip(x @ gain, -1, 1)
            x = x @ MATRIX.T + u[:, None] * INPUT + noise[t]
        returns.append(total.mean())
    return np.array(returns)


@functools.cache
def pretrained():
    """Phase 1 on the linear system, briefly."""
    config = config_of(
        hidden_sizes=(32,),
        model_hidden_sizes=(32,),
        num_members=2,
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        model_learning_rate=3e-3,
        gamma=0.9,
        tau=0.05,
        num_minibatches=4,
        improvement_learning_rate=3e-3,
        gate_steps=10,
        evaluation_starts=64,
        horizon=10,
    )
    method = uni_o4.make(LINEAR, config)
    source = offline.source(linear_data(), batch_size=128, num_minibatches=4)
    state, _ = jax.jit(
        lambda key: train.run(method, source, train.init(method, source, key), 300)
    )(jax.random.key(0))
    base = uni_o4.foundation(LINEAR, config, state.learner, linear_data())
    return config, state.learner, base


def test_offline_rounds_improve_on_the_behaviour_and_the_score_knows():
    config, _, base = pretrained()
    method = uni_o4.improvement(LINEAR, config, base)
    source = offline.source(linear_data(), batch_size=128, num_minibatches=10)
    state, metrics = jax.jit(
        lambda key: train.run(method, source, train.init(method, source, key), 12)
    )(jax.random.key(1))
    accepted = state.learner.target_params["members"]
    nets = _uni_o4.networks(LINEAR, config)

    def returns(members):
        """By simulation, as `true_returns`, but of the networks."""
        generator = np.random.default_rng(3)
        x = jnp.asarray(generator.normal(size=(256, 2)), jnp.float32)
        x = jnp.stack([x, x])
        total = 0.0
        for t in range(25):
            total += 0.9**t * -jnp.sum(x**2, axis=-1).mean(axis=1)
            seen = _offline.normalize(base.observation, x)
            both = [nets.policy(member(members, i), seen[i]).mode() for i in range(2)]
            u = jnp.clip(jnp.stack(both), -1, 1)
            x = x @ jnp.asarray(MATRIX.T, jnp.float32) + u * jnp.asarray(
                INPUT[None, None], jnp.float32
            )
        return total

    returns = jax.jit(returns)
    before, after = np.asarray(returns(base.members)), np.asarray(returns(accepted))
    print("returns before and after:", before, after)
    assert np.all(after > before + 0.1 * np.abs(before))
    assert float(np.sum(metrics["accepted"])) > 2
    assert float(state.learner.stats.score.min()) > float(metrics["incumbent_score"][0])


def test_am_q_ranks_policies_as_their_returns_do():
    config, _, base = pretrained()
    nets = _uni_o4.networks(LINEAR, config)
    gains = [np.array([g, h]) for g in (-1.0, -0.3, 0.4, 1.0) for h in (-1.0, 0.2)]
    truth = true_returns(gains)
    start = linear_data().observation[:64]

    @jax.jit
    def score(gain):
        def act(seen):
            x = normalization.denormalize(base.observation, seen)
            return jnp.clip(x @ gain[:, None], -1, 1)

        return uni_o4.am_q(
            act,
            lambda x, u: smallest_value(nets, base, x, u),
            lambda x, u, key: model_step(nets, base, x, u, key),
            _offline.normalize(base.observation, start),
            jax.random.key(2),
            config.horizon,
        ).score

    scores = [float(score(jnp.asarray(g, jnp.float32))) for g in gains]
    rank = scipy.stats.spearmanr(scores, truth).statistic
    print("Spearman:", rank)
    assert rank > 0.9


def test_ppo_goes_on_with_the_same_actions_to_the_bit():
    config, _, base = pretrained()
    phase = uni_o4.improvement(LINEAR, config, base)
    fresh = ppo.make(
        LINEAR,
        ppo.Config(
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            state_dependent_scale=True,
            minimum_log_scale=config.minimum_log_scale,
            maximum_log_scale=config.maximum_log_scale,
        ),
    )
    observation = linear_data().observation[:32]
    stats = fresh.init_stats(4)._replace(observation=base.observation)
    example = jax.eval_shape(fresh.init, jax.random.key(0))
    for index in range(2):
        params = uni_o4.hand_over(base.members, base.value, index)
        chex.assert_trees_all_equal_shapes_and_dtypes(params, example)
        ours = phase.init_stats(1).replace(score=jnp.eye(2)[index])
        expected, _, _ = phase.act(
            {"members": base.members}, ours, observation, (), None
        )
        found, _, _ = fresh.act(params, stats, observation, (), None)
        np.testing.assert_array_equal(found, expected)


def test_without_a_key_the_surest_member_acts():
    config = config_of()
    method = uni_o4.make(SPEC, config)
    state = jax.jit(lambda key: learner.init(method, key))(jax.random.key(0))
    nets, observation = _uni_o4.networks(SPEC, config), offline.batch().observation
    members = jax.tree.map(jnp.copy, state.params["members"])
    # The second member's scale is smaller where the first observation is positive.
    layer = members["layer_1"]
    layer["kernel"] = 3 * layer["kernel"]
    layer["bias"] = layer["bias"].at[:, 2:].set(-1.0)
    params = {**state.params, "members": members}
    found, _, _ = method.act(params, state.stats, observation, (), None)
    policies = nets.policies(members, observation)
    index = np.argmin(np.asarray(policies.log_scale).sum(axis=-1), axis=0)
    assert set(index) == {0, 1}
    unit = np.asarray(policies.mean)[index, np.arange(32)]
    expected = distributions.rescale_to_box(
        jnp.clip(unit, -1, 1), (-1.0, -2.0), (1.0, 3.0)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
