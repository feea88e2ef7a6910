"""Shared by the tests of offline methods: datasets as arrays, a case, a probe."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from envs import probe
from rlx import learner, train
from rlx.types import Array, DataSource, Env, Method, Transition
from tests.methods import off_policy
from tests.methods.conformance import Case

SEEDS = 4
SMALL = {"hidden_sizes": (8,), "num_minibatches": 2}


def source(
    data: Transition,
    batch_size: int = 8,
    num_minibatches: int = 1,
    env: Env | None = None,
) -> DataSource:
    """Minibatches drawn uniformly, with replacement, from transitions `[N, ...]`."""
    shape = (num_minibatches, batch_size) if num_minibatches > 1 else (batch_size,)

    def next_batch(state, policy, key):
        del policy
        index = jax.random.randint(key, shape, 0, data.reward.shape[0])
        return state, jax.tree.map(lambda x: x[index], data), {}

    return DataSource(init=lambda key, policy: (), next=next_batch, env=env)


def case(module, **fields) -> Case:
    """A small method on random transitions of the pendulum's shapes."""
    env = probe.make("pendulum", time_limit=3)
    keys = jax.random.split(jax.random.key(11), 4)
    data = Transition(
        observation=jax.random.normal(keys[0], (32, 3)),
        action=jax.random.uniform(keys[1], (32, 1), minval=-2.0, maxval=2.0),
        reward=jax.random.normal(keys[2], (32,)),
        discount=jnp.where(jnp.arange(32) % 5 == 0, 0.0, 1.0),
        truncated=jnp.arange(32) % 7 == 0,
        next_observation=jax.random.normal(keys[3], (32, 3)),
    )
    known = {k: v for k, v in SMALL.items() if k in module.Config.__dataclass_fields__}
    method = module.make(env.spec, module.Config(**{**known, **fields}))
    return method, source(data, num_minibatches=2, env=env)


def bandit(action: Array, sign: Array) -> Transition:
    """One-step episodes of `observation_action_continuous` with given actions `[N]`."""
    return Transition(
        observation=sign[:, None],
        action=action[:, None],
        reward=-jnp.square(action - probe.BEST_ACTION * sign),
        discount=jnp.zeros_like(action),
        truncated=jnp.zeros(action.shape, bool),
        next_observation=sign[:, None],
    )


def uniform_bandit(number: int = 2048) -> Transition:
    """Actions that say nothing of what is good: what is learned is from rewards."""
    keys = jax.random.split(jax.random.key(5), 2)
    action = jax.random.uniform(keys[0], (number,), minval=-1.0)
    return bandit(action, jax.random.rademacher(keys[1], (number,), jnp.float32))


def learned_actions(
    method: Method, data: Transition, iterations: int = 100
) -> np.ndarray:
    """Greedy actions `[SEEDS, 2]` at observations -1 and 1, after 4 steps a batch."""
    experience = source(data, batch_size=64, num_minibatches=4)

    def one(key: Array) -> Array:
        state = train.init(method, experience, key)
        state, _ = train.run(method, experience, state, iterations)
        policy = learner.policy(method, state.learner)
        action, _, _ = policy.act(jnp.array([[-1.0], [1.0]]), (), None)
        return action[:, 0]

    keys = jax.random.split(jax.random.key(0), SEEDS)
    return np.asarray(jax.jit(lambda: jax.lax.map(one, keys))())


assert_best = off_policy.assert_best
SPEC = off_policy.SPEC
batch = off_policy.batch
