"""Whole conversations of a policy over test pairs, and their scores.

There is one way to count turns: a turn is an action of the agent, and the user's
opening is free. Success with action t, from 0, is success in turn t + 1. The simulator
gives the agent 14 actions, as the released code does; a failure counts 15 turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.unicorn import world as world_lib
from experiments.unicorn.world import TURNS, Conversation, World
from rlx.ops import recommendation, statistics
from rlx.types import Array, Key

Rule = Callable[[Any, Conversation, Key], tuple[Array, Array]]
"""`(params, conversations [B], key) -> (attribute int32[B], items int32[B, LIST])`."""


class Outcomes(NamedTuple):
    """What became of every conversation, `[N]`."""

    action: np.ndarray
    """The successful action, from 0; -1 where there was none."""
    rank: np.ndarray
    questions: np.ndarray
    """How many actions were questions."""


def player(
    world: World, rule: Rule, chunk: int = 500
) -> Callable[[Any, np.ndarray, Key], Outcomes]:
    """`(params, pairs int[N, 2], key) -> Outcomes`, compiled once.

    Conversations are held `chunk` at a time; N is cut to a multiple of it.
    """

    def hold(params: Any, pairs: Array, key: Key) -> tuple[Array, Array, Array]:
        begin_key, key = jax.random.split(key)
        keys = jax.random.split(begin_key, chunk)
        start = jax.vmap(
            lambda pair, key: world_lib.begin(world, pair[0], pair[1], key)
        )(pairs, keys)

        def turn(carry, inputs):
            now, over, action, rank, questions = carry
            t, key = inputs
            attribute, items = rule(params, now, key)
            new = jax.vmap(lambda *given: world_lib.answer(world, *given))(
                now, attribute, items
            )
            hit = new.hit & ~over
            questions = questions + (~over & (attribute >= 0))
            action = jnp.where(hit, t, action)
            rank = jnp.where(hit, new.rank, rank)
            return (new.conversation, over | new.over, action, rank, questions), None

        none = jnp.zeros((chunk,), jnp.int32)
        carry = (start, none > 0, none - 1, none, none)
        steps = (jnp.arange(TURNS - 1), jax.random.split(key, TURNS - 1))
        (_, _, action, rank, questions), _ = jax.lax.scan(turn, carry, steps)
        return action, rank, questions

    held = jax.jit(hold)

    def play(params: Any, pairs: np.ndarray, key: Key) -> Outcomes:
        parts = np.asarray(pairs[: len(pairs) // chunk * chunk], np.int32)
        parts = parts.reshape(-1, chunk, 2)
        keys = jax.random.split(key, len(parts))
        found = [held(params, part, k) for part, k in zip(parts, keys, strict=True)]
        return Outcomes(*(np.concatenate(x) for x in zip(*found, strict=True)))

    return play


def gain(action: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """HDCG@(T, k) of single conversations; 0 for a failure (Deng et al. 2021)."""
    return np.asarray(recommendation.hdcg(action, rank, action >= 0))


def success_by_turn(outcomes: Outcomes) -> list[float]:
    """SR@t for t = 1 ... 15; the agent has no action in the last turn."""
    t = jnp.asarray(outcomes.action)
    return np.asarray(recommendation.success_rate(t, t >= 0, TURNS), float).tolist()


def scores(outcomes: Outcomes) -> dict[str, Any]:
    """SR@15, AT, hDCG with 95 % intervals over conversations."""
    won = outcomes.action >= 0
    low, high = statistics.wilson_interval(int(won.sum()), len(won))
    turns = np.where(won, outcomes.action + 1, TURNS)
    gains = gain(outcomes.action, outcomes.rank)
    return {
        "success": float(won.mean()),
        "success_low": float(low),
        "success_high": float(high),
        "turns": float(turns.mean()),
        "turns_error": _error(turns),
        "gain": float(gains.mean()),
        "gain_error": _error(gains),
        "questions": float(outcomes.questions.mean()),
        "by_turn": success_by_turn(outcomes),
        "conversations": len(won),
    }


def _error(values: np.ndarray) -> float:
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def threshold(world: World, size: float) -> Rule:
    """Ask for the greatest weighted entropy while more than `size` items are left.

    0 asks for as long as something can be learned, infinity never asks.
    """

    def one(now: Conversation) -> tuple[Array, Array]:
        known = world_lib.beliefs(world, now)
        best = jnp.argmax(known.entropy).astype(jnp.int32)
        ask = (jnp.sum(now.candidate) > size) & (known.entropy[best] > 0)
        return jnp.where(ask, best, -1), world_lib.best_list(now, known.scores)

    def rule(params: Any, now: Conversation, key: Key) -> tuple[Array, Array]:
        del params, key
        return jax.vmap(one)(now)

    return rule


def maximum_entropy(world: World) -> Rule:
    """Recommend with probability 10 / max(|C|, 10), else ask by plain entropy."""

    def one(now: Conversation, key: Key) -> tuple[Array, Array]:
        known = world_lib.beliefs(world, now)
        count = jnp.sum(now.candidate)
        share = now.candidate.astype(jnp.float32) @ world.has.astype(jnp.float32)
        share = share / jnp.maximum(count, 1)
        bits = -sum(p * jnp.log2(jnp.clip(p, 1e-9, 1.0)) for p in (share, 1 - share))
        bits = jnp.where(known.askable & (share < 1), bits, 0.0)
        best = jnp.argmax(bits).astype(jnp.int32)
        lists = jax.random.bernoulli(key, 10 / jnp.maximum(count, 10))
        ask = ~lists & (bits[best] > 0)
        return jnp.where(ask, best, -1), world_lib.best_list(now, known.scores)

    def rule(params: Any, now: Conversation, key: Key) -> tuple[Array, Array]:
        del params
        return jax.vmap(one)(now, jax.random.split(key, now.turn.shape[0]))

    return rule
