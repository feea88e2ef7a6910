"""What methods with a deterministic policy share: acting, its loss, delayed steps.

DDPG and TD3 differ in the target of their critics and in how often the policy steps.
Policies act, and noise is added, in [-1, 1], whatever the environment's units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

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
    actor_key, critics_key = jax.random.split(key)
    return {
        "actor": agent.actor.init(actor_key),
        "critics": agent.critics.init(critics_key),
    }


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
    adams = {"actor": actor, "critics": optax.adam(config.critic_learning_rate)}
    return optax.partition(adams, lambda params: {name: name for name in params})


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
