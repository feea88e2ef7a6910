"""What methods that learn Q(s, ·) share: acting by ε, the double target, feedback.

The methods differ in their networks and in what an observation is. A batch is a
`Transition` with any leading axes; its `extras` may hold the weights of prioritised
replay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rlx.ops import exploration, soft, targets, values
from rlx.types import (
    FEEDBACK,
    Array,
    Carry,
    Key,
    LearnerState,
    LossFn,
    Method,
    Metrics,
    Network,
    Params,
    PyTree,
    Transition,
)

IMPORTANCE = "importance"


@dataclasses.dataclass(frozen=True)
class QLearningConfig:
    """Fields that every method with action values has. Floats may be swept."""

    learning_rate: float = 5e-4
    """Adam's step size."""
    gamma: float = 0.99
    """Discount factor (Mnih et al. 2015, extended data table 1)."""
    n_step: int = 1
    """Steps of the return before the bootstrap; the replay source's `n_step`."""
    double: bool = True
    """The online network selects, the target evaluates (van Hasselt et al. 2016)."""
    dueling: bool = True
    """Q = V + A − mean A (Wang et al. 2016)."""
    tau: float = 0.005
    """How fast the target follows, per gradient step."""
    target_period: int = 0
    """Gradient steps between copies to the target; 0: it follows by `tau`."""
    huber_threshold: float = 1.0
    """Errors count linearly beyond; inf: half the squared error."""
    epsilon_start: float = 1.0
    """ε at first (Mnih et al. 2015)."""
    epsilon_end: float = 0.05
    """ε in the end."""
    epsilon_steps: int = 10_000
    """Gradient steps in which ε falls from the one to the other, linearly."""
    gradient_limit: float = float("inf")
    """Gradients with a greater norm are scaled down to it."""
    num_epochs: int = 1
    """Passes over each batch."""
    num_minibatches: int = 1
    """Gradient steps per batch; the replay source's `num_minibatches`."""


class Agent(NamedTuple):
    """A network with the way to act by it."""

    network: Network
    """`apply(params, observation) -> Q(s, ·) [..., A]`."""
    where: Callable[[PyTree, Array], Array]
    """`(observation, Q(s, ·)) -> bool[..., A]`: actions that are allowed."""
    to_env: Callable[[PyTree, Array, Array], PyTree]
    """`(observation, Q(s, ·), index [...]) -> action` as the environment takes it."""
    taken: Callable[[Transition], Array]
    """`transition -> int32[...]`: which of the A actions was taken."""


