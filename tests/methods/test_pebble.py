"""PEBBLE: worked numbers, relabelling, the schedule, and a reward that is found."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import probe
from experiments.parl import arms, control
from rlx import learner, train
from rlx.data.segments import segments
from rlx.methods import _off_policy, _pebble_learning, _preference, pebble
from rlx.ops import preference, state_entropy
from tests.methods import off_policy, preference_learning
from tests.methods.preference_learning import PEBBLE, replay_case, replay_source


def pendulum_case():
    return replay_case(pebble)


def conformance_cases():
    return {"pendulum": pendulum_case()}


def test_worked_numbers():
    # σ(0) = ½: log 2; Δ = log 3, y = 1: σ = ¾; y = 0: 1 − σ = ¼.
    difference = jnp.log(jnp.array([1.0, 3.0, 3.0]))
    losses = pebble.loss(difference, jnp.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(losses, np.log([2.0, 4 / 3, 4.0]), rtol=1e-6)


def test_the_distance_to_a_neighbour_is_that_of_a_sort(generator):
    points, others = (generator.normal(size=(n, 3)) for n in (5, 9))
    distance = np.sort(np.linalg.norm(points[:, None] - others[None], axis=-1))[:, 2]
    found = state_entropy.neighbour_distance(jnp.array(points), jnp.array(others), 3)
    np.testing.assert_allclose(found, distance, rtol=1e-5)
    same = state_entropy.neighbour_distance(jnp.array(points), jnp.array(points), 1)
    np.testing.assert_allclose(same, 0.0, atol=1e-3)
    with pytest.raises(ValueError, match="choose fewer neighbours"):
        state_entropy.neighbour_distance(jnp.array(points), jnp.array(others), 10)


def test_the_fit_has_the_gradient_of_the_paper(generator):
    spec = probe.make("pendulum").spec
    config = pebble.Config(**PEBBLE)
    reward = _preference.make_reward(spec, config)
    labels = preference_learning.buffer(spec, generator)
    index = jnp.asarray(generator.integers(0, 6, (3, 4)))

    def mine(params):
        return _preference.label_loss(reward, params, labels, index).loss

    def theirs(params):
        def returns(member, observation, action):
            one = jax.tree.map(lambda x: x[member], params)
            return jnp.sum(reward.member.apply(one, observation, action))

        return preference_learning.cross_entropy(returns, labels, index)

    params = reward.members.init(jax.random.key(1))
    got, expected = jax.jit(lambda p: (jax.grad(mine)(p), jax.grad(theirs)(p)))(params)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-6)


def test_after_a_refit_everything_drawn_is_worth_what_the_new_reward_says():
    method, source = pendulum_case()
    config = pebble.Config(**PEBBLE)
    reward = _preference.make_reward(source.env.spec, config)
    state, _ = preference_learning.trained(pendulum_case)
    policy = learner.policy(method, state.learner)
    _, batch, _ = source.next(state.source, policy, jax.random.key(2))
    stats, batch = method.prepare(state.learner, batch)
    params = state.learner.params
    found = _pebble_learning.relabel(reward, config, params, stats, batch).reward
    before = batch.experience
    members = [
        reward.member.apply(
            jax.tree.map(lambda x, i=i: x[i], params["reward"]),
            before.observation,
            before.action,
        )
        for i in range(3)
    ]
    np.testing.assert_allclose(found, sum(members) / 3, atol=1e-6)
    assert np.max(np.abs(found)) < 1 < np.max(np.abs(before.reward))
    # While it is pre-trained, it is novelty, of which the old reward knows nothing.
    early = stats.replace(batches=jnp.zeros((), jnp.int32))
    found = _pebble_learning.relabel(reward, config, params, early, batch).reward
    np.testing.assert_array_equal(found, batch.novelty)


def test_the_true_reward_reaches_the_run_through_the_teacher_alone():
    """A teacher that ignores it: the run is the same whatever the rewards are."""
    env = probe.make("pendulum", time_limit=8)

    def ask(key, first, second):
        del second
        chosen = jax.random.bernoulli(key, 0.5, first.shape[1:])
        return preference.Answer(chosen.astype(jnp.float32), jnp.ones(chosen.shape))

    method = pebble.make(env.spec, pebble.Config(**PEBBLE), ask)

    def run(scale):
        def step(state, action, key):
            state, result = env.step(state, action, key)
            return state, result.replace(reward=scale * result.reward)

        source = replay_source(env._replace(step=step))
        state = train.init(method, source, jax.random.key(0))
        return train.run(method, source, state, 4)[0].learner

    both = jax.jit(jax.vmap(run))(jnp.array([1.0, -7.0]))
    for leaf in jax.tree.leaves(both):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    assert int(both.stats.labels.asked[0]) == 8


@pytest.fixture(scope="module")
def history():
    """States after one and two batches, metrics of six; critics hardly learn."""
    method, source = replay_case(pebble, num_labels=6, critic_learning_rate=1e-30)
    advance = jax.jit(lambda s: train.run(method, source, s, 1))
    state = jax.jit(lambda key: train.init(method, source, key))(jax.random.key(0))
    states, rows = [], []
    for _ in range(6):
        state, metrics = advance(state)
        states.append(state.learner)
        rows.append(jax.tree.map(lambda x: float(x[0]), metrics))
    return states, {name: [row[name] for row in rows] for name in rows[0]}


def test_the_schedule_asks_at_sessions_until_the_budget_is_spent(history):
    _, metrics = history
    # After one batch of pre-training, then every second: 4, and the 2 that are left.
    assert metrics["asked"] == [0, 4, 4, 6, 6, 6]
    steps = np.diff(metrics["reward_steps"])
    assert steps[0] > 0
    np.testing.assert_array_equal(steps[[1, 3, 4]], 0)


def test_the_first_session_forgets_the_critics_and_catches_up(history):
    (one, two, three, *_), _ = history
    # Two regular steps, then the reset, 2 steps of catching up and 2 regular ones.
    assert [int(x.step) for x in (one, two, three)] == [2, 6, 8]
    kernels = [
        x.params["critics"]["critic_0"]["layer_0"]["kernel"] for x in (one, two, three)
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
    np.testing.assert_allclose(kernels[1], kernels[2], atol=1e-6)
    chex.assert_trees_all_close(
        two.params["critics"], two.target_params["critics"], atol=1e-6
    )
    moments = two.opt_state["policy"].inner_states["critics"].inner_state[0]
    assert int(moments.count) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"query_selection": "best"}, "query_selection"),
        ({"reward_members": 1}, "single member cannot disagree"),
        ({"queries_per_session": 9}, "cannot hold"),
        ({"teacher_mistake": 1.5}, "teacher_mistake"),
        ({"segment_length": 300}, "longer than an episode"),
        ({"pretraining_batches": -1}, "pretraining_batches"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    spec = probe.make("pendulum").spec
    config = dataclasses.replace(pebble.Config(**PEBBLE), **fields)
    with pytest.raises(ValueError, match=message):
        pebble.make(spec, config).init_stats(1)


def test_teacher_thresholds_count_their_fraction_once():
    config = pebble.Config(teacher_skip=0.1, teacher_equal=0.2)
    teacher = _preference.make_teacher(config, 30.0)
    np.testing.assert_allclose(teacher.skip_threshold, 3.0, rtol=1e-6)
    np.testing.assert_allclose(teacher.equal_threshold, 6.0, rtol=1e-6)
    plain = _preference.make_teacher(pebble.Config(), -30.0)
    assert plain.skip_threshold == -jnp.inf
    assert plain.equal_threshold == 0


def test_its_lower_level_is_soft_actor_critic():
    """On the learned reward as the true one, its loss is SAC's."""
    from rlx.methods import sac

    method, source = pendulum_case()
    state, _ = preference_learning.trained(pendulum_case)
    config = pebble.Config(**PEBBLE)
    reward = _preference.make_reward(source.env.spec, config)
    policy = learner.policy(method, state.learner)
    _, batch, _ = source.next(state.source, policy, jax.random.key(2))
    learned = state.learner
    _, prepared = method.prepare(learned, batch)
    experience = _pebble_learning.relabel(
        reward, config, learned.params, learned.stats, prepared
    )
    shared = {f.name for f in dataclasses.fields(_off_policy.OffPolicyConfig)}
    fields = {name: getattr(config, name) for name in shared}
    plain = sac.make(source.env.spec, sac.Config(**fields))
    key = jax.random.key(3)
    arguments = (learned.params, learned.target_params)
    mine, _ = method.loss_fn(*arguments, learned.stats, prepared, key)
    theirs, _ = plain.loss_fn(*arguments, (), experience, key)
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_a_person_may_answer_between_two_programs():
    method, source = pendulum_case()
    config = pebble.Config(**{**PEBBLE, "num_labels": 15})
    session = pebble.make_session(source.env.spec, config)
    state, _ = preference_learning.trained(pendulum_case)
    policy = learner.policy(method, state.learner)
    _, batch, _ = source.next(state.source, policy, jax.random.key(2))
    pairs = batch.candidates.replace(whole=jnp.ones(6, bool))
    before = state.learner
    assert int(before.stats.labels.asked) == 12

    @jax.jit
    def both(before):
        queries = session.choose(before, pairs, jax.random.key(3))
        answer = preference.Answer(jnp.array([1.0, 0.0, 0.5, 1.0]), jnp.ones(4))
        asked = pebble.Asked(queries, answer, pairs)
        return queries, session.learn(before, asked, jax.random.key(4))

    queries, after = both(before)
    # 12 of 15 are spent: of four queries, one is too many.
    assert int(queries.whole.sum()) == 3
    assert int(after.stats.labels.asked) == 15
    assert int(after.stats.labels.ties) == int(before.stats.labels.ties) + 1
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), before.params, after.params
    )
    assert all(jax.tree.leaves(moved["reward"]))
    assert not any(jax.tree.leaves({**moved, "reward": False}))
    observation, action = batch.experience.observation, batch.experience.action
    assert session.reward(after, observation, action).shape == (2, 8)


