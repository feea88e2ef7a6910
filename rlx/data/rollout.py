"""On-policy data: the current policy acts in many environments at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rlx.types import (
    Array,
    Carry,
    DataSource,
    Env,
    Key,
    Metrics,
    Policy,
    PyTree,
    Transition,
)


@struct.dataclass
class RolloutState:
    """Where all environments stand between two batches. All leaves lead with `[B]`."""

    env_state: PyTree
    observation: PyTree
    carry: Carry
    episode_return: Array
    episode_length: Array


def select(condition: Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """`jnp.where` over pytrees, `condition [B]` against leaves `[B, ...]`.

    Typed PRNG keys in the tree are selected like any other leaf.
    """

    def leaf(a: Any, b: Any) -> Any:
        shape = condition.shape + (1,) * (a.ndim - condition.ndim)
        return jnp.where(condition.reshape(shape), a, b)

    return jax.tree.map(leaf, on_true, on_false)


def rollout(
    env: Env, *, num_envs: int = 40, length: int = 50, reset_pool: int = 0
) -> DataSource:
    """Steps `num_envs` environments `length` times per batch.

    Batches are `Transition`s with leading axes `[T, B] = [length, num_envs]`.
    `next_observation` is always the true successor. Environments that end are reset
    to a freshly drawn state before the next step.

    Args:
      env: one environment; it is vmapped here.
      num_envs: B, environments stepped together.
      length: T, steps per environment and batch.
      reset_pool: 0 draws a fresh reset state for every episode. K > 0 draws K reset
        states anew in each batch, and episodes that end within the batch start from
        one of them at random: for environments whose reset costs more than a step.

    Returns:
      A data source of `num_envs * length` environment steps per batch. Its metrics
      are `episode_return`, `episode_length` (means over the episodes that ended in
      the batch; NaN if none did) and `episodes` (how many ended).

    Raises:
      ValueError: a size is not positive.
    """
    if num_envs < 1 or length < 1 or reset_pool < 0:
        raise ValueError(
            "num_envs and length must be at least 1 and reset_pool at least 0, got "
            f"num_envs={num_envs}, length={length}, reset_pool={reset_pool}"
        )
    reset = jax.vmap(env.reset)
    step = jax.vmap(env.step)

    def init(key: Key, policy: Policy) -> RolloutState:
        env_state, observation = reset(jax.random.split(key, num_envs))
        return RolloutState(
            env_state=env_state,
            observation=observation,
            carry=initial_carry(policy, num_envs),
            episode_return=jnp.zeros((num_envs,)),
            episode_length=jnp.zeros((num_envs,), jnp.int32),
        )

    def fresh(key: Key, ended: Array, env_state: PyTree, observation: PyTree):
        # With vmapped seeds the condition is a select and resets run every step;
        # otherwise steps in which no episode ends skip them.
        def reset_ended():
            states = reset(jax.random.split(key, num_envs))
            return select(ended, states, (env_state, observation))

        return jax.lax.cond(
            jnp.any(ended), reset_ended, lambda: (env_state, observation)
        )

    def from_pool(pool, key: Key, ended: Array, env_state, observation):
        choice = jax.random.randint(key, (num_envs,), 0, reset_pool)
        chosen = jax.tree.map(lambda x: x[choice], pool)
        return select(ended, chosen, (env_state, observation))

    def next_batch(
        state: RolloutState, policy: Policy, key: Key
    ) -> tuple[RolloutState, Transition, Metrics]:
        pool_key, key = jax.random.split(key)
        pool = reset(jax.random.split(pool_key, reset_pool)) if reset_pool else None
        empty_carry = initial_carry(policy, num_envs)

        def one_step(state: RolloutState, key: Key):
            act_key, step_key, reset_key = jax.random.split(key, 3)
            action, carry, extras = policy.act(state.observation, state.carry, act_key)
            env_state, result = step(
                state.env_state, action, jax.random.split(step_key, num_envs)
            )
            ended = result.terminated | result.truncated
            transition = Transition(
                observation=state.observation,
                action=action,
                reward=result.reward,
                discount=1.0 - result.terminated.astype(jnp.float32),
                # A step that ends by itself needs no cut: discount already says so.
                truncated=result.truncated & ~result.terminated,
                next_observation=result.observation,
                extras=extras,
            )
            episode_return = state.episode_return + result.reward
            episode_length = state.episode_length + 1
            if reset_pool:
                env_state, observation = from_pool(
                    pool, reset_key, ended, env_state, result.observation
                )
            else:
                env_state, observation = fresh(
                    reset_key, ended, env_state, result.observation
                )
            new = RolloutState(
                env_state=env_state,
                observation=observation,
                carry=select(ended, empty_carry, carry),
                episode_return=jnp.where(ended, 0.0, episode_return),
                episode_length=jnp.where(ended, 0, episode_length),
            )
            return new, (transition, ended, episode_return, episode_length)

        state, (batch, ended, returns, lengths) = jax.lax.scan(
            one_step, state, jax.random.split(key, length)
        )
        return state, batch, _episode_metrics(ended, returns, lengths)

    return DataSource(
        init=init,
        next=next_batch,
        steps_per_batch=num_envs * length,
        num_envs=num_envs,
        env=env,
    )


def initial_carry(policy: Policy, num_envs: int) -> Carry:
    """The policy's empty memory, one copy per environment: leaves `[B, ...]`."""
    return jax.tree.map(
        lambda x: jnp.broadcast_to(x, (num_envs, *jnp.shape(x))), policy.init_carry()
    )


def _episode_metrics(ended: Array, returns: Array, lengths: Array) -> Metrics:
    count = jnp.sum(ended)
    divisor = jnp.maximum(count, 1)
    none = jnp.where(count > 0, 0.0, jnp.nan)
    return {
        "episode_return": jnp.sum(jnp.where(ended, returns, 0.0)) / divisor + none,
        "episode_length": jnp.sum(jnp.where(ended, lengths, 0)) / divisor + none,
        "episodes": count.astype(jnp.float32),
    }
