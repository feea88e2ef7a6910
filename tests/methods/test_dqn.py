"""DQN: rlax as oracle, masks, values of the probes, prioritised and uniform replay."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import probe
from rlx import learner, train
from rlx.data.prioritised import prioritised
from rlx.methods import _q_learning, dqn
from rlx.ops import values
from rlx.types import FEEDBACK, Box, Discrete, EnvSpec, Network, Transition
from tests.methods import off_policy
from tests.test_learning import any_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # rlax imports tensorflow_probability
    import rlax

SMALL = {"hidden_sizes": (8,), "num_minibatches": 2}
SPEC = EnvSpec("small", Box((3,)), Discrete(4))
SIZES = {"num_envs": 4, "capacity": 16, "warmup": 16, "batch_size": 8}


def conformance_cases():
    env = probe.make("cartpole", time_limit=3)
    fields = {**SMALL, "n_step": 2, "target_period": 2}
    return {
        "prioritised": (
            dqn.make(env.spec, dqn.Config(**SMALL)),
            prioritised(env, num_minibatches=2, **SIZES),
        ),
        "uniform": (
            dqn.make(env.spec, dqn.Config(**fields, double=False, dueling=False)),
            off_policy.source(env, n_step=2, gamma=0.99),
        ),
    }


def test_worked_numbers():
    # Targets 1 + 0.9 * 2 = 2.8 and, terminated, -1: errors 0.8 and -3.
    losses = dqn.loss(
        jnp.array([2.0, 2.0]),
        jnp.array([1.0, -1.0]),
        jnp.array([1.0, 0.0]),
        jnp.array([2.0, 7.0]),
        jnp.array([1.0, 0.5]),
        gamma=0.9,
    )
    np.testing.assert_allclose(losses, [0.32, 0.5 * 2.5], rtol=1e-6)


def batch(number: int = 16, importance: bool = True) -> Transition:
    keys = jax.random.split(jax.random.key(7), 6)
    extras = {"importance": jax.random.uniform(keys[5], (number,))}
    return Transition(
        observation=jax.random.normal(keys[0], (number, 3)),
        action=jax.random.randint(keys[1], (number,), 0, 4),
        reward=2 * jax.random.normal(keys[2], (number,)),
        discount=jax.random.bernoulli(keys[3], 0.8, (number,)).astype(jnp.float32),
        truncated=jnp.zeros((number,), bool),
        next_observation=jax.random.normal(keys[4], (number, 3)),
        extras=extras if importance else {},
    )


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("threshold", [0.7, float("inf")])
def test_the_loss_is_that_of_rlax(double, threshold):
    config = dqn.Config(
        hidden_sizes=(8,), double=double, gamma=0.8, huber_threshold=threshold
    )
    method = dqn.make(SPEC, config)
    params, target = (jax.jit(method.init)(jax.random.key(i)) for i in (0, 1))
    data = batch()
    value, metrics = jax.jit(method.loss_fn)(
        params, target, (), data, jax.random.key(0)
    )
    network = dqn.action_values(SPEC, (8,))
    now, ahead, judged = (
        network.apply(p, o)
        for p, o in (
            (params, data.observation),
            (params, data.next_observation),
            (target, data.next_observation),
        )
    )
    arguments = (now, data.action, data.reward, 0.8 * data.discount, judged)
    if double:
        errors = jax.vmap(rlax.double_q_learning)(*arguments, ahead)
    else:
        errors = jax.vmap(rlax.q_learning)(*arguments)
    size = np.abs(np.asarray(errors, np.float64))
    near = np.minimum(size, threshold)
    expected = np.mean(data.extras["importance"] * near * (size - near / 2))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics[FEEDBACK], size, rtol=1e-4, atol=1e-6)


def test_a_constant_added_to_all_advantages_changes_nothing():
    generator = np.random.default_rng(0)
    value = jnp.float32(generator.normal(size=5))
    advantages = jnp.float32(generator.normal(size=(5, 4)))
    where = jnp.asarray(generator.random((5, 4)) < 0.6).at[:, 0].set(True)
    plain = values.dueling(value, advantages)
    np.testing.assert_allclose(
        plain, values.dueling(value, advantages + 3.0), atol=1e-5
    )
    np.testing.assert_allclose(jnp.mean(plain, axis=1), value, atol=1e-6)
    masked = np.asarray(values.dueling(value, advantages, where))
    np.testing.assert_allclose(
        masked, values.dueling(value, advantages + 3.0, where), atol=1e-5
    )
    for row, mask, expected in zip(masked, np.asarray(where), value, strict=True):
        np.testing.assert_allclose(row[mask].mean(), expected, atol=1e-6)


def table(spec: EnvSpec) -> Network:
    """The observation is Q(s, ·), the parameter a factor."""
    del spec
    return Network(lambda key: jnp.ones(()), lambda params, o: params * o["values"])


def test_masked_actions_are_neither_taken_nor_bootstrapped_from():
    config = dqn.Config(epsilon_start=1.0, epsilon_steps=10, epsilon_end=0.0)
    method = dqn.make(SPEC, config, network=table(SPEC), allowed=lambda o: o["allowed"])
    observation = {
        "values": jnp.array([[1.0, 9.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0]]),
        "allowed": jnp.array([[True, False, True, True], [False] * 4]),
    }
    act = functools.partial(method.act, jnp.ones(()))
    best, _, _ = act(jnp.int32(10), observation, (), None)
    np.testing.assert_array_equal(best, [3, 0])
    keys = jax.random.split(jax.random.key(0), 3000)
    drawn, _, _ = jax.vmap(lambda key: act(jnp.int32(0), observation, (), key))(keys)
    counts = np.bincount(np.asarray(drawn)[:, 0], minlength=4)
    assert counts[1] == 0 and counts[[0, 2, 3]].min() > 850  # 1000 each
    half, _, _ = jax.vmap(lambda key: act(jnp.int32(5), observation, (), key))(keys)
    assert abs(np.mean(np.asarray(half)[:, 0] == 3) - (0.5 + 0.5 / 3)) < 0.04
    agent = _q_learning.Agent(
        table(SPEC), lambda o, q: o["allowed"], lambda o, q, i: i, lambda b: b.action
    )
    ahead = _q_learning.next_value(
        agent, True, -jnp.ones(()), jnp.ones(()), observation
    )
    np.testing.assert_array_equal(ahead, [1.0, 0.0])  # -1 is the best of -1, -2, -3


def test_targets_follow_or_are_copied():
    for fields, expected in (
        ({"tau": 0.25}, 0.25),
        ({"target_period": 2}, 0.0),
        ({"target_period": 1}, 1.0),
    ):
        method = dqn.make(SPEC, dqn.Config(hidden_sizes=(2,), **fields))
        new = method.target_update(jnp.ones(3), jnp.zeros(3), jnp.int32(3))
        np.testing.assert_allclose(new, expected)


GAMMA = 0.9


N_STEP = 2
PROBES = (("observation_action", "delayed_reward"), ("chain", "ring"))
KNOWN = {
    "observation_action": ([[-1.0], [1.0]], [[1.0, -1.0], [-1.0, 1.0]]),
    "delayed_reward": ([[0.0], [1.0]], [[GAMMA] * 2, [1.0] * 2]),
    "chain": (np.eye(3), np.repeat(probe.chain_values(GAMMA)[:, None], 2, 1)),
    "ring": (np.eye(3), np.repeat(probe.ring_values(GAMMA)[:, None], 2, 1)),
}


@functools.cache
def learned(probes: tuple[str, ...]):
    """Parameters `[seed, ...]` by probe; those of one shape share a program."""
    members = [probe.make(member) for member in probes]
    spec = members[0].spec
    config = dqn.Config(
        hidden_sizes=(32,),
        learning_rate=5e-3,
        gamma=GAMMA,
        n_step=N_STEP,
        num_minibatches=4,
        tau=0.1,
        epsilon_steps=200,
    )
    method = dqn.make(spec, config)

    def one(setting):
        index, key = setting
        source = prioritised(
            any_of(members, index),
            num_envs=8,
            capacity=2048,
            warmup=256,
            batch_size=64,
            num_minibatches=4,
            n_step=N_STEP,
            gamma=GAMMA,
            beta_steps=400,
        )
        state = train.init(method, source, key)
        return train.run(method, source, state, 150)[0].learner.params

    keys = jax.random.split(jax.random.key(0), 6)
    params = jax.jit(lambda: jax.lax.map(one, (jnp.arange(6) // 3, keys)))()
    return dqn.action_values(spec, (32,)), {
        name: jax.tree.map(lambda x, i=i: x[3 * i : 3 * i + 3], params)
        for i, name in enumerate(probes)
    }


@pytest.mark.parametrize("name", KNOWN)
def test_action_values_are_the_known_ones(name):
    observations, expected = KNOWN[name]
    network, params = learned(next(probes for probes in PROBES if name in probes))
    found = jax.vmap(network.apply, (0, None))(
        params[name], jnp.asarray(observations, jnp.float32)
    )
    expected = np.broadcast_to(expected, found.shape)
    np.testing.assert_allclose(found, expected, atol=0.12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_step": 0}, "n_step must be at least 1"),
        ({"tau": 1.5}, "tau must lie in"),
        ({"epsilon_end": -0.1}, "epsilon_end must lie in"),
        ({"target_period": -1}, "target_period must not be negative"),
        ({"huber_threshold": 0.0}, "huber_threshold must be positive"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        dqn.make(SPEC, dqn.Config(**fields))


def test_continuous_actions_are_refused():
    with pytest.raises(ValueError, match="discrete actions"):
        dqn.make(probe.make("pendulum").spec)


def test_epsilon_goes_by_gradient_steps():
    method = dqn.make(SPEC, dqn.Config(hidden_sizes=(2,), num_minibatches=2))
    state = jax.jit(lambda key: learner.init(method, key))(jax.random.key(0))
    data = jax.tree.map(lambda x: x[None].repeat(2, 0), batch(4))
    state, _ = jax.jit(lambda s, k: learner.update(method, s, data, k))(
        state, jax.random.key(1)
    )
    assert int(state.stats) == int(state.step) == 2
