"""Three ways to learn a reward from preferences about one's own segments.

- `full`: A-PARL, both terms of the hypergradient.
- `truncated`: the direct term alone, on fresh segments of the current policy.
- `buffer`: as PEBBLE does, every preference is kept, and the reward is refitted to all
  of them; that their segments depend on the reward is ignored.

Each returns the history of ν. The policy is always the best one for r_ν, so what
differs is the reward learning alone.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from experiments.parl import worlds
from experiments.parl.worlds import Segments, Tabular
from rlx.ops import bilevel, policy_dependence, preference
from rlx.types import Array, Key

NEWTON_STEPS = 6
CG = 8


def ascend(upper, lower, best, start: Array, weight: float, rate: float, steps: int):
    """Gradient ascent on an exact G: direct + weight · implicit; `[steps, K]`."""
    solver = bilevel.conjugate_gradient(CG)

    def step(nu, _):
        found = bilevel.implicit(upper, lower, nu, best(nu), solver)
        return nu + rate * found.total(weight), nu

    return jax.lax.scan(step, start, None, length=steps)[1]


def fit(world: Tabular, known: Segments, pairs: Array, won: Array) -> Array:
    """The ridge-regularised maximum of a concave likelihood, by Newton's method.

    Always from ν = 0, where its steps do not overshoot.

    Args:
      world: its reward class, linear in ν.
      known: its segments.
      pairs: `[M, M]` how often a pair was asked, summing to 1.
      won: `[M, M]` times how often the first was preferred.
    """

    def loss(nu: Array) -> Array:
        returns = known.returns(world.reward(nu))
        difference = returns[:, None] - returns[None, :]
        one = preference.log_likelihood(difference, jnp.ones_like(difference))
        two = preference.log_likelihood(difference, jnp.zeros_like(difference))
        total = jnp.sum(won * one + (pairs - won) * two)
        return 0.5 * world.ridge * nu @ nu - total

    def newton(_: int, nu: Array) -> Array:
        return nu - jnp.linalg.solve(jax.hessian(loss)(nu), jax.grad(loss)(nu))

    zero = jnp.zeros(world.features.shape[-1])
    return jax.lax.fori_loop(0, NEWTON_STEPS, newton, zero)


def buffer(world: Tabular, known: Segments, start: Array, steps: int) -> Array:
    """`buffer` with all pairs of every policy so far, as an exact average."""

    def step(carry, count):
        nu, pairs = carry
        chance = jnp.exp(known.log_prob(worlds.best_policy(world, nu)))
        pairs = pairs + (chance[:, None] * chance[None, :] - pairs) / (count + 1)
        return (fit(world, known, pairs, pairs * known.preference), pairs), nu

    empty = jnp.zeros_like(known.preference)
    return jax.lax.scan(step, (start, empty), jnp.arange(steps))[1]


def draw(world: Tabular, known: Segments, nu: Array, batch: int, key: Key):
    """Pairs of the policy's segments, `[2, B]`, and the teacher's answers `[B]`."""
    segment_key, answer_key = jax.random.split(key)
    log_prob = known.log_prob(worlds.best_policy(world, nu))
    pair = jax.random.categorical(segment_key, log_prob, shape=(2, batch))
    chance = known.preference[pair[0], pair[1]]
    return pair, jax.random.bernoulli(answer_key, chance).astype(log_prob.dtype)


def ascend_sampled(
    world: Tabular, known: Segments, start: Array, key: Key, weight: float, plan: tuple
) -> Array:
    """`full` or `truncated` from sampled answers; the lower problem is solved exactly.

    ∂_θ E[U] is estimated by the score of both segments of each pair, with the mean
    utility of the other pairs as baseline; the curvature and the cross derivative of
    the lower problem are exact, as its dynamics are known.

    Args:
      world: a tabular world.
      known: its segments.
      start: ν.
      key: used once.
      weight: of the implicit term.
      plan: step size, pairs per step, steps.
    """
    rate, batch, steps = plan
    lower = functools.partial(worlds.lower, world)
    solver = bilevel.conjugate_gradient(CG)

    def step(nu, key):
        pair, label = draw(world, known, nu, batch, key)

        def upper(nu, logits):
            returns = known.returns(world.reward(nu))
            difference = returns[pair[0]] - returns[pair[1]]
            utility = preference.log_likelihood(difference, label)
            others = (jnp.sum(utility) - utility) / (batch - 1)
            log_prob = known.log_prob(logits)[pair]
            score = policy_dependence.score_term(
                log_prob, jax.lax.stop_gradient(utility - others)
            )
            return jnp.mean(utility + score) - 0.5 * world.ridge * nu @ nu

        policy = worlds.best_policy(world, nu)
        found = bilevel.implicit(upper, lower, nu, policy, solver)
        return nu + rate * found.total(weight), nu

    return jax.lax.scan(step, start, jax.random.split(key, steps))[1]


def buffer_sampled(
    world: Tabular, known: Segments, start: Array, key: Key, plan: tuple
) -> Array:
    """`buffer` from sampled answers; `plan` as in `ascend_sampled`, no step size."""
    _, batch, steps = plan

    def step(carry, key):
        nu, pairs, won = carry
        pair, label = draw(world, known, nu, batch, key)
        pairs = pairs.at[pair[0], pair[1]].add(1.0)
        won = won.at[pair[0], pair[1]].add(label)
        count = jnp.sum(pairs)
        return (fit(world, known, pairs / count, won / count), pairs, won), nu

    empty = jnp.zeros_like(known.preference)
    keys = jax.random.split(key, steps)
    return jax.lax.scan(step, (start, empty, empty), keys)[1]
