"""Small cases of Uni-O4, which several tests share."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rlx import learner
from rlx.methods import uni_o4
from rlx.ops import normalization
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
