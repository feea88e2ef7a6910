"""Off-policy MDPO: worked numbers, SAC as a special case, Tsallis terms."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from envs import probe
from rlx import learner
from rlx.methods import _off_policy, mdpo_off_policy, sac
from rlx.ops import distributions, mirror_descent
from rlx.ops.tsallis import tsallis_log
from tests.methods import off_policy
from tests.methods.test_sac import PENDULUM, pendulum_returns

SPEC = off_policy.SPEC


def conformance_cases():
    return {
        "kl": off_policy.case(mdpo_off_policy, reference_every=3),
        "tsallis": off_policy.case(
            mdpo_off_policy, tsallis_index=1.5, joint=False, value_network=True
        ),
    }


def config_of(**fields) -> mdpo_off_policy.Config:
    return mdpo_off_policy.Config(**{"hidden_sizes": (8,), **fields})


def test_worked_numbers():
    # c = 0.5, lambda = 0.2: 0.5 * 1 + (0.2 - 0.5) * (-2) - 3 = -1.9;
    # q' = 2 doubles the middle term: 0.5 + 1.2 - 3 = -1.3.
    arrays = (jnp.array([1.0]), jnp.array([-2.0]), jnp.array([3.0]))
    prices = {"coefficient": 0.5, "temperature": 0.2}
    np.testing.assert_allclose(mdpo_off_policy.loss(*arrays, **prices), [-1.9])
    doubled = mdpo_off_policy.loss(*arrays, **prices, tsallis_index=2.0)
    np.testing.assert_allclose(doubled, [-1.3], rtol=1e-6)
    # lambda log pi - Q + (c - lambda) KL = 0.2 - 3 + 0.3 * 0.1 = -2.77.
    arrays = (jnp.array([1.0]), jnp.array([0.1]), jnp.array([3.0]))
    np.testing.assert_allclose(mdpo_off_policy.analytic_loss(*arrays, **prices), -2.77)


def states_of(mdpo_config, sac_config):
    """Both methods with the same parameters; the reference is far from the policy."""
    methods = mdpo_off_policy.make(SPEC, mdpo_config), sac.make(SPEC, sac_config)
    state = jax.jit(lambda key: learner.init(methods[0], key))(jax.random.key(0))
    target = jax.tree.map(lambda x: 0.8 * x + 0.05, state.params)
    return methods, state.replace(target_params=target)


def test_without_a_proximal_term_it_is_sac():
    mine = config_of(temperature=0.3, coefficient=0.3, output_penalty=0.0)
    theirs = sac.Config(hidden_sizes=(8,), temperature=0.3, automatic_temperature=False)
    methods, state = states_of(mine, theirs)
    batch = off_policy.batch()

    @jax.jit
    def three_steps(state):
        found = []
        for method in methods:
            after = state
            for i in range(3):
                key = jax.random.key(i)
                after, _ = learner.gradient_step(method, after, batch, key)
            found.append(after)
        return found

    after, expected = three_steps(state)
    chex.assert_trees_all_close(after.params, expected.params, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(
        after.target_params["critics"], expected.target_params["critics"], rtol=1e-5
    )


def test_sacs_policy_loss_has_the_uniform_policy_as_reference():
    # lambda = 0 and c = alpha = 1/t: alpha (log pi - log u) - Q, u = 2^-d on [-1, 1]^d.
    agent = _off_policy.make_agent(SPEC, config_of())
    params = agent.actor.init(jax.random.key(1))
    critics = agent.critics.init(jax.random.key(2))
    batch = off_policy.batch()
    size = SPEC.action.shape[0]

    def arrays(params):
        policy = agent.distribution(params, batch.observation)
        action, log_prob, _ = policy.sample_and_log_prob(jax.random.key(3))
        value = agent.critics.apply(critics, batch.observation, action)[0]
        return log_prob, value

    def as_sac(params):
        return jnp.mean(sac.loss(*arrays(params), temperature=0.4))

    def as_mdpo(params):
        log_prob, value = arrays(params)
        uniform = jnp.full_like(log_prob, -size * np.log(2.0))
        losses = mdpo_off_policy.loss(
            log_prob, uniform, value, coefficient=0.4, temperature=0.0
        )
        return jnp.mean(losses)

    (one, gradient), (other, other_gradient) = jax.jit(
        lambda p: (jax.value_and_grad(as_sac)(p), jax.value_and_grad(as_mdpo)(p))
    )(params)
    chex.assert_trees_all_close(gradient, other_gradient, rtol=1e-6, atol=1e-6)
    # log u is negative: subtracting it adds the entropy of the uniform policy.
    np.testing.assert_allclose(other - one, 0.4 * size * np.log(2.0), rtol=1e-5)


def policy_gradient(method, state, key):
    """Gradient of the whole loss with respect to the policy alone."""

    def loss(actor):
        params = {**state.params, "actor": actor}
        return method.loss_fn(params, state.target_params, (), batch, key)[0]

    batch = off_policy.batch()
    return jax.grad(loss)(state.params["actor"])


def test_the_analytic_divergence_has_the_mean_of_the_sampled_one():
    fields = {"temperature": 0.2, "coefficient": 0.9, "output_penalty": 0.0}
    sampled = mdpo_off_policy.make(SPEC, config_of(**fields))
    exact = mdpo_off_policy.make(SPEC, config_of(analytic_kl=True, **fields))
    state = jax.jit(lambda key: learner.init(sampled, key))(jax.random.key(0))
    shifted = jax.tree.map(lambda x: 0.9 * x + 0.1, state.params["actor"])
    target = {**state.target_params, "actor": shifted}
    state = state.replace(target_params=target)

    @jax.jit
    def differences(keys):
        def one(key):
            pair = [policy_gradient(m, state, key) for m in (sampled, exact)]
            return jax.tree.map(lambda a, b: a - b, *pair)

        return jax.vmap(one)(keys)

    found = differences(jax.random.split(jax.random.key(4), 2048))
    for leaf in jax.tree.leaves(found):
        leaf = np.asarray(leaf).reshape(2048, -1)
        error = leaf.std(axis=0) / np.sqrt(2048)
        assert error.max() > 0
        assert np.all(np.abs(leaf.mean(axis=0)) < 5 * error + 1e-6)


def gaussians(key, shape=(64, 3)):
    keys = jax.random.split(key, 4)
    draws = [0.5 * jax.random.normal(k, shape) for k in keys]
    return (
        distributions.TanhGaussian(draws[0], draws[1]),
        distributions.TanhGaussian(draws[2], draws[3]),
    )


def test_the_divergence_of_squashed_gaussians_is_that_of_the_gaussians():
    new, old = gaussians(jax.random.key(5), (1, 3))
    number = 100_000
    wide = [
        jax.tree.map(lambda x: jnp.broadcast_to(x, (number, 3)), policy)
        for policy in (new, old)
    ]
    raw = wide[0].sample_and_log_prob(jax.random.key(6)).raw
    ratio = np.asarray(wide[0].log_prob_raw(raw) - wide[1].log_prob_raw(raw))
    kl = float(distributions.kl_divergence(new, old)[0])
    assert kl > 0.1
    assert abs(ratio.mean() - kl) < 4 * ratio.std() / np.sqrt(number)


@pytest.mark.parametrize("joint", [True, False])
def test_tsallis_terms_are_those_of_the_definition(joint):
    index = 1.5
    new, old = gaussians(jax.random.key(8))
    action, log_prob, raw = new.sample_and_log_prob(jax.random.key(9))
    zero = jnp.zeros(64)
    drawn = _off_policy.Drawn(new, raw, log_prob, zero, zero)
    config = config_of(tsallis_index=index, joint=joint)
    found = mdpo_off_policy._q_logarithms(drawn, old, config)
    for policy, value in zip((new, old), found, strict=True):
        mean, log_scale = (
            np.asarray(x, np.float64) for x in (policy.mean, policy.log_scale)
        )
        x = np.asarray(raw, np.float64)
        scale = np.exp(log_scale)
        density = np.exp(-0.5 * ((x - mean) / scale) ** 2) / scale / np.sqrt(2 * np.pi)
        density /= 1 - np.tanh(x) ** 2  # [64, 3], per dimension
        if joint:
            density = density.prod(axis=1, keepdims=True)
        power = index - 1  # 1 - q with q = 2 - q'
        expected = ((density**power - 1) / power).sum(axis=1)
        np.testing.assert_allclose(value, expected, rtol=2e-3, atol=1e-4)


def test_an_index_of_one_is_the_logarithm_and_large_densities_stay_finite():
    log_prob = jnp.array([-30.0, 0.5, 60.0, 1e4])
    np.testing.assert_array_equal(mirror_descent.density_log(log_prob, 1.0), log_prob)
    for index in (1.5, 2.0):
        found = mirror_descent.density_log(log_prob, index)
        assert np.all(np.isfinite(found))
        small = tsallis_log(log_prob[:2], 2.0 - index)
        np.testing.assert_allclose(found[:2], small, rtol=1e-6)


@pytest.mark.parametrize("index", [1.0, 1.5])
def test_gradients_through_the_action_against_finite_differences(index):
    with jax.enable_x64(True):
        weights = jax.random.normal(jax.random.key(1), (3, 4), jnp.float64)
        noise = jax.random.normal(jax.random.key(2), (5, 2), jnp.float64)
        observation = jax.random.normal(jax.random.key(3), (5, 3), jnp.float64)
        old = distributions.TanhGaussian(jnp.full((5, 2), 0.3), jnp.full((5, 2), -0.4))

        def loss(weights):
            mean, log_scale = jnp.split(observation @ weights, 2, axis=-1)
            new = distributions.TanhGaussian(mean, log_scale)
            raw = mean + jnp.exp(log_scale) * noise
            value = jnp.sum(jnp.sin(jnp.tanh(raw)) * observation[:, :2], axis=-1)
            logs = [
                mirror_descent.density_log(policy.log_prob_raw(raw), index)
                for policy in (new, old)
            ]
            losses = mdpo_off_policy.loss(
                *logs, value, coefficient=0.9, temperature=0.2, tsallis_index=index
            )
            return jnp.mean(losses)

        check_grads(jax.jit(loss), (weights,), 1, ["rev"], rtol=1e-6, eps=1e-5)


def test_the_reference_is_refreshed_every_so_many_gradient_steps():
    method, state = states_of(config_of(reference_every=2), sac.Config())
    update = method[0].target_update
    moved = jax.tree.map(lambda x: x + 1.0, state.params)
    for step, expected in ((1, state.target_params), (2, moved), (3, None)):
        target = update(moved, state.target_params, jnp.int32(step))
        wanted = moved if expected is moved else state.target_params
        chex.assert_trees_all_equal(target["actor"], wanted["actor"])
        slow = jax.tree.map(
            lambda t, p: 0.995 * t + 0.005 * p, state.target_params, moved
        )
        chex.assert_trees_all_close(target["critics"], slow["critics"], rtol=1e-5)


def test_the_value_network_learns_the_soft_value_and_makes_the_targets():
    config = config_of(value_network=True, temperature=0.4, coefficient=0.4)
    method = mdpo_off_policy.make(SPEC, config)
    agent = _off_policy.make_agent(SPEC, config)
    state = jax.jit(lambda key: learner.init(method, key))(jax.random.key(0))
    target = jax.tree.map(lambda x: 0.8 * x + 0.05, state.params)
    batch, key = off_policy.batch(), jax.random.key(2)

    @jax.jit
    def gradients(params):
        def whole(params):
            return method.loss_fn(params, target, (), batch, key)[0]

        drawn_key = jax.random.split(key)[1]
        policy = agent.distribution(params["actor"], batch.observation)
        action, log_prob, _ = policy.sample_and_log_prob(drawn_key)
        both = agent.critics.apply(params["critics"], batch.observation, action)
        soft = jnp.minimum(both[0], both[1]) - 0.4 * log_prob
        successor = agent.value.apply(target["value"], batch.next_observation)
        goal = batch.reward + 0.99 * batch.discount * successor

        def value(part):
            error = agent.value.apply(part, batch.observation) - soft
            return 0.5 * jnp.mean(error**2)

        def critics(part):
            action = agent.from_env(batch.action)
            both = agent.critics.apply(part, batch.observation, action)
            return sum(0.5 * jnp.mean((q - goal) ** 2) for q in both)

        separate = {
            "value": jax.grad(value)(params["value"]),
            "critics": jax.grad(critics)(params["critics"]),
        }
        return jax.grad(whole)(params), separate

    summed, separate = gradients(state.params)
    for name, gradient in separate.items():
        chex.assert_trees_all_close(summed[name], gradient, rtol=1e-5, atol=1e-6)


def test_greedy_behaviour_acts_by_the_mean():
    observation = off_policy.batch().observation
    for greedy in (True, False):
        method = mdpo_off_policy.make(SPEC, config_of(greedy_behaviour=greedy))
        params = method.init(jax.random.key(0))
        mode, sampled = (
            method.act(params, (), observation, (), key)[0]
            for key in (None, jax.random.key(1))
        )
        assert bool(jnp.all(mode == sampled)) is greedy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coefficient": 0.1}, "coefficient must be at least the temperature 0.2"),
        ({"tsallis_index": 0.5}, "tsallis_index must lie in"),
        ({"tsallis_index": 1.5, "analytic_kl": True}, "analytic_kl needs"),
        ({"temperature": -0.1}, "temperature must not be negative"),
        ({"reference_every": 0}, "every must be at least 1"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        mdpo_off_policy.make(SPEC, mdpo_off_policy.Config(**fields))


@pytest.mark.parametrize("fields", [{}, {"tsallis_index": 1.5, "value_network": True}])
def test_it_learns_which_action_suits_which_observation(fields):
    env = probe.make("observation_action_continuous")
    config = mdpo_off_policy.Config(
        hidden_sizes=(32,),
        num_minibatches=4,
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        temperature=0.02,
        coefficient=0.1,
        reference_every=20,
        tau=0.05,
        **fields,
    )
    method = mdpo_off_policy.make(env.spec, config)
    actions = off_policy.learned_actions(method, [-1.0, 1.0])
    off_policy.assert_best(actions)


PENDULUM_ARMS = {
    "c=lambda": {"coefficient": 0.2},
    "c=lambda+0.3": {"coefficient": 0.5},
    "c=lambda+0.8": {"coefficient": 1.0},
    "tsallis": {"coefficient": 0.5, "tsallis_index": 1.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("arm", PENDULUM_ARMS)
def test_it_swings_up_the_pendulum(arm):
    config = mdpo_off_policy.Config(**PENDULUM)
    config = dataclasses.replace(config, **PENDULUM_ARMS[arm])
    method = mdpo_off_policy.make(probe.make("pendulum").spec, config)
    returns = pendulum_returns(method)
    print(arm, "greedy pendulum returns:", returns)
    assert returns.min() >= -250
