"""What methods with a deterministic policy share: acting, its loss, delayed steps.

DDPG and TD3 differ in the target of their critics and in how often the policy steps.
Policies act, and noise is added, in [-1, 1], whatever the environment's units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rlx.methods import _off_policy
from rlx.networks.critics import critics, deterministic_policy
from rlx.ops import targets
from rlx.types import Array, Carry, EnvSpec, Key, Network, Params, PyTree, Transition


@dataclasses.dataclass(frozen=True)
class DeterministicConfig(_off_policy.ActorCriticConfig):
    """Fields of methods with a deterministic policy."""

    exploration_noise: float = 0.1
    """Deviation of the Gaussian noise on actions in [-1, 1] while training (Fujimoto
    et al. 2018, section 6.1)."""


@dataclasses.dataclass(frozen=True)
class TwinDelayedConfig(DeterministicConfig):
    """Fields of TD3 and of what is built on it."""

    policy_delay: int = 2
    """d: steps of the critics per step of the policy and the targets (Fujimoto et al.
    2018, section 6.1)."""
    smoothing_noise: float = 0.2
    """Deviation of the noise on target actions, in units of [-1, 1] (section 6.1)."""
    smoothing_clip: float = 0.5
    """c: that noise is clipped at this (section 6.1)."""


class Agent(NamedTuple):
    """Networks with the units that fit the action space."""

    actor: Network
    """`apply(params, observation) -> action` in [-1, 1]."""
    critics: Network
    to_env: Callable[[Array], Array]
    """From [-1, 1] to the environment's units."""
    from_env: Callable[[Array], Array]


def make_agent(spec: EnvSpec, config: DeterministicConfig, num_critics: int) -> Agent:
    """Networks for an environment.

    Raises:
      ValueError: a field that both methods have is impossible, or actions are no
        vectors with finite bounds.
    """
    _off_policy.check(config)
    _off_policy.require(
        config, "exploration_noise", lambda x: x >= 0, "not be negative"
    )
    to_env, from_env = _off_policy.action_units(spec)
    sizes = (config.hidden_sizes, config.activation)
    return Agent(
        actor=deterministic_policy(spec, *sizes),
        critics=critics(spec, *sizes, num_critics=num_critics),
        to_env=to_env,
        from_env=from_env,
    )


def init(agent: Agent, key: Key) -> Params:
    """Fresh parameters of policy and critics."""
    return _off_policy.init(key, actor=agent.actor, critics=agent.critics)


def make_act(
    agent: Agent, noise: float | Array
) -> Callable[..., tuple[Array, Carry, PyTree]]:
    """The policy: with a key, Gaussian noise is added and the sum clipped to bounds."""

    def act(
        params: Params, stats: PyTree, observation: PyTree, carry: Carry, key: Key
    ) -> tuple[Array, Carry, PyTree]:
        del stats
        unit = agent.actor.apply(params["actor"], observation)
        if key is not None:
            drawn = noise * jax.random.normal(key, unit.shape, unit.dtype)
            unit = jnp.clip(unit + drawn, -1.0, 1.0)
        return agent.to_env(unit), carry, {}

    return act


def smoothed_action(action: Array, noise: Array, *, clip: float | Array) -> Array:
    """Target policy smoothing (section 5.3): ã = clip(π̄(s') + clip(ε, −c, c), −1, 1).

    Elementwise.

    Args:
      action: `[...]` π̄(s') in [-1, 1].
      noise: `[...]` ε, before clipping.
      clip: c >= 0, scalar.

    Returns:
      `[...]` actions in [-1, 1].

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([action, noise])
    chex.assert_type([action, noise], float)
    return jnp.clip(action + jnp.clip(noise, -clip, clip), -1.0, 1.0)


def smoothed_values(
    agent: Agent,
    config: TwinDelayedConfig,
    target_params: Params,
    observation: PyTree,
    key: Key,
) -> Array:
    """Both target critics' values `[2, ...]` at the target policy's smoothed action."""
    action = agent.actor.apply(target_params["actor"], observation)
    noise = config.smoothing_noise * jax.random.normal(key, action.shape, action.dtype)
    action = smoothed_action(action, noise, clip=config.smoothing_clip)
    return agent.critics.apply(target_params["critics"], observation, action)


def policy_loss(agent: Agent, params: Params, batch: Transition) -> Array:
    """−mean Q₁(s, π(s)): its gradient is the deterministic policy gradient.

    Silver et al. 2014, theorem 1; the critics are constants.
    """
    action = agent.actor.apply(params["actor"], batch.observation)
    constant = jax.lax.stop_gradient(params["critics"])
    return -jnp.mean(agent.critics.apply(constant, batch.observation, action)[0])


def make_optimizer(
    config: DeterministicConfig, delay: int = 1
) -> optax.GradientTransformation:
    """One Adam per network; the policy's steps once in `delay` steps."""
    actor = optax.adam(config.actor_learning_rate)
    if delay > 1:
        # Counted from 0 here, from 1 where targets are updated.
        actor = optax.transforms.conditionally_mask(
            actor, lambda step: (step + 1) % delay == 0
        )
    return _off_policy.partition(
        actor=actor, critics=optax.adam(config.critic_learning_rate)
    )


def follow(tau: float | Array, delay: int = 1) -> targets.TargetUpdate:
    """Polyak averaging of all targets, once in `delay` steps."""
    average = targets.ema(tau)

    def update(params: Params, target_params: Params, step: Array) -> Params:
        moved = average(params, target_params, step)
        now = step % delay == 0
        return jax.tree.map(
            lambda new, old: jnp.where(now, new, old), moved, target_params
        )

    return update


def check_twin_delayed(config: TwinDelayedConfig) -> None:
    """Raises ValueError for fields that no run could use; traced floats pass."""
    for name in ("smoothing_noise", "smoothing_clip"):
        _off_policy.require(config, name, lambda x: x >= 0, "not be negative")
    if config.policy_delay < 1:
        raise ValueError(f"policy_delay must be at least 1, got {config.policy_delay}")
