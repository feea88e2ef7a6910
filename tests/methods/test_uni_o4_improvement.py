"""Uni-O4: the rounds of offline improvement, bad input."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlx import learner, train
from rlx.methods import _offline, _uni_o4, uni_o4
from rlx.methods._uni_o4_improvement import judge
from rlx.networks.ensemble import member
from tests.methods import offline
from tests.methods.uni_o4_cases import (
    LINEAR,
    SPEC,
    begun,
    config_of,
    linear_data,
    rounds,
)


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
            if gate == "running" and taken:
                assert new.stats.score[i] > old.stats.best[i]
        np.testing.assert_allclose(found["accepted"], accepted / 2)
        assert np.all(new.stats.best >= old.stats.best)
        # What acts is what was accepted, by the best score among that.
        chex.assert_trees_all_equal(new.stats.acting, new.target_params["members"])
        # What phase 1 found stays as it is.
        chex.assert_trees_all_equal(new.stats.foundation, old.stats.foundation)


def test_without_a_gate_the_candidates_act():
    *_, method, state = begun(gate="never")
    states, _ = rounds(method, state, 2)
    new = states[-1]
    chex.assert_trees_all_equal(new.stats.acting, new.params["members"])
    chex.assert_trees_all_equal(new.target_params, state.target_params)


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
