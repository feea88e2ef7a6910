"""Soft Actor-Critic (SAC).

Haarnoja et al. 2018b, https://arxiv.org/abs/1812.05905 (equations 5, 7 and 18), after
Haarnoja et al. 2018a, https://arxiv.org/abs/1801.01290: a tanh-Gaussian policy, the
smaller of two critics, and a temperature that is learned or fixed.

Critics, policy and temperature step together, each by the gradient at the same
parameters: their losses are one sum, in which `stop_gradient` says what is a constant
for which.

Special cases that hold exactly: with a fixed temperature α it is off-policy MDPO with
λ = c = α; its policy loss is, up to a constant, that of off-policy MDPO without entropy
bonus (λ = 0, c = α) whose reference is the uniform policy.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from rlx.methods import _off_policy
from rlx.networks.actor_critic import num_outputs
from rlx.ops import soft, targets
from rlx.types import Array, EnvSpec, Key, Method, Metrics, Params, PyTree, Transition

SOURCE = "replay"


@dataclasses.dataclass(frozen=True)
class Config(_off_policy.OffPolicyConfig):
    """SAC's own fields."""

    temperature: float = 1.0
    """α: where the automatic temperature starts (the authors' code), or the fixed."""
    automatic_temperature: bool = True
    """α is learned, so that the entropy stays near `target_entropy` (2018b)."""
    target_entropy: float | None = None
    """Nats, for actions in [-1, 1]; None: minus their dimension (2018b, table 1)."""
    temperature_learning_rate: float = 3e-4
    """Adam's step size for log α (Haarnoja et al. 2018b, table 1)."""


def loss(log_prob: Array, action_value: Array, *, temperature: float | Array) -> Array:
    """The policy's loss (Haarnoja et al. 2018b, equation 7).

    L = α log π(a|s) − Q(s, a), a reparameterised.

    Elementwise; means are the caller's.

    Args:
      log_prob: `[...]` log π(a|s).
      action_value: `[...]` Q(s, a), a function of the policy through a alone.
      temperature: α >= 0, a scalar; a constant of the gradient.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([log_prob, action_value])
    chex.assert_type([log_prob, action_value], float)
    return jax.lax.stop_gradient(temperature) * log_prob - action_value


def temperature_loss(
    log_prob: Array, *, log_temperature: Array, target_entropy: float | Array
) -> Array:
    """The temperature's loss (Haarnoja et al. 2018b, equation 18).

    L = −α (log π(a|s) + H̄): α rises while the entropy is below H̄.

    Elementwise.

    Args:
      log_prob: `[...]` log π(a|s), a constant of the gradient.
      log_temperature: log α, a scalar: what is learned.
      target_entropy: H̄ in nats.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: `log_prob` does not hold floats, or log α is no scalar.
    """
    return soft.multiplier_loss(
        log_prob + target_entropy, log_multiplier=log_temperature
    )


def make(spec: EnvSpec, config: Config = Config()) -> Method:  # noqa: B008 (frozen)
    """SAC for an environment with continuous, bounded actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value, or the actions are no
        vectors with finite bounds.
    """
    _off_policy.check(config)
    _off_policy.require(config, "temperature", lambda x: x > 0, "be positive")
    agent = _off_policy.make_agent(spec, config)
    target_entropy = config.target_entropy
    if target_entropy is None:
        target_entropy = -float(num_outputs(spec.action))

    def init(key: Key) -> Params:
        params = _off_policy.init(key, actor=agent.actor, critics=agent.critics)
        if config.automatic_temperature:
            start = jnp.asarray(config.temperature, jnp.float32)
            params["log_temperature"] = jnp.log(start)
        return params

    def temperature_of(params: Params) -> Array:
        if config.automatic_temperature:
            return jax.lax.stop_gradient(jnp.exp(params["log_temperature"]))
        return jnp.asarray(config.temperature, jnp.float32)

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Transition,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del stats
        next_key, key = jax.random.split(key)
        temperature = temperature_of(params)
        next_value = _off_policy.next_soft_value(
            agent, params, target_params, batch, next_key, temperature
        )
        total, metrics = _off_policy.critic_loss(
            agent, config, params, batch, next_value
        )
        drawn = _off_policy.draw(agent, config, params, batch, key)
        actor = loss(drawn.log_prob, drawn.action_value, temperature=temperature)
        total = total + jnp.mean(actor)
        if config.automatic_temperature:
            price = temperature_loss(
                drawn.log_prob,
                log_temperature=params["log_temperature"],
                target_entropy=target_entropy,
            )
            total = total + jnp.mean(price)
        metrics = {
            **metrics,
            "policy_loss": jnp.mean(actor),
            "entropy": -jnp.mean(drawn.log_prob),
            "temperature": temperature,
        }
        return total, metrics

    rates: dict[str, float] = {}
    if config.automatic_temperature:
        rates["log_temperature"] = config.temperature_learning_rate
    return Method(
        init=init,
        act=_off_policy.make_act(agent),
        loss_fn=loss_fn,
        optimizer=_off_policy.make_optimizer(config, **rates),
        target_update=_off_policy.follow(critics=targets.ema(config.tau)),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )
