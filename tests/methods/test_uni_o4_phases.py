"""Uni-O4: improvement over the behaviour, ranking, the hand-over."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from rlx import learner, train
from rlx.methods import _offline, _uni_o4, ppo, uni_o4
from rlx.methods._uni_o4_evaluation import model_step, smallest_value
from rlx.networks.ensemble import member
from rlx.ops import distributions, normalization
from tests.methods import offline
from tests.methods.uni_o4_cases import (
    INPUT,
    LINEAR,
    MATRIX,
    SPEC,
    config_of,
    linear_data,
)


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
