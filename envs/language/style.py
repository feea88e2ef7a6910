"""A language with styles: what a sentence means and how it is said can be told apart.

A sentence says concepts c₁ … c_n, a walk through a sparse grammar. A style s says
concept c with its word W[s, c]; three concepts in ten have one word for all styles.
After a word may come a filler of the style, after the last one its closing mark:

    word [filler]  word [filler]  ...  word [filler]  closing mark  END

So every token has at most one concept and at most one style, and rewards of a rewrite
are closed forms: `envs.language.style_reward`. A language model is asked for a rewrite
by the source without its END, then BEGIN, padded on the left.

All is pure; `vmap` over keys makes many worlds. N texts of T tokens, V in all.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import struct

from rlx.data.prompts import Prompts
from rlx.ops.sequences import Sequences, joined
from rlx.types import Array, Key

PAD, BEGIN, END = 0, 1, 2
NOTHING = 3
"""Tokens below are of no language."""
FILLERS = 2
"""Of each style."""
FILLER_RATE = 0.25
"""How often a filler follows a word."""


@struct.dataclass
class World:
    """C concepts, of which the first `num_neutral` are said alike in all S styles.

    Tokens, in this order: PAD, BEGIN, END; the neutral words; each style's own words;
    each style's fillers; each style's closing mark.
    """

    grammar: Array
    """`[C, C]` log-probability of the next concept, −∞ for what never follows."""
    num_styles: int = struct.field(pytree_node=False)
    num_neutral: int = struct.field(pytree_node=False)
    lengths: tuple[int, int] = struct.field(pytree_node=False)
    """Fewest and most concepts of a sentence, both as likely as all between."""

    @property
    def num_concepts(self) -> int:
        """C."""
        return self.grammar.shape[-1]

    @property
    def vocabulary_size(self) -> int:
        """V."""
        own = self.num_concepts - self.num_neutral + FILLERS + 1
        return NOTHING + self.num_neutral + self.num_styles * own

    @property
    def max_tokens(self) -> int:
        """T of the longest sentence, END included."""
        return 2 * self.lengths[1] + 2


@struct.dataclass
class Text:
    """Token sequences."""

    tokens: Array
    """`int32[..., T]`."""
    mask: Array
    """`bool[..., T]` False for padding, wherever it stands."""


@struct.dataclass
class Meaning:
    """Concepts of sentences, padded on the right."""

    concepts: Array
    """`int32[..., L]`; −1 after the last."""
    count: Array
    """`int32[...]`."""


def random(
    key: Key,
    *,
    num_concepts: int = 40,
    num_styles: int = 4,
    num_successors: int = 6,
    lengths: tuple[int, int] = (5, 9),
) -> World:
    """A world whose grammar is random: successors, and standard normal logits of them.

    Raises:
      ValueError: more successors than concepts, or a size is not positive.
    """
    low, high = lengths
    least = min(num_concepts, num_styles, num_successors, low, 1 + high - low)
    if least < 1 or num_successors > num_concepts:
        raise ValueError(
            f"num_successors={num_successors} must lie in 1 ... num_concepts="
            f"{num_concepts}, num_styles={num_styles} be positive, and lengths="
            f"{lengths} grow from at least 1"
        )
    order_key, logit_key = jax.random.split(key)
    shape = (num_concepts, num_concepts)
    place = jnp.argsort(jax.random.uniform(order_key, shape), axis=-1)
    logits = jax.random.normal(logit_key, shape)
    kept = jnp.where(place < num_successors, logits, -jnp.inf)
    grammar = jax.nn.log_softmax(kept, axis=-1)
    return World(grammar, num_styles, num_concepts * 3 // 10, (low, high))


# ------------------------------------------------------------------------- tokens


def words(world: World) -> Array:
    """W `int32[S, C]`: how each style says each concept."""
    concept = jnp.arange(world.num_concepts, dtype=jnp.int32)[None]
    style = jnp.arange(world.num_styles, dtype=jnp.int32)[:, None]
    own = (world.num_concepts - world.num_neutral) * style
    return NOTHING + concept + jnp.where(concept < world.num_neutral, 0, own)


def fillers(world: World) -> Array:
    """`int32[S, 2]`: what each style says between words."""
    count = world.num_styles * FILLERS
    first = world.vocabulary_size - world.num_styles - count
    return first + jnp.arange(count, dtype=jnp.int32).reshape(-1, FILLERS)


def closers(world: World) -> Array:
    """`int32[S]`: how each style ends a sentence."""
    count = world.num_styles
    return world.vocabulary_size - count + jnp.arange(count, dtype=jnp.int32)


def concept_of(world: World) -> Array:
    """`int32[V]`: each token's concept; −1 if it has none."""
    table = jnp.full((world.vocabulary_size,), -1, jnp.int32)
    concept = jnp.arange(world.num_concepts, dtype=jnp.int32)[None]
    said = words(world)
    return table.at[said].set(jnp.broadcast_to(concept, said.shape))


