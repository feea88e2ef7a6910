"""What off-policy actor-critic methods share: networks, acting, the soft critics.

SAC and off-policy MDPO differ in the policy's loss. Everything else of theirs is
here. A batch is a `Transition` with any leading axes; all losses are means over it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlx.networks.critics import critics, gaussian_policy, state_value
from rlx.ops import distributions, soft, targets, values
from rlx.types import (
    Array,
    Box,
    Carry,
    EnvSpec,
    Key,
    Metrics,
    Network,
    Params,
    PyTree,
    Transition,
)


@dataclasses.dataclass(frozen=True)
class ActorCriticConfig:
    """Fields that every off-policy method has. Floats may be swept under `vmap`."""

    actor_learning_rate: float = 3e-4
    """Adam's step size for the policy (Haarnoja et al. 2018b, table 1)."""
    critic_learning_rate: float = 3e-4
    """Adam's step size for the values (Haarnoja et al. 2018b, table 1)."""
    gamma: float = 0.99
    """Discount factor (Haarnoja et al. 2018b, table 1)."""
    tau: float = 0.005
    """How fast target networks follow, per gradient step (2018b, table 1)."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this: one knob with the temperature."""
    num_epochs: int = 1
    """Passes over each batch."""
    num_minibatches: int = 1
    """Gradient steps per batch; the replay source's `num_minibatches`."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Units of the hidden layers of every network (2018b, table 1)."""
    activation: str = "relu"
    """Activation between layers (Haarnoja et al. 2018b, table 1)."""


@dataclasses.dataclass(frozen=True)
class OffPolicyConfig(ActorCriticConfig):
    """Fields of methods with two critics and a tanh-Gaussian policy."""

    policy_critic: str = "min"
    """Q of the policy's loss: the "min" of both critics, or the "first" alone."""
    minimum_log_scale: float = -20.0
    """The Gaussian's log scale never falls below this (the authors' code)."""
    maximum_log_scale: float = 2.0
    """The Gaussian's log scale never rises above this (the authors' code)."""


class Agent(NamedTuple):
    """Networks with the distribution and the units that fit the action space."""

    actor: Network
    critics: Network
    value: Network
    distribution: Callable[[Params, PyTree], distributions.TanhGaussian]
    """`(actor's params, observation) -> distribution` of actions in [-1, 1]."""
    to_env: Callable[[Array], Array]
    """From [-1, 1] to the environment's units."""
    from_env: Callable[[Array], Array]


class HasCritics(Protocol):
    """Any agent with critics, whatever its policy."""

    @property
    def critics(self) -> Network:
        """`apply(params, observation, action in [-1, 1]) -> [number, ...]`."""

    @property
    def from_env(self) -> Callable[[Array], Array]:
        """From the environment's units to [-1, 1]."""


class Drawn(NamedTuple):
    """Actions of the current policy on a batch, drawn once, with what they are worth.

    Log-densities are those of actions in [-1, 1], whatever the environment's units.
    """

    distribution: distributions.TanhGaussian
    raw: Array
    """Before the tanh: where other policies' densities are evaluated."""
    log_prob: Array
    action_value: Array
    """Q of the policy's loss; gradients reach the policy through the action alone."""
    smallest_value: Array
    """The smaller of both critics."""


def make_agent(spec: EnvSpec, config: OffPolicyConfig) -> Agent:
    """Networks and distribution for an environment.

    Raises:
      ValueError: actions are no vectors with finite bounds.
    """
    to_env, from_env = action_units(spec)
    sizes = (config.hidden_sizes, config.activation)
    actor = gaussian_policy(spec, *sizes)

    def distribution(params: Params, observation: PyTree):
        mean, log_scale = actor.apply(params, observation)
        low, high = config.minimum_log_scale, config.maximum_log_scale
        return distributions.tanh_gaussian(mean, jnp.clip(log_scale, low, high))

    return Agent(
        actor=actor,
        critics=critics(spec, *sizes),
        value=state_value(spec, *sizes),
        distribution=distribution,
        to_env=to_env,
        from_env=from_env,
    )


