"""Conservative Q-Learning (CQL), the variant CQL(H) on top of SAC.

Kumar, Zhou, Tucker and Levine 2020, https://arxiv.org/abs/2006.04779, equation 4 and
appendix F: beside their temporal-difference error, critics pay for the soft maximum of
Q over all actions and are paid for Q of the data's actions,

    α (log ∫ exp Q(s, a) da − Q(s, a_data)) + ½ (Q(s, a_data) − target)²

The integral is estimated from uniform actions and from the policy's at s and at s',
each weighted by the inverse of the density that it was drawn from. α is fixed, or a
multiplier that holds the difference near a threshold (equation 30).

Special cases that hold exactly: α = 0 is SAC, whose targets have the entropy of the
policy if `backup_entropy` is set; the penalty does not see a constant added to Q.
"""

from __future__ import annotations

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import optax

from rlx.methods import _off_policy, _offline
from rlx.ops import offline, soft, targets
from rlx.ops.normalization import RunningStatistics
from rlx.types import Array, EnvSpec, Key, Method, Metrics, Params, PyTree, Transition

SOURCE = _offline.SOURCE


@dataclasses.dataclass(frozen=True)
class Config(_off_policy.OffPolicyConfig):
    """CQL's own fields."""

    weight: float = 5.0
    """α: weight of the penalty against ½ TD error². The authors' code has no ½: its
    5 and 10 for MuJoCo are 2.5 and 5 here. With `lagrange`: where α starts."""
    lagrange: bool = False
    """α is learned, so that the penalty's difference stays near `threshold`."""
    threshold: float = 1.6
    """τ in units of Q: the authors' 5 less log 30, because a mean over the 30 actions
    stands here where their code has a sum."""
    multiplier_learning_rate: float = 3e-4
    """Adam's step size for log α with `lagrange` (the authors' code)."""
    num_actions: int = 10
    """Actions from each of the three proposals (the authors' code)."""
    soft_temperature: float = 1.0
    """T of the soft maximum T log ∫ exp(Q/T) (the authors' code)."""
    backup_entropy: bool = False
    """Targets contain the policy's entropy, as SAC's (the authors' code: off)."""
    temperature: float = 1.0
    """Where the policy's temperature starts (the authors' code), or the fixed one."""
    automatic_temperature: bool = True
    """The temperature is learned, as in SAC (the authors' code)."""
    target_entropy: float | None = None
    """Nats, for actions in [-1, 1]; None: minus their dimension (SAC)."""
    temperature_learning_rate: float = 1e-4
    """Adam's step size for the log temperature (the authors' code)."""
    actor_learning_rate: float = 1e-4
    """Adam's step size for the policy (the authors' code)."""
    normalize_observations: bool = False
    """Standardises observations, clipped at 10; see `statistics` of `make`."""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """Units of the hidden layers of every network (the authors' code)."""


def loss(soft_maximum: Array, action_value: Array) -> Array:
    """The conservative penalty of one critic (equation 4, with the entropy as R).

    L = log ∫ exp Q(s, a) da − Q(s, a_data).

    Its gradient in Q is that of a softmax classifier: the density ∝ exp Q minus the
    data's action. It is zero on average where exp Q is proportional to the density of
    the data, and adding a constant to Q changes nothing.

    Elementwise; means are the caller's.

    Args:
      soft_maximum: `[...]` as `rlx.ops.offline.log_integral_exp` estimates it.
      action_value: `[...]` Q(s, a_data).

    Returns:
      `[...]` the loss to minimise, before its weight α.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([soft_maximum, action_value])
    chex.assert_type([soft_maximum, action_value], float)
    return soft_maximum - action_value


def make(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
    statistics: RunningStatistics | None = None,
) -> Method:
    """CQL for an environment with continuous, bounded actions.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.
      statistics: fixed moments of the dataset's observations; None: estimated from the
        batches. For `normalize_observations` only.

    Raises:
      ValueError: a field of the config has an impossible value, or the actions are no
        vectors with finite bounds.
    """
    _check(config)
    agent = _offline.make_agent(spec, config, "tanh_gaussian")
    preparation = _offline.preparation(spec, config.normalize_observations, statistics)

    def init(key: Key) -> Params:
        params = _off_policy.init(key, actor=agent.actor, critics=agent.critics)
        for name, start, learned in _multipliers(config):
            if learned:
                params[name] = jnp.log(jnp.asarray(start, jnp.float32))
        return params

    def constants(params: Params) -> dict[str, Array]:
        return {
            name: jax.lax.stop_gradient(_bounded_exp(params[name]))
            if learned
            else jnp.asarray(start, jnp.float32)
            for name, start, learned in _multipliers(config)
        }

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Transition,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del stats
        next_key, penalty_key, key = jax.random.split(key, 3)
        fixed = constants(params)
        temperature = fixed["log_temperature"]
        next_value = _off_policy.next_soft_value(
            agent,
            params,
            target_params,
            batch,
            next_key,
            temperature if config.backup_entropy else 0.0,
        )
        errors, metrics = _off_policy.critic_loss(
            agent, config, params, batch, next_value
        )
        prices, more = _penalty(
            agent, config, params, batch, penalty_key, fixed["log_weight"]
        )
        actor, rest = _policy_terms(agent, config, params, batch, key, temperature)
        return errors + prices + actor, {**metrics, **more, **rest}

    rates = {
        "log_weight": config.multiplier_learning_rate,
        "log_temperature": config.temperature_learning_rate,
    }
    return Method(
        init=init,
        act=_offline.make_act(agent),
        loss_fn=loss_fn,
        optimizer=_off_policy.partition(
            actor=optax.adam(config.actor_learning_rate),
            critics=optax.adam(config.critic_learning_rate),
            **{
                name: optax.adam(rates[name])
                for name, _, learned in _multipliers(config)
                if learned
            },
        ),
        prepare=preparation.prepare,
        init_stats=preparation.init_stats,
        target_update=_off_policy.follow(critics=targets.ema(config.tau)),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )


def _policy_terms(
    agent: _off_policy.Agent,
    config: Config,
    params: Params,
    batch: Transition,
    key: Key,
    temperature: Array,
) -> tuple[Array, Metrics]:
    """SAC's losses of the policy and its temperature."""
    drawn = _off_policy.draw(agent, config, params, batch, key)
    total = jnp.mean(temperature * drawn.log_prob - drawn.action_value)
    metrics = {"policy_loss": total, "entropy": -jnp.mean(drawn.log_prob)}
    if config.automatic_temperature:
        wanted = config.target_entropy
        if wanted is None:
            wanted = -float(batch.action.shape[-1])
        price = soft.multiplier_loss(
            drawn.log_prob + wanted, log_multiplier=params["log_temperature"]
        )
        total = total + jnp.mean(price)
    return total, {**metrics, "temperature": temperature}


