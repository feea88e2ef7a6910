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

from experiments.unicorn.benchmark import ACTIONS, TURNS, MakeEnv
from rlx.ops import recommendation, statistics
from rlx.ops.catalogue import Catalogue
from rlx.types import Array, Key, PyTree

Act = Callable[[Any, PyTree, Key], PyTree]
"""`(params, observations [B], key) -> actions [B]`."""


class Outcomes(NamedTuple):
    """What became of every conversation, `[N]`."""

    action: np.ndarray
    """The successful action, from 0; -1 where there was none."""
    rank: np.ndarray
    questions: np.ndarray
    """How many actions were questions."""


def player(
    catalogue: Catalogue, make_env: MakeEnv, act: Act, chunk: int = 500
) -> Callable[[Any, np.ndarray, Key], Outcomes]:
    """`(params, pairs int[N, 2], key) -> Outcomes`, compiled once.

    Conversations are held `chunk` at a time; N is cut to a multiple of it. Openings
    follow from pairs and key alone: those of two policies are the same.
    """
    env = make_env(catalogue)
    actions = env.spec.time_limit or ACTIONS
    step = jax.vmap(lambda state, action: env.step(state, action, None))

    def begin(pair: Array, key: Key) -> tuple[PyTree, PyTree]:
        about = catalogue.replace(interactions=pair[None])  # type: ignore[attr-defined]
        return make_env(about).reset(key)

    def hold(params: Any, pairs: Array, key: Key) -> tuple[Array, Array, Array]:
        begin_key, key = jax.random.split(key)
        state, seen = jax.vmap(begin)(pairs, jax.random.split(begin_key, chunk))

        def turn(carry, inputs):
            state, seen, over, action, rank, questions = carry
            t, key = inputs
            state, new = step(state, act(params, seen, key))
            hit = new.info["hit"] & ~over
            questions = questions + (~over & new.info["asked"])
            action = jnp.where(hit, t, action)
            rank = jnp.where(hit, new.info["rank"], rank)
            over = over | new.terminated
            return (state, new.observation, over, action, rank, questions), None

        none = jnp.zeros((chunk,), jnp.int32)
        carry = (state, seen, none > 0, none - 1, none, none)
        steps = (jnp.arange(actions), jax.random.split(key, actions))
        (*_, action, rank, questions), _ = jax.lax.scan(turn, carry, steps)
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
    """SR@15, AT, hDCG with 95 % intervals over conversations.

    `found_with` has a sign for each conversation: the successful action, from 0, as a
    hexadecimal digit, or "-".
    """
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
        "found_with": "".join("-" if t < 0 else f"{t:x}" for t in outcomes.action),
    }


def _error(values: np.ndarray) -> float:
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