def loss(
    action_value: Array,
    reward: Array,
    discount: Array,
    next_value: Array,
    importance: Array,
    *,
    gamma: float | Array,
    huber_threshold: float | Array = 1.0,
) -> Array:
    """The loss of Q-learning, weighted (Schaul et al. 2016, algorithm 1).

    L = w h_κ(Q(s, a) − sg[r + γ d V(s')]), with Huber's h_κ; κ = ∞: half the square

    Elementwise; means are the caller's.

    Args:
      action_value: `[...]` Q(s, a).
      reward: `[...]` r, of n steps where there are n.
      discount: `[...]` d, 0 where the episode terminated; γ^{m−1} of m steps.
      next_value: `[...]` V(s').
      importance: `[...]` w, a constant of the gradient; 1 for uniform replay.
      gamma: γ in [0, 1], scalar.
      huber_threshold: κ > 0, scalar.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    arrays = [action_value, reward, discount, next_value, importance]
    chex.assert_equal_shape(arrays)
    chex.assert_type(arrays, float)
    target = soft.bellman_target(reward, discount, next_value, gamma)
    weight = jax.lax.stop_gradient(importance)
    return weight * values.huber(action_value, target, huber_threshold)


def next_value(
    agent: Agent,
    double: bool,
    params: Params,
    target_params: Params,
    observation: PyTree,
) -> Array:
    """V(s') by the target network: of the action that the online network selects.

    van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461; without `double` the
    target selects too. 0 where no action is allowed.
    """
    judged = agent.network.apply(target_params, observation)
    where = agent.where(observation, judged)
    chosen = judged
    if double:
        chosen = jax.lax.stop_gradient(agent.network.apply(params, observation))
    best = exploration.greedy(chosen, where)
    value = values.value_of_action(judged, best)
    return jnp.where(jnp.any(where, axis=-1), value, 0.0)


def make_loss(agent: Agent, config: QLearningConfig) -> LossFn:
    """The mean loss of a batch; reports |δ| as feedback."""

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Transition,
        key: Key,
    ) -> tuple[Array, Metrics]:
        del stats, key
        ahead = next_value(
            agent, config.double, params, target_params, batch.next_observation
        )
        everything = agent.network.apply(params, batch.observation)
        value = values.value_of_action(everything, agent.taken(batch))
        errors = loss(
            value,
            batch.reward,
            batch.discount,
            ahead,
            batch.extras.get(IMPORTANCE, jnp.ones_like(value)),
            gamma=config.gamma,
            huber_threshold=config.huber_threshold,
        )
        target = soft.bellman_target(batch.reward, batch.discount, ahead, config.gamma)
        surprise = jax.lax.stop_gradient(jnp.abs(target - value))
        return jnp.mean(errors), {
            "action_value": jnp.mean(value),
            "surprise": jnp.mean(surprise),
            FEEDBACK: surprise,
        }

    return loss_fn


def epsilon(config: QLearningConfig, step: Array) -> Array:
    """ε after `step` gradient steps."""
    return exploration.linear(
        step,
        start=config.epsilon_start,
        end=config.epsilon_end,
        steps=config.epsilon_steps,
    )


def make_act(
    agent: Agent, config: QLearningConfig
) -> Callable[..., tuple[Array, Carry, PyTree]]:
    """The policy: ε-greedy with a key, greedy without."""

    def act(
        params: Params, stats: PyTree, observation: PyTree, carry: Carry, key: Key
    ) -> tuple[Array, Carry, PyTree]:
        everything = agent.network.apply(params, observation)
        where = agent.where(observation, everything)
        if key is None:
            chosen = exploration.greedy(everything, where)
        else:
            chosen = exploration.epsilon_greedy(
                key, everything, where, epsilon(config, stats)
            )
        return agent.to_env(observation, everything, chosen), carry, {}

    return act


def make_method(
    agent: Agent,
    config: QLearningConfig,
    optimizer: optax.GradientTransformation,
    **parts: Any,
) -> Method:
    """The method; its stats are the gradient steps taken, which ε goes by."""
    steps = config.num_epochs * config.num_minibatches

    def prepare(learner: LearnerState, batch: PyTree) -> tuple[PyTree, PyTree]:
        return learner.step + steps, batch

    target = (
        targets.periodic(config.target_period)
        if config.target_period
        else targets.ema(config.tau)
    )
    made = {
        "init": agent.network.init,
        "act": make_act(agent, config),
        "loss_fn": make_loss(agent, config),
        "optimizer": optax.chain(
            optax.clip_by_global_norm(config.gradient_limit), optimizer
        ),
        "prepare": prepare,
        "target_update": target,
        "init_stats": lambda num_envs: jnp.zeros((), jnp.int32),
        "num_epochs": config.num_epochs,
        "num_minibatches": config.num_minibatches,
    }
    return Method(**{**made, **parts})


def check(config: QLearningConfig) -> None:
    """Raises ValueError for fields that no run could use; traced floats pass."""
    for name in ("num_epochs", "num_minibatches", "n_step"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("target_period", "epsilon_steps"):
        if getattr(config, name) < 0:
            raise ValueError(
                f"{name} must not be negative, got {getattr(config, name)}"
            )
    for name in ("gamma", "tau", "epsilon_start", "epsilon_end"):
        _require(config, name, lambda x: 0 <= x <= 1, "lie in [0, 1]")
    for name in ("learning_rate", "huber_threshold", "gradient_limit"):
        _require(config, name, lambda x: x > 0, "be positive")


def _require(
    config: QLearningConfig, name: str, holds: Callable[[float], bool], what: str
) -> None:
    value = getattr(config, name)
    if isinstance(value, int | float) and not holds(value):
        raise ValueError(f"{name} must {what}, got {value}")