def _penalty(
    agent: _off_policy.Agent,
    config: Config,
    params: Params,
    batch: Transition,
    key: Key,
    weight: Array,
) -> tuple[Array, Metrics]:
    """The conservative penalty of both critics, and its multiplier's loss."""
    maximum = _soft_maximum(agent, config, params, batch, key)
    action = agent.from_env(batch.action)
    both = agent.critics.apply(params["critics"], batch.observation, action)
    gap = loss(maximum, both)
    total = weight * jnp.sum(jnp.mean(gap.reshape(gap.shape[0], -1), axis=1))
    if config.lagrange:
        price = soft.multiplier_loss(
            gap - config.threshold, log_multiplier=params["log_weight"]
        )
        total = total + jnp.mean(price)
    return total, {"value_gap": jnp.mean(gap), "penalty_weight": weight}


def _multipliers(config: Config) -> tuple[tuple[str, float, bool], ...]:
    """Name of the parameter, first (or fixed) value, whether it is learned."""
    return (
        ("log_weight", config.weight, config.lagrange),
        ("log_temperature", config.temperature, config.automatic_temperature),
    )


def _bounded_exp(x: Array) -> Array:
    return jnp.minimum(jnp.exp(x), 1e6)  # the authors' bound on α


def _soft_maximum(
    agent: _off_policy.Agent,
    config: Config,
    params: Params,
    batch: Transition,
    key: Key,
) -> Array:
    """Estimates log ∫ exp Q(s, a) da of every critic `[2, ...]`."""
    here_key, next_key, uniform_key = jax.random.split(key, 3)
    count, observation = config.num_actions, batch.observation
    actions, logs = [], []
    for state, state_key in (
        (observation, here_key),
        (batch.next_observation, next_key),
    ):
        policy = agent.distribution(params["actor"], state)
        many = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), policy)
        drawn = many.sample_and_log_prob(state_key)
        actions.append(drawn.action)
        logs.append(drawn.log_prob)
    shape = actions[0].shape
    actions.append(jax.random.uniform(uniform_key, shape, minval=-1.0))
    logs.append(jnp.full(shape[:-1], -shape[-1] * math.log(2.0)))
    action, log_proposal = jax.lax.stop_gradient(
        (jnp.concatenate(actions), jnp.concatenate(logs))
    )
    state = jnp.broadcast_to(observation, (3 * count, *observation.shape))
    value = agent.critics.apply(params["critics"], state, action)
    value = jnp.moveaxis(value, 1, -1)  # [2, ..., 3 N]
    log_proposal = jnp.broadcast_to(jnp.moveaxis(log_proposal, 0, -1), value.shape)
    return offline.log_integral_exp(value, log_proposal, config.soft_temperature)


def _check(config: Config) -> None:
    require = _off_policy.require
    for name in ("temperature", "soft_temperature", "multiplier_learning_rate"):
        require(config, name, lambda x: x > 0, "be positive")
    require(config, "weight", lambda x: x >= 0, "not be negative")
    if config.lagrange:
        require(config, "weight", lambda x: x > 0, "be positive with lagrange")
    if config.num_actions < 1:
        raise ValueError(f"num_actions must be at least 1, got {config.num_actions}")
