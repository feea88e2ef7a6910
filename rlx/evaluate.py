"""Evaluation: whole episodes of the deterministic policy on fresh environments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from rlx.data.rollout import initial_carry
from rlx.types import Array, Env, Key, Policy, PyTree


@struct.dataclass
class Episodes:
    """Results of whole episodes, all `[E]`."""

    returns: Array
    """Undiscounted sum of rewards."""
    lengths: Array
    terminated: Array
    """bool: ended by the task, not by a limit of time."""


def episodes(
    env: Env,
    policy: Policy,
    key: Key,
    *,
    num_episodes: int = 16,
    max_steps: int | None = None,
    sample: bool = False,
) -> Episodes:
    """Runs `num_episodes` episodes side by side, each from its own fresh reset.

    Args:
      env: one environment; it is vmapped here.
      policy: who acts.
      key: for resets, the environment and, where `sample`, the actions.
      num_episodes: E.
      max_steps: episodes still alive then are cut; the environment's time limit
        unless given.
      sample: act with sampled actions instead of the deterministic policy.

    Returns:
      `Episodes`, in the order of the episodes.

    Raises:
      ValueError: neither the environment nor the caller limits the episodes, or a
        number is not positive.
    """
    limit = _limit(env, max_steps)
    if num_episodes < 1:
        raise ValueError(f"num_episodes must be at least 1, got {num_episodes}")
    reset_key, loop_key = jax.random.split(key)
    env_state, observation = jax.vmap(env.reset)(
        jax.random.split(reset_key, num_episodes)
    )
    step = jax.vmap(env.step)
    start = Episodes(
        returns=jnp.zeros((num_episodes,)),
        lengths=jnp.zeros((num_episodes,), jnp.int32),
        terminated=jnp.zeros((num_episodes,), bool),
    )

    def unfinished(loop):
        t, alive, *_ = loop
        return (t < limit) & jnp.any(alive)

    def advance(loop):
        t, alive, env_state, observation, carry, results = loop
        act_key, step_key = jax.random.split(jax.random.fold_in(loop_key, t))
        action, carry, _ = policy.act(observation, carry, act_key if sample else None)
        env_state, new = step(
            env_state, action, jax.random.split(step_key, num_episodes)
        )
        results = Episodes(
            returns=results.returns + jnp.where(alive, new.reward, 0.0),
            lengths=results.lengths + alive,
            terminated=results.terminated | (alive & new.terminated),
        )
        alive = alive & ~(new.terminated | new.truncated)
        return t + 1, alive, env_state, new.observation, carry, results

    alive = jnp.ones((num_episodes,), bool)
    carry = initial_carry(policy, num_episodes)
    loop = (jnp.zeros((), jnp.int32), alive, env_state, observation, carry, start)
    *_, results = jax.lax.while_loop(unfinished, advance, loop)
    return results


def trajectory(
    env: Env, policy: Policy, key: Key, *, max_steps: int | None = None
) -> list[PyTree]:
    """The environment states of one episode of the deterministic policy, for drawing.

    Runs on the host, step by step, and stops where the episode does.

    Raises:
      ValueError: neither the environment nor the caller limits the episode.
    """
    limit = _limit(env, max_steps)
    reset_key, loop_key = jax.random.split(key)
    env_state, observation = env.reset(reset_key)
    carry = policy.init_carry()
    states = [env_state]

    @jax.jit
    def advance(env_state, observation, carry, key):
        action, carry, _ = policy.act(observation, carry, None)
        env_state, new = env.step(env_state, action, key)
        return env_state, new, carry

    for t in range(limit):
        env_state, new, carry = advance(
            env_state, observation, carry, jax.random.fold_in(loop_key, t)
        )
        observation = new.observation
        states.append(env_state)
        if bool(new.terminated) or bool(new.truncated):
            break
    return states


def _limit(env: Env, max_steps: int | None) -> int:
    limit = max_steps if max_steps is not None else env.spec.time_limit
    if limit is None:
        raise ValueError(
            f"{env.spec.name} has no time limit: pass max_steps, or set the "
            "environment's time_limit"
        )
    if limit < 1:
        raise ValueError(f"max_steps must be at least 1, got {limit}")
    return limit