def style_of(world: World) -> Array:
    """`int32[V]`: each token's style; −1 if it has none."""
    table = jnp.full((world.vocabulary_size,), -1, jnp.int32)
    own = words(world)[:, world.num_neutral :]
    marks = closers(world)[:, None]
    table_of = jnp.concatenate([own, fillers(world), marks], axis=1)
    style = jnp.arange(world.num_styles, dtype=jnp.int32)[:, None]
    return table.at[table_of].set(jnp.broadcast_to(style, table_of.shape))


def places(rows: Array) -> Array:
    """`int32[..., T]`: 0 ... T − 1 in every row."""
    return jax.lax.broadcasted_iota(jnp.int32, rows.shape, rows.ndim - 1)


def packed(tokens: Array, kept: Array, fill: int) -> tuple[Array, Array]:
    """What is kept of `[..., T]`, in order and to the front; `fill` after it; counts.

    Raises:
      AssertionError: shapes differ.
    """
    chex.assert_equal_shape([tokens, kept])
    order = jnp.argsort(~kept, axis=-1, stable=True)
    count = jnp.sum(kept, axis=-1, dtype=jnp.int32)
    there = places(kept) < count[..., None]
    moved = jnp.take_along_axis(tokens, order, axis=-1)
    return jnp.where(there, moved, fill), count


# --------------------------------------------------------------- meanings and texts


def meanings(key: Key, world: World, count: int) -> Meaning:
    """`count` walks through the grammar, from any concept on."""
    first_key, length_key, walk_key = jax.random.split(key, 3)
    low, high = world.lengths
    length = jax.random.randint(length_key, (count,), low, high + 1)
    first = jax.random.randint(first_key, (count,), 0, world.num_concepts)

    def walk(here: Array, key: Key) -> tuple[Array, Array]:
        after = jax.random.categorical(key, world.grammar[here]).astype(jnp.int32)
        return after, here

    concepts = jax.lax.scan(walk, first, jax.random.split(walk_key, high))[1].T
    there = jnp.arange(high)[None] < length[:, None]
    return Meaning(jnp.where(there, concepts, -1), length)


def shortened(key: Key, meaning: Meaning, rate: float | Array) -> Meaning:
    """Leaves out each concept with probability `rate`; the first one never."""
    shape = meaning.concepts.shape
    kept = jax.random.uniform(key, shape) >= rate
    kept = (kept.at[..., 0].set(True)) & (meaning.concepts >= 0)
    return Meaning(*packed(meaning.concepts, kept, -1))


