"""Offline policy evaluation in a learned model (AM-Q), and the gate that uses it.

Lei et al. 2024 (Uni-O4), https://arxiv.org/abs/2311.03351, section 4.2: a policy's
score is the mean of a fixed Q along rollouts of the policy in a learned model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from rlx.types import Array, Key


class Evaluation(NamedTuple):
    """What every start contributed; leading axes (policies) are the caller's."""

    total: Array
    """`[..., K]` sum of Q along the rollout from each start."""
    visited: Array
    """`[..., K]` steps of that rollout before it ended; at least 1."""

    @property
    def score(self) -> Array:
        """`[...]` the mean of Q over all steps visited."""
        return jnp.sum(self.total, axis=-1) / jnp.sum(self.visited, axis=-1)

    @property
    def standard_error(self) -> Array:
        """`[...]` of the score, starts being independent."""
        return _standard_error(_influence(self))


def am_q(
    act: Callable[[Array], Array],
    action_value: Callable[[Array, Array], Array],
    step: Callable[[Array, Array, Key], Array],
    start: Array,
    key: Key,
    horizon: int,
    is_terminal: Callable[[Array], Array] | None = None,
) -> Evaluation:
    """The mean of Q along model rollouts of a policy (section 4.2; the authors' code).

    Rollouts that have ended contribute nothing further. A rollout that leaves the
    numbers makes the score NaN, which no gate lets pass.

    Args:
      act: `observation [K, ...] -> action [K, A]`, deterministic.
      action_value: `(observation, action) -> [K]` Q, fixed while policies change.
      step: `(observation, action, key) -> next observation` of the model.
      start: `[K, ...]` observations of the dataset, drawn uniformly.
      key: for the model's noise; the same key compares two policies fairly.
      horizon: H, steps per rollout, at least 1.
      is_terminal: `observation [K, ...] -> bool[K]`; None: nothing ends.

    Returns:
      Sums and counts per start.

    Raises:
      ValueError: the horizon is below 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")

    def body(
        carry: tuple[Array, Array, Array, Array], key: Key
    ) -> tuple[tuple[Array, Array, Array, Array], None]:
        observation, alive, total, visited = carry
        action = act(observation)
        value = action_value(observation, action)
        chex.assert_equal_shape([value, alive])
        total = total + jnp.where(alive, value, 0.0)
        visited = visited + alive
        observation = step(observation, action, key)
        if is_terminal is not None:
            alive = alive & ~is_terminal(observation)
        return (observation, alive, total, visited), None

    count = start.shape[0]
    zeros = jnp.zeros((count,))
    begin = (start, jnp.ones((count,), bool), zeros, zeros)
    (_, _, total, visited), _ = jax.lax.scan(
        body, begin, jax.random.split(key, horizon)
    )
    return Evaluation(total, visited)


class Difference(NamedTuple):
    """How much better one policy scored than another, `[...]` each."""

    mean: Array
    standard_error: Array


def paired_difference(candidate: Evaluation, incumbent: Evaluation) -> Difference:
    """The difference of two scores from the same starts and the same noise.

    Its standard error is that of the difference per start, which common starts and
    noise make much smaller than that of either score.

    Raises:
      AssertionError: shapes differ.
    """
    chex.assert_equal_shape([*candidate, *incumbent])
    influence = _influence(candidate) - _influence(incumbent)
    return Difference(candidate.score - incumbent.score, _standard_error(influence))


class Gate(NamedTuple):
    """What became of the candidates."""

    accept: Array
    """`bool[...]`."""
    best: Array
    """`[...]` score to beat from now on; never falls."""


def gate(
    score: Array, standard_error: Array, best: Array, margin: float | Array = 0.0
) -> Gate:
    """Accepts what beats the best by more than `margin` standard errors.

    Args:
      score: `[...]` of the candidates; NaN is never accepted.
      standard_error: `[...]` of that score.
      best: `[...]` score to beat.
      margin: z >= 0, a scalar; 0 accepts any improvement.

    Raises:
      AssertionError: shapes differ, or z is no scalar.
    """
    chex.assert_equal_shape([score, standard_error, best])
    chex.assert_rank(margin, 0)
    accept = score > best + margin * standard_error
    return Gate(accept, jnp.where(accept, score, best))


def _influence(evaluation: Evaluation) -> Array:
    """What each start adds to the score, a ratio of sums, to first order."""
    score = evaluation.score[..., None]
    mean_count = jnp.mean(evaluation.visited, axis=-1, keepdims=True)
    return (evaluation.total - score * evaluation.visited) / mean_count


def _standard_error(influence: Array) -> Array:
    count = influence.shape[-1]
    squares = jnp.sum(jnp.square(influence), axis=-1)
    return jnp.sqrt(squares / (max(count - 1, 1) * count))
