"""Preferences between two segments: their likelihood, and teachers that state them.

Bradley & Terry 1952, https://doi.org/10.2307/2334029; Christiano et al. 2017,
https://arxiv.org/abs/1706.03741; the teachers: Lee et al. 2021 (B-Pref),
https://arxiv.org/abs/2111.03026, section 3.

A preference is the probability y, in [0, 1], with which the *first* segment is the
better one: 1 the first, 0 the second, ½ a tie. (B-Pref's code stores the index of the
better segment, 1 − y, and −1 for ties.) What was not answered has weight 0.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array, Key


class Teacher(NamedTuple):
    """What keeps a scripted teacher from answering by the true return alone.

    Every field is a number, so teachers can be traced and vmapped. The defaults are the
    oracle of B-Pref.
    """

    rationality: float | Array = jnp.inf
    """β > 0: answers with probability σ(β ΔR). Infinite: always the better segment,
    and a fair coin where the two are exactly equal."""
    gamma: float | Array = 1.0
    """γ in (0, 1], myopia: a reward h steps before the segment's end counts γʰ."""
    mistake: float | Array = 0.0
    """ε in [0, 1], the probability that an answer is turned around."""
    skip_threshold: float | Array = -jnp.inf
    """No answer where neither undiscounted return is above it."""
    equal_threshold: float | Array = 0.0
    """A tie where the undiscounted returns differ by less."""


class Answer(NamedTuple):
    """What a teacher said."""

    preference: Array
    """`[...]` y: 1 the first segment, 0 the second, ½ neither."""
    weight: Array
    """`[...]` 1 where there is an answer, 0 where the query was skipped."""


def segment_return(
    reward: Array, mask: Array | None = None, gamma: float | Array = 1.0
) -> Array:
    """Σ_t γ^(steps after t) r_t: with γ < 1 the *last* rewards count most.

    Lee et al. 2021, equation 3: a myopic teacher remembers what it saw last.

    Args:
      reward: `[T, ...]` r.
      mask: `bool[T, ...]`, False for padding, which counts neither as a reward nor as
        a step; None: there is none. A padded reward may be anything, NaN too.
      gamma: γ in (0, 1], scalar.

    Returns:
      `[...]` the return of each segment.

    Raises:
      AssertionError: the shapes differ, or γ is no scalar.
    """
    chex.assert_type(reward, float)
    chex.assert_rank(gamma, 0)
    mask = jnp.ones(reward.shape, bool) if mask is None else mask
    chex.assert_equal_shape([reward, mask])
    chex.assert_type(mask, bool)
    steps = mask.astype(jnp.int32)
    steps_after = jnp.cumsum(steps[::-1], 0)[::-1] - steps
    weight = jnp.power(jnp.asarray(gamma, reward.dtype), steps_after)
    return jnp.sum(jnp.where(mask, weight * jnp.where(mask, reward, 0.0), 0.0), 0)


def log_likelihood(difference: Array, preference: Array) -> Array:
    """Log-likelihood of preferences: y log σ(Δ) + (1 − y) log σ(−Δ), Δ = R₀ − R₁.

    Christiano et al. 2017, equation 1. Exact for |Δ| of any size: no probability is
    formed. For 0 < y < 1 the maximum is at the finite Δ = log(y / (1 − y)).

    Elementwise.

    Args:
      difference: `[...]` Δ, the first segment's return less the second's.
      preference: `[...]` y in [0, 1]; a constant of the gradient only if you say so.

    Returns:
      `[...]`, never positive.

    Raises:
      AssertionError: the shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([difference, preference])
    chex.assert_type([difference, preference], float)
    first = preference * jax.nn.log_sigmoid(difference)
    return first + (1.0 - preference) * jax.nn.log_sigmoid(-difference)


def smooth(preference: Array, smoothing: float | Array) -> Array:
    """Label smoothing: (1 − ε) y + ε/2, the truth if answers are noise with chance ε.

    Bounds what a one-sided set of labels asks for: the best |Δ| becomes
    log(2/ε − 1), instead of growing for ever. A tie stays a tie.

    Elementwise.

    Args:
      preference: `[...]` y in [0, 1].
      smoothing: ε in [0, 1], scalar.

    Returns:
      `[...]` smoothed preferences.

    Raises:
      AssertionError: ε is no scalar, or the preferences are no floats.
    """
    chex.assert_type(preference, float)
    chex.assert_rank(smoothing, 0)
    return (1.0 - smoothing) * preference + 0.5 * smoothing


def weighted_mean(value: Array, weight: Array) -> Array:
    """Σ w x / Σ w: the mean over what was answered; 0 if nothing was.

    Args:
      value: `[...]` x; where w = 0 it may be anything, NaN too.
      weight: `[...]` w >= 0, a constant of the gradient.

    Returns:
      `[]`.

    Raises:
      AssertionError: the shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([value, weight])
    chex.assert_type([value, weight], float)
    weight = jax.lax.stop_gradient(weight)
    total = jnp.sum(weight)
    known = jnp.where(weight > 0, value, 0.0)
    return jnp.sum(weight * known) / jnp.where(total > 0, total, 1.0)


