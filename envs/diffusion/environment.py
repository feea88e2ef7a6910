"""A diffusion as an environment that an agent controls step by step."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from envs.diffusion.core import Diffusion, num_steps
from envs.diffusion.paths import observe, step_function
from rlx.types import Array, Box, Env, EnvSpec, Key, Step


@struct.dataclass
class DiffusionState:
    """Where one environment stands."""

    index: Array
    """`int32[]` steps taken."""
    state: Array
    """`[d]`."""


def make(
    diffusion: Diffusion,
    step_size: float,
    duration: float | None = None,
    scheme: str = "euler",
    own_policy: bool = False,
) -> Env:
    """The diffusion under an agent's actions, held constant during each step.

    The observation is (t, x), or x when the horizon is infinite. The reward of a step
    is its rate times the step, without any entropy. At a finite horizon the episode
    *terminates* and the reward includes e^{-β Δt} h(X_T), its worth at the start of the
    step; an infinite one is *truncated* after `duration`.

    With `own_policy` the agent is a spectator: the diffusion's policy acts, and its
    entropy counts (-γ log π, per unit of time), as in `simulate`. What is to be learned
    then is that policy's value, `Diffusion.value`.

    Explosive dynamics have a documented stop: the state stays at its last finite value,
    the reward of that step is 0, the episode is truncated and `info["exploded"]` is 1.

    Args:
      diffusion: what to control; an uncontrolled one ignores an action of size 1.
      step_size: Δt, must divide the horizon (or `duration`).
      duration: simulated time of an episode; needed when the horizon is infinite.
      scheme: "euler", "milstein" or "exact".
      own_policy: ignore the agent's actions; nothing changes where there is no control.

    Raises:
      ValueError: the step does not divide the horizon, or a duration is missing.
    """
    finite = math.isfinite(diffusion.horizon)
    length = diffusion.horizon if finite else duration
    if length is None:
        raise ValueError(f"{diffusion.name} has no horizon: give duration=...")
    limit = num_steps(length, step_size)
    advance = step_function(diffusion, scheme)
    policy = diffusion.policy if own_policy else None
    worth = math.exp(-diffusion.discount_rate * step_size)

    def reset(key: Key) -> tuple[DiffusionState, Array]:
        state = diffusion.initial(key)
        index = jnp.zeros((), jnp.int32)
        return DiffusionState(index, state), observe(diffusion, index * 0.0, state)

    def step(
        env_state: DiffusionState, action: Array, key: Key
    ) -> tuple[DiffusionState, Step]:
        state = env_state.state
        action = action[: diffusion.action_dimension].astype(state.dtype)
        now = env_state.index * step_size
        entropy: float | Array = 0.0
        if policy is not None:
            key, action_key = jax.random.split(key)
            action, log_prob = policy(now, state, action_key)
            entropy = -diffusion.temperature * log_prob
        noise = math.sqrt(step_size) * jax.random.normal(
            key, (diffusion.noise_dimension,), state.dtype
        )
        following = advance(now, state, action, step_size, noise)
        reward = (diffusion.reward(now, state, action) + entropy) * step_size
        index = env_state.index + 1
        end = index >= limit
        if finite:
            reward = reward + jnp.where(end, worth * diffusion.terminal(following), 0.0)
        sound = jnp.all(jnp.isfinite(following)) & jnp.isfinite(reward)
        following = jnp.where(sound, following, state)
        observation = observe(diffusion, index * step_size * jnp.ones(()), following)
        return DiffusionState(index, following), Step(
            observation=observation,
            reward=jnp.where(sound, reward, 0.0),
            terminated=end & sound if finite else jnp.zeros((), bool),
            truncated=~sound | (end & (not finite)),
            info={"exploded": 1.0 - sound.astype(jnp.float32)},
        )

    spec = EnvSpec(
        name=f"diffusion/{diffusion.name}",
        observation=Box((diffusion.dimension + finite,)),
        action=Box((max(diffusion.action_dimension, 1),)),
        time_limit=limit,
        control_frequency=1.0 / step_size,
    )
    return Env(reset, step, spec)
