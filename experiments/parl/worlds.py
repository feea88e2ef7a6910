"""Worlds so small that the hypergradient of policy alignment is known exactly.

Upper problem: find the reward parameters ν under which preferences between segments
that the policy *itself* produces are most likely. Lower problem: the policy is the best
for r_ν, with entropy bonus λ. In the tabular worlds every segment is enumerated, the
policy comes from soft policy iteration, and `closed_form` writes the hypergradient
down. Meant for float64.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx.ops import preference
from rlx.ops.preference import Teacher
from rlx.types import Array

ITERATIONS = 15
"""Of soft policy iteration, which converges quadratically."""


class Tabular(NamedTuple):
    """A tabular world; r_ν = base + features · ν."""

    transition: np.ndarray
    """`[S, A, S]`."""
    start: np.ndarray
    """`[S]` where segments begin."""
    base: np.ndarray
    """`[S, A]`, known, not learned."""
    features: np.ndarray
    """`[S, A, K]`."""
    true_reward: np.ndarray
    """`[S, A]` what the teacher sees."""
    gamma: float
    temperature: float
    """λ, the price of a nat of entropy in units of reward."""
    length: int
    """Steps of a segment."""
    ridge: float
    """μ of the regulariser −μ/2 |ν|² of the upper objective."""

    def reward(self, nu: Array) -> Array:
        """r_ν `[S, A]`."""
        return self.base + self.features @ nu


class Segments(NamedTuple):
    """Every segment that can happen."""

    state: np.ndarray
    """`[L, M]`."""
    action: np.ndarray
    """`[L, M]`."""
    log_dynamics: np.ndarray
    """`[M]` log of the probability that is not the policy's."""
    preference: Array
    """`[M, M]` the teacher's mean preference for the row's segment."""

    def log_prob(self, logits: Array) -> Array:
        """Log-probability of each segment `[M]` under softmax policies `[S, A]`."""
        log_prob = jax.nn.log_softmax(logits)[self.state, self.action]
        return self.log_dynamics + log_prob.sum(0)

    def returns(self, reward: Array) -> Array:
        """`[M]` undiscounted, as teachers see them."""
        return reward[self.state, self.action].sum(0)


def garnet(seed: int = 0) -> Tabular:
    """A random world whose reward class holds the true reward: nothing misleads."""
    generator = np.random.default_rng(seed)
    states, actions, count = 4, 2, 3
    transition = np.zeros((states, actions, states))
    for row in transition.reshape(-1, states):
        chosen = generator.choice(states, 2, replace=False)
        share = generator.uniform(0.2, 0.8)
        row[chosen] = share, 1 - share
    features = generator.normal(size=(states, actions, count))
    true_reward = features @ np.array([1.0, -0.5, 0.8])
    start = np.full(states, 1 / states)
    base = np.zeros((states, actions))
    return Tabular(
        transition, start, base, features, true_reward, 0.9, 0.5, 3, ridge=0.001
    )


def lure() -> Tabular:
    """A choice between two lotteries, where fitting one's own data keeps it wrong.

    From state 0, action 0 leads to lottery A, action 1 to B; either pays one of two
    prizes with even chances, then it begins again.

        prize          A: a₊, a₋         B: b₊, b₋         mean of A, of B
        true           4, 0              2, 0              2, 1: A is right
        reward class   2, −2             ν, 0              0, ν/2: A is underrated by 2

    ν says how good b₊ is, which data from B answer well (ν = 2), and at the same time
    how often B is chosen. The truth is not in the class, so where ν settles depends on
    which pairs are compared.
    """
    transition = np.zeros((5, 2, 5))
    transition[0, 0, [1, 2]] = 0.5
    transition[0, 1, [3, 4]] = 0.5
    transition[1:, :, 0] = 1.0
    start = np.eye(5)[0]
    base, true_reward, features = np.zeros((3, 5, 2))
    base[1], base[2] = 2.0, -2.0
    true_reward[1], true_reward[3] = 4.0, 2.0
    features[3] = 1.0
    return Tabular(
        transition,
        start,
        base,
        features[..., None],
        true_reward,
        gamma=0.9,
        temperature=0.45,
        length=2,
        ridge=0.01,
    )


TABULAR = {"garnet": garnet, "lure": lure}


def segments(world: Tabular, teacher: Teacher | None = None) -> Segments:
    """Enumerates every segment of positive probability, and asks about every pair.

    Args:
      world: a tabular world.
      teacher: how it answers; Bradley-Terry with β = 1 unless given.
    """
    teacher = Teacher(rationality=1.0) if teacher is None else teacher
    paths = _paths(world)
    state, action = (np.array([path[i] for path in paths]).T for i in range(2))
    seen = jnp.asarray(world.true_reward)[state, action]
    shape = (world.length, len(paths), len(paths))
    answer = preference.preference_prob(
        jnp.broadcast_to(seen[:, :, None], shape),
        jnp.broadcast_to(seen[:, None, :], shape),
        teacher,
    )
    chances = np.log(np.array([path[2] for path in paths]))
    return Segments(state, action, chances, answer.preference)