def action_units(
    spec: EnvSpec,
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Maps from [-1, 1] to the units of the environment's actions, and back.

    Raises:
      ValueError: actions are no vectors with finite bounds.
    """
    box = spec.action
    if not isinstance(box, Box) or not np.all(
        np.isfinite([*np.ravel(box.minimum), *np.ravel(box.maximum)])
    ):
        raise ValueError(
            f"actions must be real vectors with finite bounds, but {spec.name} has "
            f"{box}: bound them, or use another method"
        )
    bounds = (box.minimum, box.maximum)
    return (
        lambda x: distributions.rescale_to_box(x, *bounds),
        lambda x: distributions.rescale_from_box(x, *bounds),
    )


def init(key: Key, **networks: Network) -> Params:
    """Fresh parameters of every network, each from a key of its own."""
    keys = jax.random.split(key, len(networks))
    return {
        name: network.init(own)
        for (name, network), own in zip(networks.items(), keys, strict=True)
    }


def make_act(
    agent: Agent, greedy: bool = False
) -> Callable[..., tuple[Array, Carry, PyTree]]:
    """The policy: samples with a key (unless `greedy`), acts by tanh(mean) without."""

    def act(
        params: Params, stats: PyTree, observation: PyTree, carry: Carry, key: Key
    ) -> tuple[Array, Carry, PyTree]:
        del stats
        distribution = agent.distribution(params["actor"], observation)
        mode = greedy or key is None
        unit = distribution.mode() if mode else distribution.sample(key)
        return agent.to_env(unit), carry, {}

    return act


def draw(
    agent: Agent, config: OffPolicyConfig, params: Params, batch: Transition, key: Key
) -> Drawn:
    """Fresh, reparameterised actions on the batch; the critics are constants."""
    distribution = agent.distribution(params["actor"], batch.observation)
    action, log_prob, raw = distribution.sample_and_log_prob(key)
    constant = jax.lax.stop_gradient(params["critics"])
    both = agent.critics.apply(constant, batch.observation, action)
    smallest = jnp.min(both, axis=0)
    chosen = smallest if config.policy_critic == "min" else both[0]
    return Drawn(distribution, raw, log_prob, chosen, smallest)


def next_soft_value(
    agent: Agent,
    params: Params,
    target_params: Params,
    batch: Transition,
    key: Key,
    temperature: Array | float,
) -> Array:
    """min_i Q̄_i(s', a') − α log π(a'|s') with a' fresh: the value without a V."""
    distribution = agent.distribution(params["actor"], batch.next_observation)
    action, log_prob, _ = distribution.sample_and_log_prob(key)
    both = agent.critics.apply(target_params["critics"], batch.next_observation, action)
    return soft.soft_value(jnp.min(both, axis=0), log_prob, temperature)


def critic_loss(
    agent: HasCritics,
    config: ActorCriticConfig,
    params: Params,
    batch: Transition,
    next_value: Array,
) -> tuple[Array, Metrics]:
    """Σ_i ½ mean (Q_i(s, a) − sg[r + γ d V(s')])² (2018b, equation 5)."""
    target = soft.bellman_target(
        config.reward_scale * batch.reward, batch.discount, next_value, config.gamma
    )
    action = agent.from_env(batch.action)
    both = agent.critics.apply(params["critics"], batch.observation, action)
    errors = values.squared_error(both, jnp.broadcast_to(target, both.shape))
    loss = 0.5 * jnp.sum(jnp.mean(errors.reshape(both.shape[0], -1), axis=1))
    return loss, {"critic_loss": loss, "action_value": jnp.mean(both)}


def make_optimizer(
    config: OffPolicyConfig, **extra: float | Array
) -> optax.GradientTransformation:
    """One Adam per entry of the parameters, each with its own step size."""
    rates = {
        "actor": config.actor_learning_rate,
        "critics": config.critic_learning_rate,
        **extra,
    }
    return partition(**{name: optax.adam(rate) for name, rate in rates.items()})


def partition(
    **optimizers: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """One optimiser per entry of the parameters."""
    return optax.partition(optimizers, lambda params: {name: name for name in params})


def follow(
    **updates: targets.TargetUpdate,
) -> Callable[[Params, Params, Array], Params]:
    """A target update that treats every entry by its own rule and freezes the rest."""

    def update(params: Params, target_params: Params, step: Array) -> Params:
        moved = {
            name: rule(params[name], target_params[name], step)
            for name, rule in updates.items()
        }
        return {**target_params, **moved}

    return update


def check(config: ActorCriticConfig) -> None:
    """Raises ValueError for fields that no run could use; traced floats pass."""
    critic = getattr(config, "policy_critic", "min")
    if critic not in ("min", "first"):
        raise ValueError(f'policy_critic must be "min" or "first", got {critic!r}')
    for name in ("num_epochs", "num_minibatches"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("gamma", "tau"):
        require(config, name, lambda x: 0 <= x <= 1, "lie in [0, 1]")
    for name in ("actor_learning_rate", "critic_learning_rate", "reward_scale"):
        require(config, name, lambda x: x > 0, "be positive")


def require(config: Any, name: str, holds: Callable[[float], bool], what: str) -> None:
    """Raises ValueError if a number of the config is wrong; traced ones pass."""
    value = getattr(config, name)
    if isinstance(value, int | float) and not holds(value):
        raise ValueError(f"{name} must {what}, got {value}")