def render(key: Key, world: World, meaning: Meaning, style: Array) -> Text:
    """Says `[N]` meanings.

    Args:
      key: decides about fillers.
      world: see there.
      meaning: `[N, L]`.
      style: `int[N]`; or `int[N, L + 1]` one for each word, whose filler shares it,
        and one for the closing mark.

    Returns:
      `[N, 2 L + 2]`, padded on the right.

    Raises:
      AssertionError: the style has another shape.
    """
    number, length = meaning.concepts.shape
    style = jnp.asarray(style)
    if style.ndim == 1:
        style = jnp.broadcast_to(style[:, None], (len(style), length + 1))
    chex.assert_shape(style, (number, length + 1))
    chance_key, choice_key = jax.random.split(key)
    there = meaning.concepts >= 0
    said = words(world)[style[:, :-1], jnp.where(there, meaning.concepts, 0)]
    which = jax.random.randint(choice_key, said.shape, 0, FILLERS)
    between = fillers(world)[style[:, :-1], which]
    follows = there & (jax.random.uniform(chance_key, said.shape) < FILLER_RATE)
    tokens = jnp.stack([said, between], axis=-1).reshape(number, -1)
    kept = jnp.stack([there, follows], axis=-1).reshape(number, -1)
    mark = closers(world)[style[:, -1]]
    end = jnp.stack([mark, jnp.full_like(mark, END)], axis=-1)
    tokens = jnp.concatenate([tokens, end], axis=-1)
    kept = jnp.concatenate([kept, jnp.ones(end.shape, bool)], axis=-1)
    tokens, count = packed(tokens, kept, PAD)
    return Text(tokens, jnp.arange(tokens.shape[-1])[None] < count[:, None])


def corpus(key: Key, world: World, style: Array) -> Text:
    """A sentence in each of the given styles `int[N]`: what experts learn from."""
    meaning_key, text_key = jax.random.split(key)
    return render(text_key, world, meanings(meaning_key, world, len(style)), style)


# ------------------------------------------------------- what language models are asked


def prompts(source: Text) -> Prompts:
    """Asks for a rewrite of each source `[N, T]`: the source, then BEGIN, `[N, T]`."""
    kept = source.mask & (source.tokens != END)
    tokens, count = packed(source.tokens, kept, PAD)
    begin = jnp.full((*count.shape, 1), BEGIN, jnp.int32)
    size = tokens.shape[-1]
    # To the right: the tokens end where BEGIN stands.
    place = places(tokens) - (size - 1 - count[..., None])
    moved = jnp.take_along_axis(tokens, jnp.clip(place, 0, size - 1), axis=-1)
    row = jnp.where(place >= 0, moved, PAD)[..., :-1]
    mask = jnp.concatenate([place[..., :-1] >= 0, jnp.ones_like(begin, bool)], -1)
    return Prompts(jnp.concatenate([row, begin], axis=-1), mask)


def source_of(asked: Prompts) -> Text:
    """The source within prompts, which may begin with tokens of no language."""
    speaks = asked.mask & (asked.tokens >= NOTHING)
    return Text(asked.tokens, speaks)


def rewrites(source: Text, answer: Text) -> Sequences:
    """Rows `[N, T + U]`: prompts for the sources, and answers `[N, U]`."""
    asked = prompts(source)
    return joined(asked.tokens, asked.mask, answer.tokens, answer.mask)


def paraphrases(key: Key, world: World, count: int, drop: float = 0.1) -> Sequences:
    """What a paraphraser learns from: `count` pairs of the same meaning.

    The source has one style and leaves out a concept with probability `drop`; the
    answer has any style at every word.
    """
    keys = jax.random.split(key, 5)
    meaning = meanings(keys[0], world, count)
    one = jax.random.randint(keys[1], (count,), 0, world.num_styles)
    shape = (count, world.lengths[1] + 1)
    mixed = jax.random.randint(keys[2], shape, 0, world.num_styles)
    source_key, drop_key = jax.random.split(keys[3])
    source = render(source_key, world, shortened(drop_key, meaning, drop), one)
    return rewrites(source, render(keys[4], world, meaning, mixed))
