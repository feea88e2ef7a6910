"""The smallest method there is: it compiles in a moment, so tests can use many."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from envs import probe
from rlx.data.rollout import rollout
from rlx.types import DataSource, Env, Method


def method(learning_rate: float = 0.1, noise: float = 0.1) -> Method:
    """Regresses one number to the reward; acts by noise around it."""

    def act(params, stats, observation, carry, key):
        batch = observation.shape[:-1]
        action = jnp.broadcast_to(params["bias"], (*batch, 1))
        if key is not None:
            action = action + noise * jax.random.normal(key, action.shape)
        return action, carry, {}

    def prepare(learner, batch):
        return learner.stats, {"reward": batch.reward.reshape(-1)}

    def loss_fn(params, target_params, stats, batch, key):
        jitter = 0.01 * jax.random.normal(key, batch["reward"].shape)
        loss = jnp.mean((params["bias"] - batch["reward"] + jitter) ** 2)
        return loss, {"bias": params["bias"]}

    return Method(
        init=lambda key: {"bias": jax.random.normal(key)},
        act=act,
        loss_fn=loss_fn,
        optimizer=optax.sgd(learning_rate),
        prepare=prepare,
    )


def env(time_limit: int = 5) -> Env:
    """A continuous environment with a time limit."""
    return probe.make("lqr", time_limit=time_limit)


def source(num_envs: int = 4, length: int = 4) -> DataSource:
    """Sixteen steps a batch."""
    return rollout(env(), num_envs=num_envs, length=length)
