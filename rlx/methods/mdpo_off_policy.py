"""Mirror Descent Policy Optimization, off-policy (MDPO).

Tomar, Shani, Efroni and Ghavamzadeh 2022, https://arxiv.org/abs/2005.09814, section
4.2, with the terms of the authors' code. Soft critics as in SAC; the policy's loss
pays for moving away from a reference, the policy of up to `reference_every` gradient
steps ago, in the Bregman divergence of negative Shannon or Tsallis entropy.

With λ the temperature and t the step size of mirror descent, c = λ + 1/t is the
coefficient on the current log-policy. c = λ has no proximal term, larger c a stronger
one.

Special cases that hold exactly: c = λ is SAC with a fixed temperature (with
`output_penalty` 0 and the same `policy_critic`); λ = 0 with the uniform policy as
reference is SAC with the temperature c.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from rlx.methods import _off_policy
from rlx.ops import distributions, mirror_descent, soft, targets, values
from rlx.types import Array, EnvSpec, Key, Method, Metrics, Params, PyTree, Transition

SOURCE = "replay"


@dataclasses.dataclass(frozen=True)
class Config(_off_policy.OffPolicyConfig):
    """Off-policy MDPO's own fields."""

    temperature: float = 0.2
    """λ: weight of the entropy, fixed (the authors, for all tasks)."""
    coefficient: float = 0.5
    """c = λ + 1/t (the authors: per task, 0.3 for HalfCheetah); at least λ."""
    tsallis_index: float = 1.0
    """q' in [1, 2] of the mirror map; 1 is Shannon's (the authors: per task)."""
    joint: bool = True
    """Tsallis terms of the joint density; False: summed over action dimensions."""
    analytic_kl: bool = False
    """The proximal term is the exact KL of the Gaussians, not a sample; q' = 1."""
    reference_every: int = 1000
    """Gradient steps between refreshes of the reference (the authors: fixed)."""
    value_network: bool = False
    """Targets from a network V, as in the authors' code, or from target critics."""
    output_penalty: float = 1e-3
    """Weight of mean² and log-scale² of the Gaussian (the authors' code)."""
    greedy_behaviour: bool = False
    """Acts by tanh(mean) while training, as the authors' code does."""


def loss(
    log_prob: Array,
    reference_log_prob: Array,
    action_value: Array,
    *,
    coefficient: float | Array,
    temperature: float | Array,
    tsallis_index: float | Array = 1.0,
) -> Array:
    """The policy's loss: a sampled Bregman divergence and the soft value.

    L = c log_q π(a|s) + q' (λ − c) log_q π_k(a|s) − Q(s, a), q = 2 − q', a ~ π
    reparameterised. For q' = 1 it is λ log π − Q + (log π − log π_k) / t.

    Elementwise; means are the caller's.

    Args:
      log_prob: `[...]` log_q π(a|s): the logarithm for q' = 1.
      reference_log_prob: `[...]` log_q π_k(a|s), a function of the policy through a.
      action_value: `[...]` Q(s, a), likewise.
      coefficient: c >= λ.
      temperature: λ >= 0.
      tsallis_index: q' in [1, 2].

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([log_prob, reference_log_prob, action_value])
    chex.assert_type([log_prob, reference_log_prob, action_value], float)
    pull = tsallis_index * (temperature - coefficient) * reference_log_prob
    return coefficient * log_prob + pull - action_value


def analytic_loss(
    log_prob: Array,
    kl: Array,
    action_value: Array,
    *,
    coefficient: float | Array,
    temperature: float | Array,
) -> Array:
    """The policy's loss with an exact divergence: the same mean, less noise.

    L = λ log π(a|s) − Q(s, a) + (c − λ) KL(π(.|s) || π_k(.|s))

    tanh is a bijection, so the divergence is that of the Gaussians before it.

    Elementwise; means are the caller's.

    Args:
      log_prob: `[...]` log π(a|s), a reparameterised.
      kl: `[...]` KL(π || π_k) in nats.
      action_value: `[...]` Q(s, a).
      coefficient: c >= λ.
      temperature: λ >= 0.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([log_prob, kl, action_value])
    chex.assert_type([log_prob, kl, action_value], float)
    return temperature * log_prob - action_value + (coefficient - temperature) * kl


class _Sums(NamedTuple):
    """Generalised log-densities of drawn actions."""

    current: Array
    reference: Array


