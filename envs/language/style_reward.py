"""How good a rewrite is, in closed form: its style, its meaning, its fluency.

What Hallinan et al. 2023 (https://arxiv.org/abs/2311.07167) let three classifiers say
is known exactly in `envs.language.style`. All rewards lie in [0, 1]; of a text that
says nothing they are 0.

    strength   = (tokens of the wanted style + 1) / (tokens of any style + 2)
    similarity = 1 − Levenshtein(concepts of source, concepts of rewrite) / the longer
    fluency    = σ(κ (mean log-probability of a token − threshold)),  κ = 4

The last is under the grammar of concepts, and a grammar of kinds of tokens (word,
filler, closing mark, END); a share SLIP of both is anything at all, so that a mistake
has a price and not an infinite one.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from envs.language.style import (
    END,
    FILLER_RATE,
    FILLERS,
    NOTHING,
    Meaning,
    Text,
    World,
    concept_of,
    packed,
    places,
    style_of,
)
from rlx.types import Array

METRICS = ("strength", "similarity", "fluency")
SLIP = 0.02
STEEPNESS = 4.0
THRESHOLD = -2.0
"""Nats per token; sentences of the language have about −1.4, with a mistake −2.1."""
WORD, FILLER, CLOSER, ENDING, NOISE = range(5)


def metrics(world: World, source: Text, answer: Text, style: Array) -> Array:
    """`float32[N, 3]` in the order of `METRICS`.

    Args:
      world: the language.
      source: `[N, T]` what was to be rewritten.
      answer: `[N, U]` the rewrites, with or without END.
      style: `int[N]` the wanted styles.

    Raises:
      AssertionError: the numbers of rows differ.
    """
    chex.assert_equal_shape_prefix([source.tokens, answer.tokens, style], 1)
    found = (
        strength(world, answer, style),
        similarity(world, source, answer),
        fluency(world, answer),
    )
    return jnp.stack(found, axis=-1)


def aggregate(found: Array) -> Array:
    """Their product: `[..., 3] -> [...]`, what is reported and filtered by."""
    return jnp.prod(found, axis=-1)


def says(text: Text) -> Array:
    """`bool[...]`: is there any word of the language?"""
    return jnp.any(text.mask & (text.tokens >= NOTHING), axis=-1)


def read(world: World, text: Text) -> Meaning:
    """The concepts of texts `[..., T]`, in order."""
    concepts = concept_of(world)[text.tokens]
    return Meaning(*packed(concepts, text.mask & (concepts >= 0), -1))


def strength(world: World, text: Text, style: Array) -> Array:
    """How much of the style `int[...]` is in texts `[..., T]`."""
    chex.assert_equal_shape_prefix([text.tokens, style], style.ndim)
    styles = jnp.where(text.mask, style_of(world)[text.tokens], -1)
    wanted = jnp.sum(styles == style[..., None], axis=-1)
    found = (wanted + 1.0) / (jnp.sum(styles >= 0, axis=-1) + 2.0)
    return jnp.where(says(text), found, 0.0)


def similarity(world: World, source: Text, answer: Text) -> Array:
    """How much of the meaning of `[N, T]` is left in `[N, U]`, and nothing added."""
    first, second = read(world, source), read(world, answer)
    distance = jax.vmap(edit_distance)(first, second)
    longer = jnp.maximum(first.count, second.count)
    found = 1.0 - distance / jnp.maximum(longer, 1)
    return jnp.where(says(source) & says(answer) & (longer > 0), found, 0.0)


def edit_distance(first: Meaning, second: Meaning) -> Array:
    """Levenshtein's distance of two concept sequences, `int32[]`.

    A row of the table at a time. Within a row, d[j] = min over k <= j of (what comes
    from above at k) + (j − k): a running minimum.
    """
    chex.assert_rank([first.concepts, second.concepts], 1)
    columns = jnp.arange(second.concepts.shape[0] + 1, dtype=jnp.int32)

    def row(above: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
        concept, there = inputs
        replaced = above[:-1] + (second.concepts != concept)
        best = jnp.minimum(above[1:] + 1, replaced)
        best = jnp.concatenate([above[:1] + 1, best]) - columns
        found = jax.lax.cummin(best) + columns
        return jnp.where(there, found, above), None

    there = jnp.arange(first.concepts.shape[0]) < first.count
    return jax.lax.scan(row, columns, (first.concepts, there))[0][second.count]


def kinds(world: World) -> Array:
    """`int32[V]`: word, filler, closing mark, END, or what is none of them."""
    token = jnp.arange(world.vocabulary_size)
    last = world.vocabulary_size - world.num_styles
    kind = jnp.where(token >= last, CLOSER, FILLER)
    kind = jnp.where(token < last - world.num_styles * FILLERS, WORD, kind)
    kind = jnp.where(token < NOTHING, NOISE, kind)
    return jnp.where(token == END, ENDING, kind).astype(jnp.int32)


def order(world: World) -> Array:
    """`[6, 5]` log-probabilities of the next kind after the start and each kind."""
    leave = 2.0 / sum(world.lengths)
    onward = jnp.array([1.0 - leave, 0.0, leave, 0.0, 0.0])
    begin, end = jnp.eye(5)[WORD], jnp.eye(5)[ENDING]
    word = FILLER_RATE * jnp.eye(5)[FILLER] + (1 - FILLER_RATE) * onward
    table = jnp.stack([begin, word, onward, end, begin, begin])
    return jnp.log((1 - SLIP) * table + SLIP / 5)


def log_likelihood(world: World, text: Text) -> Array:
    """Nats per token of texts `[..., T]`; an END that is missing counts as a mistake.

    Where a sentence begins is free, and so is which of its fillers a style uses.
    """
    tokens, count = packed(text.tokens, text.mask & (text.tokens != END), END)
    # END stands after the last one: it is scored whether it was said or not.
    ended = jnp.pad(tokens, [(0, 0)] * (tokens.ndim - 1) + [(0, 1)])
    there = places(ended)
    ended = jnp.where(there == count[..., None], END, ended)
    kind = kinds(world)[ended]
    before = jnp.concatenate([jnp.zeros_like(kind[..., :1]), 1 + kind[..., :-1]], -1)
    scored = jnp.where(there <= count[..., None], order(world)[before, kind], 0.0)
    path = read(world, text)
    size = world.num_concepts
    grammar = jnp.log((1 - SLIP) * jnp.exp(world.grammar) + SLIP / size)
    steps = grammar[path.concepts[..., :-1], path.concepts[..., 1:]]
    steps = jnp.where(path.concepts[..., 1:] >= 0, steps, 0.0)
    return (jnp.sum(scored, -1) + jnp.sum(steps, -1)) / (count + 1)


def fluency(world: World, text: Text) -> Array:
    """How well texts `[..., T]` keep to the language."""
    found = jax.nn.sigmoid(STEEPNESS * (log_likelihood(world, text) - THRESHOLD))
    return jnp.where(says(text), found, 0.0)
