"""Shared by the tests of off-policy methods: a small source, a batch, probes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from envs import probe
from rlx import learner, train
from rlx.data.replay import replay
from rlx.ops import distributions
from rlx.types import Array, Box, DataSource, Env, EnvSpec, Method, Transition
from tests.methods.conformance import Case

SMALL = {"hidden_sizes": (8,), "num_minibatches": 2}
SEEDS = 4
SPEC = EnvSpec("small", Box((3,)), Box((2,), (-1.0, -2.0), (1.0, 3.0)))
"""Two actions, whose units are not those of the policy."""


def source(env: Env, **options) -> DataSource:
    """Two minibatches of eight from a ring that the second batch overwrites."""
    sizes = {"capacity": 16, "warmup": 16, "batch_size": 8, "num_minibatches": 2}
    return replay(env, num_envs=4, **{**sizes, **options})


def case(module, **fields) -> Case:
    """A small method and its replay for the conformance suite."""
    env = probe.make("pendulum", time_limit=3)
    return module.make(env.spec, module.Config(**{**SMALL, **fields})), source(env)


@functools.cache
def batch(dtype: str = "float32", number: int = 32) -> Transition:
    """Random transitions of the shapes of `SPEC`, with ends of both kinds."""
    keys = jax.random.split(jax.random.key(7), 6)
    observation, successor = (
        jax.random.normal(key, (number, 3), dtype) for key in keys[:2]
    )
    unit = jax.random.uniform(keys[2], (number, 2), dtype, minval=-1)
    return Transition(
        observation=observation,
        action=distributions.rescale_to_box(unit, (-1.0, -2.0), (1.0, 3.0)),
        reward=jax.random.normal(keys[3], (number,), dtype),
        discount=jax.random.bernoulli(keys[4], 0.8, (number,)).astype(dtype),
        truncated=jax.random.bernoulli(keys[5], 0.1, (number,)),
        next_observation=successor,
    )


def learned_actions(method: Method, signs: Sequence[float]) -> np.ndarray:
    """Greedy actions `[SEEDS, len(signs)]` after learning `observation_action`."""
    env = probe.make("observation_action_continuous")
    experience = replay(
        env, num_envs=8, capacity=4096, warmup=256, batch_size=64, num_minibatches=4
    )

    def one(key: Array) -> Array:
        state = train.init(method, experience, key)
        state, _ = train.run(method, experience, state, 150)
        policy = learner.policy(method, state.learner)
        action, _, _ = policy.act(jnp.asarray(signs)[:, None], (), None)
        return action[:, 0]

    keys = jax.random.split(jax.random.key(0), SEEDS)
    return np.asarray(jax.jit(lambda: jax.lax.map(one, keys))())


def assert_best(actions: np.ndarray, tolerance: float = 0.1) -> None:
    """The actions are the best of the probe."""
    best = np.broadcast_to([-probe.BEST_ACTION, probe.BEST_ACTION], actions.shape)
    np.testing.assert_allclose(actions, best, atol=tolerance)
