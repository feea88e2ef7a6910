"""Statistics of finished runs: point estimates and intervals for reports.

NumPy in float64, on the host: scores are few, arrive in every shape, and are looked at
rather than trained on. Compiling each shape would cost more than all the arithmetic.

Scores are `[..., N, M]`: N runs (seeds) of M tasks. Estimates reduce the last two axes
and keep whatever precedes them. Which statistics to report, and the stratified
bootstrap: Agarwal et al. 2021, https://arxiv.org/abs/2108.13264.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple, TypeAlias

import chex
import jax
import numpy as np
from numpy.typing import ArrayLike

from rlx.types import Key

Statistic: TypeAlias = Callable[..., np.ndarray]
"""`(scores [..., N, M], ...) -> [...]`, such as every estimate of this module."""

MAX_ELEMENTS = 2**23
"""Numbers resampled at once: bounds the memory of a bootstrap to about 200 MB."""


class Interval(NamedTuple):
    """A confidence interval, ends included."""

    low: np.ndarray
    high: np.ndarray


def mean(scores: ArrayLike) -> np.ndarray:
    """The mean over runs and tasks.

    Args:
      scores: `[..., N, M]`.

    Returns:
      `[...]`.

    Raises:
      AssertionError: scores have fewer than two axes, or no elements.
      ValueError: scores contain NaN.
    """
    return np.mean(_checked(scores), axis=(-2, -1))


def median(scores: ArrayLike) -> np.ndarray:
    """The median over tasks of the mean over runs.

    Args:
      scores: `[..., N, M]`.

    Returns:
      `[...]`.

    Raises:
      AssertionError: scores have fewer than two axes, or no elements.
      ValueError: scores contain NaN.
    """
    return np.median(np.mean(_checked(scores), axis=-2), axis=-1)


def iqm(scores: ArrayLike) -> np.ndarray:
    """The interquartile mean: of all N·M scores, the mean of the middle half.

    ⌊NM/4⌋ scores are left out at either end (a 25 % trimmed mean); with fewer than
    four scores that is none.

    Args:
      scores: `[..., N, M]`.

    Returns:
      `[...]`.

    Raises:
      AssertionError: scores have fewer than two axes, or no elements.
      ValueError: scores contain NaN.
    """
    scores = _checked(scores)
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return np.mean(flat[..., cut : flat.shape[-1] - cut], axis=-1)


def optimality_gap(scores: ArrayLike, threshold: float = 1.0) -> np.ndarray:
    """How far scores fall short of a threshold on average; more is not rewarded.

        γ − mean(min(score, γ))

    Args:
      scores: `[..., N, M]`, normalised so that the threshold means something.
      threshold: γ, the score that is good enough.

    Returns:
      `[...]`, ≥ 0; smaller is better.

    Raises:
      AssertionError: scores have fewer than two axes, or no elements.
      ValueError: scores contain NaN.
    """
    return threshold - mean(np.minimum(scores, threshold))


def probability_of_improvement(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """How likely a run of the first method beats one of the second on a random task.

        (1/M) Σₘ P(Xₘ > Yₘ) + ½ P(Xₘ = Yₘ)

    over all pairs of runs: the Mann-Whitney U statistic divided by the pairs.

    Args:
      first: `[..., N, M]` scores X.
      second: `[..., K, M]` scores Y of the same tasks; K runs, not necessarily N.

    Returns:
      `[...]` in [0, 1]; ½ between equals.

    Raises:
      AssertionError: scores have fewer than two axes, or their tasks differ.
      ValueError: scores contain NaN.
    """
    x, y = _checked(first), _checked(second)
    chex.assert_equal_rank([x, y])
    chex.assert_equal_shape([x, y], dims=[*range(x.ndim - 2), -1])
    difference = x[..., :, None, :] - y[..., None, :, :]
    return np.mean(np.heaviside(difference, 0.5), axis=(-3, -2, -1))


def stratified_bootstrap_interval(
    key: Key,
    scores: ArrayLike | tuple[ArrayLike, ...],
    statistic: Statistic = iqm,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """A percentile bootstrap interval that resamples runs within each task.

    Efron & Tibshirani 1993, chapter 13; stratified as in Agarwal et al. 2021,
    https://arxiv.org/abs/2108.13264, section 4.1. Every resample draws, for each task
    by itself, N of its N runs with replacement. It says how much the estimate would
    change with other seeds, not with other tasks. With fewer than about ten runs it is
    too narrow; with one run it has no width at all.

    Args:
      key: typed random key; the same key gives the same interval.
      scores: `[N, M]`, or a tuple of such arrays (N may differ), which are resampled
        independently and passed to the statistic together.
      statistic: what is estimated: from `[..., N, M]` (one argument per array) to
        `[...]`.
      num_resamples: at least 1.
      confidence: share of resamples inside, in (0, 1).

    Returns:
      The interval, scalars.

    Raises:
      AssertionError: an array is no matrix.
      ValueError: scores contain NaN, or an argument is out of range.
    """
    arrays = [_checked(x) for x in (scores if isinstance(scores, tuple) else (scores,))]
    chex.assert_rank(arrays, 2)
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    tail = (1 - _checked_confidence(confidence)) / 2
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    chunk = max(1, MAX_ELEMENTS // max(x.size for x in arrays))
    estimates = []
    for start in range(0, num_resamples, chunk):
        count = min(chunk, num_resamples - start)
        resampled = [_resample(generator, x, count) for x in arrays]
        estimates.append(statistic(*resampled))
    low, high = np.quantile(np.concatenate(estimates), [tail, 1 - tail])
    return Interval(low, high)


def wilson_interval(
    successes: ArrayLike, trials: ArrayLike, confidence: float = 0.95
) -> Interval:
    """Wilson's score interval for a success rate.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953, with p = s/n and z
    the normal quantile:

        (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)

    Unlike p ± z √(p(1 − p)/n) it stays inside [0, 1] and has width at p = 0 and 1.

    Args:
      successes: `[...]` s.
      trials: `[...]` n ≥ s; no trials give [0, 1].
      confidence: in (0, 1).

    Returns:
      The interval, `[...]` each.

    Raises:
      AssertionError: shapes differ.
      ValueError: not 0 ≤ successes ≤ trials, or confidence out of range.
    """
    s, n = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    chex.assert_equal_shape([s, n])
    if not np.all((s >= 0) & (s <= n)):
        raise ValueError(
            f"successes must lie between 0 and trials, got {successes!r} of {trials!r}"
        )
    z = NormalDist().inv_cdf((1 + _checked_confidence(confidence)) / 2)
    some = np.maximum(n, 1)
    rate, per_trial = s / some, z**2 / some
    centre = (rate + per_trial / 2) / (1 + per_trial)
    spread = np.sqrt(rate * (1 - rate) * per_trial + per_trial**2 / 4)
    half = spread / (1 + per_trial)
    # At the ends rounding would leave 1e-17 in place of 0, or step outside.
    low = np.where(s == 0, 0.0, centre - half)
    high = np.where(s == n, 1.0, centre + half)
    return Interval(low, high)


def _checked(scores: ArrayLike) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    for axis in (-2, -1):
        chex.assert_axis_dimension_gteq(scores, axis, 1)
    num_missing = int(np.isnan(scores).sum())
    if num_missing:
        raise ValueError(
            f"{num_missing} of {scores.size} scores are NaN: leave these runs out, or "
            "give a failed run the score that it deserves"
        )
    return scores


def _checked_confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return confidence


def _resample(
    generator: np.random.Generator, scores: np.ndarray, count: int
) -> np.ndarray:
    """`[count, N, M]`: for each task, N of its runs with replacement."""
    num_runs, num_tasks = scores.shape
    runs = generator.integers(num_runs, size=(count, num_runs, num_tasks))
    return scores[runs, np.arange(num_tasks)]