def agreement(difference: Array, answer: Answer) -> Array:
    """The share of decided answers that a reward predicts; what PEBBLE stops at.

    Ties and skips do not count; Δ = 0 predicts nothing and so is never right.

    Args:
      difference: `[...]` Δ.
      answer: the teacher's, `[...]`.

    Returns:
      `[]` in [0, 1]; 0 if no answer was decided.

    Raises:
      AssertionError: the shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([difference, answer.preference, answer.weight])
    side = jnp.sign(answer.preference - 0.5)
    right = (jnp.sign(difference) == side).astype(difference.dtype)
    return weighted_mean(right, jnp.where(side == 0, 0.0, answer.weight))


def threshold(
    fraction: float | Array,
    mean_return: Array,
    segment_length: int,
    episode_length: int,
) -> Array:
    """A teacher's skip or equal threshold: ε · mean episode return · L / T.

    Lee et al. 2021, appendix A. Call it anew with the returns of the current policy;
    `fraction` enters once.

    Args:
      fraction: ε >= 0.
      mean_return: `[]` true return of the current policy's whole episodes.
      segment_length: L, steps.
      episode_length: T, steps.

    Returns:
      `[]` a threshold for the return of a segment.

    Raises:
      ValueError: a segment is longer than an episode, or empty.
    """
    if not 1 <= segment_length <= episode_length:
        raise ValueError(
            f"a segment has 1 to {episode_length} steps (an episode), "
            f"got {segment_length}"
        )
    return fraction * mean_return * (segment_length / episode_length)


def preference_prob(
    first_reward: Array,
    second_reward: Array,
    teacher: Teacher,
    mask: Array | None = None,
) -> Answer:
    """What a teacher answers on average: E[y], ties as ½, and its weight.

    The exact population from which `ask` draws: pairs with this soft preference have
    the same expected log-likelihood as sampled answers.

    Args:
      first_reward: `[T, ...]` true rewards of the first segment.
      second_reward: `[T, ...]` of the second.
      teacher: scalars.
      mask: `bool[T, ...]`, False for padding of either; None: there is none.

    Returns:
      Preferences in [0, 1] and weights, `[...]`. Skips have preference ½, weight 0.

    Raises:
      AssertionError: the shapes differ, or a field of the teacher is no scalar.
    """
    chex.assert_equal_shape([first_reward, second_reward])
    chex.assert_rank(list(teacher), 0)
    seen = [
        segment_return(reward, mask, teacher.gamma)
        for reward in (first_reward, second_reward)
    ]
    first, second = (segment_return(r, mask) for r in (first_reward, second_reward))
    difference = seen[0] - seen[1]
    # β Δ is NaN where β is infinite and Δ = 0; the limit of σ there is ½.
    strength = jnp.where(difference == 0, 0.0, teacher.rationality * difference)
    prob = jax.nn.sigmoid(strength)
    prob = (1.0 - teacher.mistake) * prob + teacher.mistake * (1.0 - prob)
    tie = _is_tie(first, second, teacher)
    skip = jnp.maximum(first, second) <= teacher.skip_threshold
    prob = jnp.where(tie | skip, 0.5, prob)
    return Answer(prob, jnp.where(skip, 0.0, 1.0).astype(prob.dtype))


def ask(
    key: Key,
    first_reward: Array,
    second_reward: Array,
    teacher: Teacher,
    mask: Array | None = None,
) -> Answer:
    """Asks a scripted teacher of B-Pref which segments it prefers.

    In the order of the paper's algorithm: skip what is poor, choose by myopic returns
    with finite rationality, err; what is nearly equal is a tie whatever was chosen.

    Args:
      key: used once.
      first_reward: `[T, ...]` true rewards of the first segment.
      second_reward: `[T, ...]` of the second.
      teacher: scalars.
      mask: `bool[T, ...]`, False for padding of either; None: there is none.

    Returns:
      Preferences 1, 0 or ½ (ties, and skips with weight 0), `[...]`.

    Raises:
      AssertionError: the shapes differ, or a field of the teacher is no scalar.
    """
    expected = preference_prob(first_reward, second_reward, teacher, mask)
    prob = expected.preference
    first, second = (segment_return(r, mask) for r in (first_reward, second_reward))
    undecided = _is_tie(first, second, teacher) | (expected.weight == 0)
    drawn = jax.random.bernoulli(key, prob).astype(prob.dtype)
    return Answer(jnp.where(undecided, 0.5, drawn), expected.weight)


def _is_tie(first: Array, second: Array, teacher: Teacher) -> Array:
    """Whether undiscounted returns are too near to choose."""
    return jnp.abs(first - second) < teacher.equal_threshold
