"""Behaviour cloning: maximum likelihood in closed form, units, fixed normalisation."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.test_util import check_grads

from envs import probe
from rlx import learner, train
from rlx.methods import _offline, bc
from rlx.ops import distributions, normalization
from rlx.types import Box, Discrete
from tests.methods import offline

SPEC = offline.SPEC


def conformance_cases():
    return {
        "gaussian": offline.case(bc),
        "deterministic": offline.case(bc, policy="deterministic"),
    }


def test_worked_numbers():
    np.testing.assert_allclose(bc.likelihood_loss(jnp.array([2.0, -1.5])), [-2.0, 1.5])
    # (0.5² + 1²) / 2 and 0.
    action, other = (
        jnp.array([[0.5, -1.0], [0.2, 0.3]]),
        jnp.array([[0, 0], [0.2, 0.3]]),
    )
    np.testing.assert_allclose(bc.squared_loss(action, other), [0.625, 0.0])


def test_gradient_of_the_likelihood_against_finite_differences():
    with jax.enable_x64(True):
        weights = jax.random.normal(jax.random.key(1), (3, 4), jnp.float64)
        observation = jax.random.normal(jax.random.key(2), (5, 3), jnp.float64)
        action = jnp.tanh(jax.random.normal(jax.random.key(3), (5, 2), jnp.float64))

        def loss(weights, kind):
            mean, log_scale = jnp.split(observation @ weights, 2, axis=-1)
            distribution = kind(jnp.tanh(mean), log_scale)
            log_prob = _offline.log_prob(distribution, action)
            squared = bc.squared_loss(distribution.mode(), action)
            return jnp.mean(bc.likelihood_loss(log_prob) + squared)

        for kind in (distributions.DiagonalGaussian, distributions.TanhGaussian):
            check_grads(
                jax.jit(lambda w, kind=kind: loss(w, kind)),
                (weights,),
                1,
                ["rev"],
                rtol=1e-6,
                eps=1e-5,
            )


def constant_policy(kind, mean, log_scale):
    """Parameters of a policy without hidden layers that ignores its observation."""
    config = bc.Config(policy=kind, hidden_sizes=(), normalize_observations=False)
    method = bc.make(SPEC, config)
    params = jax.tree.map(jnp.zeros_like, method.init(jax.random.key(0)))
    actor = params["actor"]
    if kind == "tanh_gaussian":
        actor["layer_0"]["bias"] = jnp.concatenate([mean, log_scale])
        return method, params
    network = actor["mean"] if kind == "gaussian" else actor
    network["layer_0"]["bias"] = jnp.arctanh(mean)
    if kind == "gaussian":
        low, high = config.minimum_log_scale, config.maximum_log_scale
        share = (log_scale - low) / (high - low)
        actor["scale"] = jnp.log(share / (1 - share))
    return method, params


@pytest.mark.parametrize("kind", ["gaussian", "tanh_gaussian", "deterministic"])
def test_the_gradient_vanishes_at_the_maximum_of_the_likelihood(kind):
    """Sample mean and deviation, of the actions or of their inverse tanh."""
    batch = offline.batch(number=256)
    unit = np.asarray(
        distributions.rescale_from_box(batch.action, (-1.0, -2.0), (1.0, 3.0)),
        np.float64,
    )
    data = np.arctanh(unit) if kind == "tanh_gaussian" else unit
    mean, scale = data.mean(axis=0), data.std(axis=0)
    method, params = constant_policy(
        kind, *(jnp.asarray(x, jnp.float32) for x in (mean, np.log(scale)))
    )

    def loss(params):
        return method.loss_fn(params, params, (), batch, jax.random.key(0))

    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    bias = [
        x
        for path, x in jax.tree_util.tree_leaves_with_path(gradient)
        if "kernel" not in jax.tree_util.keystr(path)
    ]
    # The observations correlate with the actions by chance: kernels do not vanish.
    for x in bias:
        np.testing.assert_allclose(x, np.zeros(x.shape), atol=1e-5)
    if kind == "deterministic":
        np.testing.assert_allclose(value, np.mean(scale**2), rtol=1e-5)
        return
    density = scipy.stats.norm(mean, scale).logpdf(data).sum(axis=1)
    if kind == "tanh_gaussian":
        density = density - np.log1p(-(unit**2)).sum(axis=1)
    np.testing.assert_allclose(value, -density.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["log_prob"], -value)


def test_a_fixed_scale_has_the_gradient_of_the_squared_error():
    # -log N has the gradient (mu - a) / sigma² in mu, the squared error 2 (mu - a) / A:
    # the same for sigma = 1 and two dimensions.
    fields = {"hidden_sizes": (8,), "normalize_observations": False}
    batch = offline.batch()
    likely, certain = (
        bc.make(SPEC, bc.Config(policy=kind, **fields))
        for kind in ("gaussian", "deterministic")
    )
    params = likely.init(jax.random.key(1))

    def gradient(method, params):
        return jax.grad(
            lambda p: method.loss_fn(p, p, (), batch, jax.random.key(0))[0]
        )(params)["actor"]

    ours = gradient(likely, params)["mean"]
    squared = gradient(certain, {"actor": params["actor"]["mean"]})
    chex.assert_trees_all_close(ours, squared, rtol=1e-4, atol=1e-6)


def test_recorded_bounds_have_a_finite_likelihood_under_a_squashed_policy():
    batch = offline.batch()
    batch = batch.replace(action=jnp.broadcast_to(jnp.array([1.0, -2.0]), (32, 2)))
    config = bc.Config(policy="tanh_gaussian", hidden_sizes=(8,))
    method = bc.make(SPEC, config)
    params = method.init(jax.random.key(0))
    stats = method.init_stats(1)
    loss, gradient = jax.value_and_grad(
        lambda p: method.loss_fn(p, p, stats, batch, jax.random.key(0))[0]
    )(params)
    # atanh(1 - 1e-5) = 6.10: two dimensions of 18.6 + 0.9 - 10.8 nats each.
    assert 10 < float(loss) < 25
    chex.assert_tree_all_finite(gradient)


# ------------------------------------------------------------------- normalisation


def test_moments_of_the_batches_become_those_of_the_data():
    method = bc.make(SPEC, bc.Config(hidden_sizes=(8,)))
    batch = offline.batch()
    batch = batch.replace(
        observation=5 + 3 * batch.observation,
        next_observation=5 + 3 * batch.next_observation,
    )
    state = learner.init(method, jax.random.key(0))
    stats, prepared = method.prepare(state, batch)
    # The batch itself counts: it is standardised from the very first.
    np.testing.assert_allclose(prepared.observation.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(prepared.observation.std(axis=0), 1, rtol=1e-5)
    again, _ = method.prepare(state.replace(stats=stats), batch)
    np.testing.assert_array_equal(again.count, 2 * stats.count)
    # The successor is seen in the same units.
    seen, successor = np.asarray(batch.observation), np.asarray(batch.next_observation)
    expected = (successor - seen.mean(axis=0)) / seen.std(axis=0)
    np.testing.assert_allclose(
        prepared.next_observation, expected, rtol=1e-3, atol=1e-4
    )


def test_given_moments_never_change_and_serve_the_policy():
    known = normalization.update(
        normalization.init(jnp.zeros((3,))), 5 + 3 * offline.batch().observation
    )
    method = bc.make(SPEC, bc.Config(hidden_sizes=(8,)), known)
    plain = bc.make(SPEC, bc.Config(hidden_sizes=(8,), normalize_observations=False))
    state = learner.init(method, jax.random.key(0))
    stats, prepared = method.prepare(state, offline.batch())
    chex.assert_trees_all_equal(stats, known)
    observation = offline.batch().observation
    action, _, _ = method.act(state.params, stats, observation, (), None)
    expected, _, _ = plain.act(state.params, (), prepared.observation, (), None)
    np.testing.assert_array_equal(action, expected)


def test_actions_stay_inside_the_bounds():
    config = bc.Config(hidden_sizes=(8,), initial_log_scale=1.9)
    method = bc.make(SPEC, config)
    state = learner.init(method, jax.random.key(0))
    action, _, _ = method.act(
        state.params, state.stats, offline.batch().observation, (), jax.random.key(1)
    )
    low, high = np.asarray(SPEC.action.minimum), np.asarray(SPEC.action.maximum)
    action = np.asarray(action)
    assert np.all(action >= low - 1e-6)
    assert np.all(action <= high + 1e-6)
    assert np.ptp(action, axis=0).min() > 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "beta"}, "policy must be"),
        ({"initial_log_scale": 3.0}, "initial_log_scale must lie between"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"actor_learning_rate": -1.0}, "actor_learning_rate"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        bc.make(SPEC, bc.Config(**fields))


def test_impossible_tasks_are_named():
    with pytest.raises(ValueError, match="finite bounds"):
        bc.make(dataclasses.replace(SPEC, action=Box((2,))))
    with pytest.raises(ValueError, match="normalize_observations needs"):
        bc.make(dataclasses.replace(SPEC, observation=Discrete(4)))
    known = normalization.init(jnp.zeros((3,)))
    with pytest.raises(ValueError, match="normalize_observations is off"):
        bc.make(SPEC, bc.Config(normalize_observations=False), known)


def demonstrations():
    """The best actions of the probe, shaken by noise of deviation 0.3."""
    keys = jax.random.split(jax.random.key(5), 2)
    sign = jax.random.rademacher(keys[0], (2048,), jnp.float32)
    noise = 0.3 * jax.random.truncated_normal(keys[1], -1.5, 1.5, (2048,))
    return offline.bandit(0.5 * sign + noise, sign)


@pytest.mark.parametrize("kind", ["gaussian", "deterministic"])
def test_it_imitates(kind):
    env = probe.make("observation_action_continuous")
    config = bc.Config(policy=kind, hidden_sizes=(32,), actor_learning_rate=3e-3)
    config = dataclasses.replace(config, num_minibatches=4)
    actions = offline.learned_actions(bc.make(env.spec, config), demonstrations())
    offline.assert_best(actions, 0.05)


def test_fit_trains_on_a_dataset(tmp_path):
    env = probe.make("observation_action_continuous")
    config = bc.Config(hidden_sizes=(8,), actor_learning_rate=1e-2)
    source = offline.source(demonstrations(), batch_size=64, env=env)
    result = train.fit(
        bc.make(env.spec, config),
        source,
        num_steps=60,
        seeds=2,
        save_to=tmp_path / "run",
        settings=train.Settings(evaluations=2, episodes=4, episode_steps=1),
    )
    # Batches are counted where the data takes no environment steps.
    np.testing.assert_array_equal(result.steps, [0, 30, 60])
    assert result.returns[-1].min() > result.returns[0].max()