def _q_logarithms(
    drawn: _off_policy.Drawn, reference: distributions.TanhGaussian, config: Config
) -> _Sums:
    """log_q of both densities: of the joint ones, or summed over dimensions."""
    both = (drawn.distribution, reference)
    if config.joint:
        # Never through atanh of the action: saturated actions would be infinite.
        logs = [policy.log_prob_raw(drawn.raw) for policy in both]
        return _Sums(*(_density_log(x, config) for x in logs))
    # One dimension as the event makes every dimension a density of its own.
    each = [
        distributions.TanhGaussian(policy.mean[..., None], policy.log_scale[..., None])
        for policy in both
    ]
    logs = [policy.log_prob_raw(drawn.raw[..., None]) for policy in each]
    return _Sums(*(jnp.sum(_density_log(x, config), axis=-1) for x in logs))


def _density_log(log_prob: Array, config: Config) -> Array:
    return mirror_descent.density_log(log_prob, config.tsallis_index)


def make(spec: EnvSpec, config: Config = Config()) -> Method:  # noqa: B008 (frozen)
    """Off-policy MDPO for an environment with continuous, bounded actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.

    Raises:
      ValueError: a field of the config has an impossible value (c < λ would push the
        policy away from its reference), or the actions are no vectors with finite
        bounds.
    """
    _check(config)
    agent = _off_policy.make_agent(spec, config)

    def init(key: Key) -> Params:
        networks = {"actor": agent.actor, "critics": agent.critics}
        params = _off_policy.init(key, **networks, value=agent.value)
        if not config.value_network:
            del params["value"]
        return params

    def policy_loss(
        drawn: _off_policy.Drawn, reference: distributions.TanhGaussian
    ) -> tuple[Array, Metrics]:
        kl = distributions.kl_divergence(drawn.distribution, reference)
        prices = {"coefficient": config.coefficient, "temperature": config.temperature}
        if config.analytic_kl:
            losses = analytic_loss(drawn.log_prob, kl, drawn.action_value, **prices)
        else:
            logs = _q_logarithms(drawn, reference, config)
            losses = loss(
                logs.current,
                logs.reference,
                drawn.action_value,
                tsallis_index=config.tsallis_index,
                **prices,
            )
        size = jnp.mean(drawn.distribution.mean**2)
        size += jnp.mean(drawn.distribution.log_scale**2)
        total = jnp.mean(losses) + config.output_penalty * size
        return total, {"policy_loss": total, "kl": jnp.mean(kl)}

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Transition,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del stats
        next_key, key = jax.random.split(key)
        drawn = _off_policy.draw(agent, config, params, batch, key)
        reference = agent.distribution(target_params["actor"], batch.observation)
        total, metrics = policy_loss(drawn, reference)
        if config.value_network:
            value = agent.value.apply(params["value"], batch.observation)
            worth = soft.soft_value(
                drawn.smallest_value, drawn.log_prob, config.temperature
            )
            error = 0.5 * jnp.mean(values.squared_error(value, worth))
            total = total + error
            metrics = {**metrics, "value_loss": error}
            next_value = agent.value.apply(
                target_params["value"], batch.next_observation
            )
        else:
            next_value = _off_policy.next_soft_value(
                agent, params, target_params, batch, next_key, config.temperature
            )
        error, more = _off_policy.critic_loss(agent, config, params, batch, next_value)
        metrics = {**metrics, **more, "entropy": -jnp.mean(drawn.log_prob)}
        return total + error, metrics

    slow = "value" if config.value_network else "critics"
    rates = {"value": config.critic_learning_rate} if config.value_network else {}
    return Method(
        init=init,
        act=_off_policy.make_act(agent, config.greedy_behaviour),
        loss_fn=loss_fn,
        optimizer=_off_policy.make_optimizer(config, **rates),
        target_update=_off_policy.follow(
            actor=targets.periodic(config.reference_every),
            **{slow: targets.ema(config.tau)},
        ),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )


def _check(config: Config) -> None:
    _off_policy.check(config)
    require = _off_policy.require
    for name in ("temperature", "output_penalty"):
        require(config, name, lambda x: x >= 0, "not be negative")
    require(config, "tsallis_index", lambda x: 1 <= x <= 2, "lie in [1, 2]")
    numbers = (config.coefficient, config.temperature)
    if all(isinstance(x, int | float) for x in numbers) and numbers[0] < numbers[1]:
        raise ValueError(
            f"coefficient must be at least the temperature {config.temperature}, got "
            f"{config.coefficient}: it is temperature + 1/t, with t the step size"
        )
    index = config.tsallis_index
    if config.analytic_kl and isinstance(index, int | float) and index != 1:
        raise ValueError(
            f"analytic_kl needs tsallis_index 1, got {index}: no closed form otherwise"
        )
