"""Shared by the tests of methods that learn from preferences."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from envs import probe
from rlx import train
from rlx.data.segments import segments
from rlx.ops import segments as ops
from rlx.ops.preference import Answer
from tests.methods.conformance import Case

REWARD = {
    "reward_hidden_sizes": (8,),
    "reward_batch_size": 4,
    "label_capacity": 8,
    "segment_length": 3,
    "queries_per_session": 4,
}
PEBBLE = {
    **REWARD,
    "hidden_sizes": (8,),
    "num_minibatches": 2,
    "pretraining_batches": 1,
    "session_interval": 2,
    "num_neighbours": 2,
    "catch_up_steps": 2,
    "reward_epochs": 3,
}


def replay_source(env, length=3):
    """Six pairs beside two minibatches of eight."""
    return segments(
        env,
        segment_length=length,
        num_candidates=6,
        recent=32,
        num_envs=4,
        capacity=32,
        warmup=32,
        batch_size=8,
        num_minibatches=2,
    )


def replay_case(module, length=3, **fields) -> Case:
    """A small method and its source, for a method of PEBBLE's family."""
    env = probe.make("pendulum", time_limit=8)
    method = module.make(env.spec, module.Config(**{**PEBBLE, **fields}))
    return method, replay_source(env, length)


def buffer(spec, generator, length=3, number=6, capacity=8):
    """Labels of random segments, by a coin."""
    shapes = [(number, 2, length, *s.shape) for s in (spec.observation, spec.action)]
    observation, action = (
        jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes
    )
    pairs = ops.Pairs(observation, action, observation[..., 0], jnp.ones(number, bool))
    y = jnp.asarray(generator.integers(0, 3, number) / 2.0, jnp.float32)
    empty = ops.empty(spec, capacity, length)
    return ops.write(empty, pairs, Answer(y, jnp.ones(number)))


def cross_entropy(member_return, labels, index):
    """Equation 4 of PEBBLE in a loop: mean over members and their own labels.

    `member_return(member, observation [L, D], action [L, A])` is a segment's return.
    """
    total, count = 0.0, 0
    for member, rows in enumerate(np.asarray(index)):
        for row in rows:
            returns = [
                member_return(member, labels.observation[row, i], labels.action[row, i])
                for i in (0, 1)
            ]
            y = labels.preference[row]
            chosen = jax.nn.log_softmax(jnp.stack(returns))
            total = total - y * chosen[0] - (1 - y) * chosen[1]
            count += 1
    return total / count


@functools.cache
def trained(case_of, num_iterations=6):
    """The state of a case after some iterations, with the metrics of all."""
    method, source = case_of()
    state = train.init(method, source, jax.random.key(0))
    return jax.jit(lambda s: train.run(method, source, s, num_iterations))(state)