@pytest.mark.slow
def test_it_learns_from_preferences_which_action_suits_which_observation():
    env = probe.make("observation_action_continuous")
    env = env._replace(spec=dataclasses.replace(env.spec, time_limit=None))
    config = pebble.Config(
        hidden_sizes=(32,), num_minibatches=4, actor_learning_rate=3e-3,
        critic_learning_rate=3e-3, temperature_learning_rate=1e-2, target_entropy=-2.0,
        segment_length=1, queries_per_session=50, num_labels=400, session_interval=20,
        pretraining_batches=5, reward_hidden_sizes=(32, 32), reward_batch_size=64,
        reward_learning_rate=3e-3,
    )  # fmt: skip
    method = pebble.make(env.spec, config)
    source = segments(
        env, segment_length=1, num_candidates=200, num_envs=8, capacity=4096,
        warmup=256, batch_size=64, num_minibatches=4,
    )  # fmt: skip

    def one(key):
        state = train.init(method, source, key)
        state, _ = train.run(method, source, state, 300)
        policy = learner.policy(method, state.learner)
        return policy.act(jnp.array([[-1.0], [1.0]]), (), None)[0][:, 0]

    keys = jax.random.split(jax.random.key(0), off_policy.SEEDS)
    actions = np.asarray(jax.jit(lambda: jax.lax.map(one, keys))())
    off_policy.assert_best(actions, tolerance=0.2)


@pytest.mark.slow
def test_it_swings_the_pendulum_up_from_160_preferences():
    """At random about -1250, with the true reward -260: see `experiments/parl`."""
    plan = dataclasses.replace(control.PLAN, budgets=(160,))
    make, source, hyper = arms.off_policy(plan, "pebble", probe.make("pendulum"))
    # The suite compiles without optimisation; this runs long enough to want it.
    optimised = {"xla_backend_optimization_level": 3}
    result = train.fit(
        make,
        source,
        num_steps=plan.off_policy_batches * source.steps_per_batch,
        seeds=2,
        hyper=hyper,
        settings=train.Settings(evaluations=1, episodes=16, compiler_options=optimised),
    )
    first, last = result.returns
    assert first.mean() < -1000 and last.mean() > -400, result.returns
    np.testing.assert_array_equal(result.state.learner.stats.labels.asked, 160)
