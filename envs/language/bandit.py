"""Bandits with preferences: a prompt, a choice among K responses, an exact optimum.

A policy is held to a reference by J(π) = E[r − β log(π / π_ref)]. Its optimum is
π* ∝ π_ref e^{r/β}, of value J* = β E log Σ π_ref e^{r/β} (Rafailov et al. 2023,
https://arxiv.org/abs/2305.18290, equation 4). The X prompts are equally likely.

All is pure and takes one world; `vmap` over keys makes many.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct

from rlx.data.online_preferences import BRADLEY_TERRY
from rlx.ops import preference
from rlx.types import Array, Key


@struct.dataclass
class Bandit:
    """X prompts with K responses each."""

    reward: Array
    """`[X, K]`."""
    reference: Array
    """`[X, K]` log π_ref."""


@struct.dataclass
class LinearBandit:
    """A bandit whose reward is φ(x, y)·θ."""

    bandit: Bandit
    features: Array
    """`[X, K, d]` φ."""
    weight: Array
    """`[d]` θ."""


class Answer(NamedTuple):
    """What a teacher said of pairs; any leading axes."""

    prompt: Array
    """`int32[...]`."""
    chosen: Array
    """`int32[...]` the preferred response."""
    rejected: Array
    """`int32[...]` the other."""
    weight: Array
    """`float32[...]` 0 where nothing was said."""


def tabular(
    key: Key, *, num_prompts: int = 1, num_responses: int = 10, scale: float = 3.0
) -> Bandit:
    """Rewards uniform in [0, scale], a reference whose logits are standard normal."""
    reward_key, reference_key = jax.random.split(key)
    shape = (num_prompts, num_responses)
    logits = jax.random.normal(reference_key, shape)
    reward = scale * jax.random.uniform(reward_key, shape)
    return Bandit(reward, jax.nn.log_softmax(logits, axis=-1))


def hidden_best(bandit: Bandit, logit: float = -3.0) -> Bandit:
    """The same bandit, whose reference hardly ever gives the best response.

    Args:
      bandit: any.
      logit: of the best response, in the place of its own; the others keep theirs up
        to the normalisation.
    """
    best = jnp.argmax(bandit.reward, axis=-1, keepdims=True)
    place = jnp.arange(bandit.reward.shape[-1])[None] == best
    logits = jnp.where(place, logit, bandit.reference)
    return bandit.replace(reference=jax.nn.log_softmax(logits, axis=-1))


def linear(
    key: Key,
    *,
    num_prompts: int = 32,
    num_responses: int = 16,
    num_features: int = 8,
    scale: float = 3.0,
) -> LinearBandit:
    """Features on the unit sphere, θ of length `scale`, a uniform reference."""
    features_key, weight_key = jax.random.split(key)
    shape = (num_prompts, num_responses, num_features)
    features = _on_sphere(jax.random.normal(features_key, shape))
    weight = scale * _on_sphere(jax.random.normal(weight_key, (num_features,)))
    reference = jnp.full(shape[:2], -jnp.log(num_responses))
    return LinearBandit(Bandit(features @ weight, reference), features, weight)


def _on_sphere(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def optimum(bandit: Bandit, beta: float | Array) -> Array:
    """Log π*, `[X, K]`."""
    return jax.nn.log_softmax(bandit.reference + bandit.reward / beta, axis=-1)


def optimal_value(bandit: Bandit, beta: float | Array) -> Array:
    """J*, a scalar."""
    total = jax.nn.logsumexp(bandit.reference + bandit.reward / beta, axis=-1)
    return beta * jnp.mean(total)


def value(bandit: Bandit, log_prob: Array, beta: float | Array) -> Array:
    """J of a policy given as log-probabilities `[X, K]`; responses may have none.

    Raises:
      AssertionError: the policy has another shape.
    """
    chex.assert_equal_shape([bandit.reward, log_prob])
    price = beta * (log_prob - bandit.reference)
    prob = jnp.exp(log_prob)
    return jnp.mean(
        jnp.sum(jnp.where(prob > 0, prob * (bandit.reward - price), 0.0), -1)
    )


def gap(bandit: Bandit, log_prob: Array, beta: float | Array) -> Array:
    """J* − J(π) = β KL(π ‖ π*) >= 0, a scalar without the cancellation."""
    chex.assert_equal_shape([bandit.reward, log_prob])
    prob = jnp.exp(log_prob)
    apart = jnp.where(prob > 0, log_prob - optimum(bandit, beta), 0.0)
    return beta * jnp.mean(jnp.sum(prob * apart, axis=-1))


def ask(
    key: Key,
    bandit: Bandit,
    first: Array,
    second: Array,
    teacher: preference.Teacher = BRADLEY_TERRY,
) -> Answer:
    """One question: a random prompt, two responses, which is better.

    Args:
      key: used once.
      bandit: the world.
      first: `[X, K]` log-probabilities from which the first response is drawn.
      second: `[X, K]` the same of the second.
      teacher: who says which is better.

    Returns:
      Scalars; weight 0 where both responses are the same, and at ties.

    Raises:
      AssertionError: a policy has another shape.
    """
    chex.assert_equal_shape([bandit.reward, first, second])
    keys = jax.random.split(key, 4)
    prompt = jax.random.randint(keys[0], (), 0, bandit.reward.shape[0])
    one = jax.random.categorical(keys[1], first[prompt])
    two = jax.random.categorical(keys[2], second[prompt])
    rewards = bandit.reward[prompt]
    answer = preference.ask(keys[3], rewards[one][None], rewards[two][None], teacher)
    better = answer.preference > 0.5
    weight = answer.weight * (answer.preference != 0.5) * (one != two)
    chosen, rejected = jnp.where(better, one, two), jnp.where(better, two, one)
    return Answer(prompt, chosen, rejected, weight)


def collect(key: Key, bandit: Bandit, behaviour: Array, num_pairs: int) -> Answer:
    """`num_pairs` questions, both responses of one behaviour `[X, K]`; `[num_pairs]`.

    Pairs of the same response are asked as well, and say nothing.
    """
    keys = jax.random.split(key, num_pairs)
    return jax.vmap(lambda key: ask(key, bandit, behaviour, behaviour))(keys)


def counted(bandit: Bandit, answer: Answer) -> Array:
    """Counts `[X, K, K]` of how often the first index was preferred to the second."""
    prompts, arms = bandit.reward.shape
    place = (answer.prompt, answer.chosen, answer.rejected)
    return jnp.zeros((prompts, arms, arms)).at[place].add(answer.weight)