def _paths(world: Tabular) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    num_actions = world.base.shape[1]
    paths = [((s,), (), share) for s, share in enumerate(world.start) if share]
    for step in range(world.length):
        paths = [
            (states, (*actions, action), chance)
            for states, actions, chance in paths
            for action in range(num_actions)
        ]
        if step < world.length - 1:
            paths = [
                ((*states, later), actions, chance * share)
                for states, actions, chance in paths
                for later, share in enumerate(world.transition[states[-1], actions[-1]])
                if share
            ]
    return paths


def evaluate(world: Tabular, logits: Array, reward: Array, temperature: float) -> Array:
    """Discounted value `[S]` of a policy, its entropy bonus included."""
    prob, log_prob = jax.nn.softmax(logits), jax.nn.log_softmax(logits)
    flow = jnp.einsum("sa,sat->st", prob, world.transition)
    gain = jnp.sum(prob * (reward - temperature * log_prob), -1)
    system = jnp.eye(flow.shape[0]) - world.gamma * flow
    return jnp.linalg.solve(system, gain)


def best_policy(world: Tabular, nu: Array) -> Array:
    """The log π* `[S, A]` of r_ν: soft policy iteration, which is Newton's method."""
    reward = world.reward(nu)

    def improve(_: int, logits: Array) -> Array:
        value = evaluate(world, logits, reward, world.temperature)
        q = reward + world.gamma * world.transition @ value
        return jax.nn.log_softmax(q / world.temperature)

    return jax.lax.fori_loop(0, ITERATIONS, improve, jnp.zeros_like(reward))


def lower(world: Tabular, nu: Array, logits: Array) -> Array:
    """−V, from every state alike, so that no state's policy goes unseen."""
    return -jnp.mean(evaluate(world, logits, world.reward(nu), world.temperature))


def likelihood(world: Tabular, known: Segments, nu: Array, logits: Array) -> Array:
    """G(ν, θ): mean log-likelihood of preferences between two of the policy's segments.

    The regulariser −μ/2 |ν|² is part of it.
    """
    chance = jnp.exp(known.log_prob(logits))
    returns = known.returns(world.reward(nu))
    difference = returns[:, None] - returns[None, :]
    utility = preference.log_likelihood(difference, known.preference)
    return chance @ utility @ chance - 0.5 * world.ridge * nu @ nu


def true_return(world: Tabular, known: Segments, logits: Array) -> Array:
    """Mean true return of a segment: what alignment is for."""
    chance = jnp.exp(known.log_prob(logits))
    return chance @ known.returns(jnp.asarray(world.true_reward))


def closed_form(
    world: Tabular, known: Segments, nu: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both terms of the hypergradient of `likelihood`, by NumPy and no differentiation.

        ∂_ν log π*(a|s) = (1/λ) ∂_ν A*(s, a),   ∂_ν Q* = (I − γ P π*)⁻¹ ∂_ν r

    Args:
      world: a tabular world.
      known: its segments.
      nu: ν `[K]`.

    Returns:
      The direct and the implicit term, `[K]` each.
    """
    num_states, num_actions, count = world.features.shape
    policy = np.exp(np.asarray(best_policy(world, jnp.asarray(nu))))
    reward = np.asarray(world.base + world.features @ nu)
    size = num_states * num_actions
    # From state and action to the next state and action.
    flow = np.einsum("sat,tb->satb", world.transition, policy).reshape(size, size)
    q_slope = np.linalg.solve(
        np.eye(size) - world.gamma * flow, world.features.reshape(size, count)
    ).reshape(num_states, num_actions, count)
    value_slope = np.einsum("sa,sak->sk", policy, q_slope)
    policy_slope = (q_slope - value_slope[:, None]) / world.temperature

    def along(table: np.ndarray) -> np.ndarray:
        return table[known.state, known.action].sum(0)

    chance = np.exp(known.log_dynamics + along(np.log(policy)))
    difference = along(reward)[:, None] - along(reward)[None, :]
    wanted = np.asarray(known.preference)
    utility = -wanted * np.logaddexp(0, -difference)
    utility -= (1 - wanted) * np.logaddexp(0, difference)
    slope = wanted - 1 / (1 + np.exp(-difference))
    pair = chance[:, None] * chance[None, :]
    seen, score = along(world.features), along(policy_slope)
    change = seen[:, None] - seen[None, :]
    direct = np.einsum("ij,ijk->k", pair * slope, change) - world.ridge * nu
    both = score[:, None] + score[None, :]
    return direct, np.einsum("ij,ijk->k", pair * utility, both)
