"""Asks a model, through the engine, for what stands in a text.

A text is read once. Then each of R rows, which share its pages, is asked one or more
questions, one after the other: the question is the key, the answer the word that the
model finds likeliest after it, and the next question follows the true answer, whatever
the model said. Questions are decode steps, so that the pages that are selected decide;
a prompt's own last word is read by prefill and tests nothing of the kind.
"""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlx.generation import engine
from rlx.generation.sparse import Plan, Sparse
from rlx.types import Array, Params


def everything(length: int, page: int = 64, **options: Any) -> Sparse:
    """Settings that read all of a text of this length: dense attention."""
    budget = -(-length // page) * page
    return Sparse(budget=budget, page_size=page, interval=1, **options)


@functools.partial(jax.jit, static_argnames=("made",))
def ask(
    made: Plan, params: Params, text: Array, questions: Array, answers: Array
) -> tuple[Array, Array]:
    """Whether each answer is the likeliest word, and its negative log-likelihood.

    Args:
      made: the model and its settings.
      params: its parameters.
      text: `int32[S]`.
      questions: `int32[R, m]`.
      answers: `int32[R, m]`.

    Returns:
      `bool[R, m]` and `float32[R, m]`.
    """
    chex.assert_rank([text, questions, answers], [1, 2, 2])
    rows, count = questions.shape
    weights, length = engine.unstacked(params), jnp.array([text.shape[0]], jnp.int32)
    room = text.shape[0] + 2 * count
    cache, table = engine.begin(made, 1, room, length, 2 * count, rows)
    _, cache = engine.read_prompts(made, weights, cache, text[None], length, table)
    alive = jnp.ones((rows,), bool)

    def one(cache: Any, pair: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array]]:
        question, answer = pair
        logits, cache = engine.step(made, weights, cache, question, alive)
        _, cache = engine.step(made, weights, cache, answer, alive)
        chances = jax.nn.log_softmax(logits)
        chance = jnp.take_along_axis(chances, answer[:, None], axis=1)[:, 0]
        return cache, (jnp.argmax(logits, axis=-1) == answer, -chance)

    _, (right, surprise) = jax.lax.scan(one, cache, (questions.T, answers.T))
    return right.T, surprise.T


@functools.partial(jax.jit, static_argnames=("made", "start"))
def read_on(made: Plan, params: Params, text: Array, start: int) -> Array:
    """Negative log-likelihood of each word from `start` on, word by word.

    Args:
      made: the model and its settings.
      params: its parameters.
      text: `int32[B, S]`.
      start: words that are read as a prompt.

    Returns:
      `float32[B, S - start]`.
    """
    batch, size = text.shape
    weights, length = engine.unstacked(params), jnp.full((batch,), start, jnp.int32)
    cache, table = engine.begin(made, batch, size, length, size - start, 1)
    first, cache = engine.read_prompts(
        made, weights, cache, text[:, :start], length, table
    )
    alive = jnp.ones((batch,), bool)

    def one(carry: tuple, word: Array) -> tuple[tuple, Array]:
        logits, cache = carry
        chances = jax.nn.log_softmax(logits)
        surprise = -jnp.take_along_axis(chances, word[:, None], axis=1)[:, 0]
        return engine.step(made, weights, cache, word, alive), surprise

    _, found = jax.lax.scan(one, (first, cache), text[:, start:].T)
    return found.T


def proportions(right: Any) -> dict[str, float]:
    """Of answers, the share that is right, with its interval."""
    from experiments.lserve.selection import share

    right = np.asarray(right).ravel()
    return share(int(right.sum()), right.size)
