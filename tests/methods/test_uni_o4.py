"""Uni-O4: its losses, and the phase that learns from the data."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.test_util import check_grads

from rlx import learner
from rlx.methods import _uni_o4, bc, ppo, uni_o4
from rlx.networks.ensemble import member
from rlx.ops.distributions import DiagonalGaussian
from tests.methods import offline
from tests.methods.uni_o4_cases import (
    INPUT,
    LINEAR,
    MATRIX,
    SMALL,
    SPEC,
    config_of,
    linear_data,
)


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
            # Each model learns from a third of the minibatch that is its own.
            share = here.shape[0] // 3
            thirds = jax.tree.map(
                lambda x: x[: 3 * share].reshape(3, share, *x.shape[1:]), batch
            )
            total = 0.0
            for k in range(3):
                own, one = member(thirds, k), member(part, k)
                mean, log_variance = nets.models.apply(
                    jax.tree.map(lambda x: x[None], one),
                    own.observation,
                    agent.from_env(own.action),
                )
                change = own.next_observation - own.observation
                happened = jnp.concatenate([change, own.reward[:, None]], axis=-1)
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


def test_models_that_get_no_transition_of_a_minibatch_are_refused():
    config = config_of(num_models=9, num_elites=2)
    method = uni_o4.make(SPEC, config)
    params = jax.eval_shape(method.init, jax.random.key(0))
    batch = jax.tree.map(lambda x: x[:8], offline.batch())
    with pytest.raises(ValueError, match="9 models share a minibatch of 8"):
        jax.eval_shape(
            lambda p: method.loss_fn(p, p, (), batch, jax.random.key(2)), params
        )
