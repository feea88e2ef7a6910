"""Random paths, a linear family, and the method at work on them: for several tests."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from rlx import learner
from rlx.methods import martingale
from rlx.networks.features import linear_family
from rlx.ops import martingale as ops
from rlx.types import Box, EnvSpec, Transition

T, B, P = 7, 3, 4
SPEC = EnvSpec("test", Box((2,)), Box((1,)))


def random_steps(generator, duration=None, inner_ends=True):
    """Random rewards, durations and path ends, some inside the batch."""
    discount = np.ones((T, B))
    truncated = np.zeros((T, B), bool)
    if inner_ends:
        discount[2, 0] = 0.0
        truncated[3, 1] = True
    discount[-1, 2] = 0.0
    cut = (discount == 0) | truncated
    cut[-1] = True
    if duration is None:
        duration = generator.uniform(0.1, 0.7, (T, B))
    reward = generator.normal(size=(T, B))
    return ops.Steps(*map(jnp.asarray, (reward, discount, duration, cut)))


def random_batch(generator, steps, size=2):
    """Transitions with unrelated successors: identities must hold on any data."""
    observation = generator.normal(size=(T, B, size))
    following = generator.normal(size=(T, B, size))
    return Transition(
        observation=jnp.asarray(observation),
        action=jnp.zeros((T, B, 1)),
        reward=steps.reward,
        discount=steps.discount,
        truncated=steps.cut & (steps.discount > 0),
        next_observation=jnp.asarray(following),
        extras={"duration": steps.duration},
    )


def feature_pairs(batch):
    """φ of the observations and of the successors, as NumPy arrays."""
    pair = (batch.observation, batch.next_observation)
    return tuple(np.asarray(features(x)) for x in pair)


def chained(batch):
    """The same with each observation the last successor, within a path."""
    ends = (batch.discount == 0) | batch.truncated
    first = batch.observation[1:]
    following = jnp.where(ends[:-1, :, None], batch.next_observation[:-1], first)
    return batch.replace(next_observation=batch.next_observation.at[:-1].set(following))


def features(observation):
    x, y = observation[..., 0], observation[..., 1]
    return jnp.stack([jnp.ones_like(x), x, x * y, jnp.sin(y)], -1)


FAMILY = linear_family(features, P)


def direction(config, batch, theta, value=FAMILY, spec=SPEC):
    """Minus the gradient of the method's loss, for the value's parameters."""
    method = martingale.make(spec, config, value)
    state = learner.init(method, jax.random.key(0))
    state = state.replace(params=state.params | {"value": theta})
    stats, prepared = method.prepare(state, batch)

    def loss(params, prepared):
        return method.loss_fn(params, params, stats, prepared, jax.random.key(0))[0]

    return -jax.jit(jax.grad(loss))(state.params, prepared)["value"]


def solved(config, batch, value=FAMILY, times=1, instruments=None):
    method = martingale.make(SPEC, config, value, instruments)
    state = learner.init(method, jax.random.key(0))
    # The batch is an argument: closed over, it would be a constant to fold.
    update = jax.jit(lambda x, y: learner.update(method, x, y, jax.random.key(0)))
    for _ in range(times):
        state, metrics = update(state, batch)
    return np.asarray(state.params["value"]), metrics


def naive_increments(value, following, steps, beta):
    reward, discount, duration, cut = map(np.asarray, steps)
    out = np.zeros((T, B))
    for b in range(B):
        now = 0.0
        for i in range(T):
            later = now + duration[i, b]
            worth = math.exp(-beta * later) * following[i, b] * discount[i, b]
            gained = math.exp(-beta * now) * (reward[i, b] - value[i, b])
            out[i, b] = worth + gained
            now = 0.0 if cut[i, b] else later
    return out
