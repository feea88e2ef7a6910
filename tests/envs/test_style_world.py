"""The language with styles against slow readers and sums over everything."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.language import style, style_reward
from envs.language.style import BEGIN, END, PAD, Meaning, Text

TINY = {"num_concepts": 10, "num_styles": 3, "num_successors": 3, "lengths": (2, 4)}


MEANINGS = jax.jit(style.meanings, static_argnums=2)
RENDER = jax.jit(style.render)
READ = jax.jit(style_reward.read)
METRICS = jax.jit(style_reward.metrics)
CORPUS = jax.jit(style.corpus)


@pytest.fixture(scope="module")
def world() -> style.World:
    return style.random(jax.random.key(0), **TINY)


def texts(rows: list[list[int]], width: int = 10) -> Text:
    """Rows of tokens, padded on the right."""
    tokens = np.full((len(rows), width), PAD, np.int32)
    for row, given in zip(tokens, rows, strict=True):
        row[: len(given)] = given
    mask = np.arange(width) < np.array([len(row) for row in rows])[:, None]
    return Text(jnp.asarray(tokens), jnp.asarray(mask))


def one(text: Text, index: int) -> list[int]:
    """The tokens of a row."""
    return np.asarray(text.tokens)[index][np.asarray(text.mask)[index]].tolist()


def test_every_token_is_one_thing(world: style.World) -> None:
    """The words, fillers and marks of a style are disjoint, and cover all tokens."""
    words, between, marks = (
        np.asarray(f(world)) for f in (style.words, style.fillers, style.closers)
    )
    assert world.num_neutral == 3 and world.vocabulary_size == 3 + 3 + 3 * (7 + 2 + 1)
    np.testing.assert_array_equal(words[:, :3], [words[0, :3]] * 3)
    own = [*words[0, :3], *words[:, 3:].ravel(), *between.ravel(), *marks]
    np.testing.assert_array_equal(np.sort(own), np.arange(3, world.vocabulary_size))
    concept, styles = style.concept_of(world), style.style_of(world)
    for s, c in itertools.product(range(3), range(10)):
        assert concept[words[s, c]] == c
        assert styles[words[s, c]] == (s if c >= 3 else -1)
    assert np.all(concept[between] == -1) and np.all(concept[marks] == -1)
    np.testing.assert_array_equal(styles[between], [[s, s] for s in range(3)])
    np.testing.assert_array_equal(styles[marks], range(3))
    np.testing.assert_array_equal(styles[:3], [-1, -1, -1])
    kind = np.asarray(style_reward.kinds(world))
    assert np.all(kind[words] == 0) and np.all(kind[between] == 1)
    assert np.all(kind[marks] == 2)
    np.testing.assert_array_equal(kind[[PAD, BEGIN, END]], [4, 4, 3])


def test_sentences_follow_the_grammar(world: style.World) -> None:
    """Walks have the lengths and transitions of the world; fillers their rate."""
    meaning = MEANINGS(jax.random.key(1), world, 6000)
    concepts, count = np.asarray(meaning.concepts), np.asarray(meaning.count)
    np.testing.assert_array_equal((concepts >= 0).sum(1), count)
    np.testing.assert_allclose(np.bincount(count)[2:] / 6000, 1 / 3, atol=0.03)
    seen = np.zeros((10, 10))
    there = concepts[:, 1:] >= 0
    np.add.at(seen, (concepts[:, :-1][there], concepts[:, 1:][there]), 1)
    total = seen.sum(1, keepdims=True)
    chance = np.exp(np.asarray(world.grammar))
    assert np.all((chance > 0).sum(1) == 3)
    assert np.all(seen[chance == 0] == 0)
    deviation = np.sqrt(chance * (1 - chance) / total)
    assert np.all(np.abs(seen / total - chance) < 5 * deviation + 1e-9)
    text = RENDER(jax.random.key(2), world, meaning, jnp.arange(6000) % 3)
    kind = np.asarray(style_reward.kinds(world))[np.asarray(text.tokens)]
    fillers = ((kind == 1) & np.asarray(text.mask)).sum()
    assert abs(fillers / count.sum() - 0.25) < 0.015


def test_what_is_said_can_be_read(world: style.World) -> None:
    """Reading undoes saying, in one style or in many; a sentence ends as it should."""
    meaning = MEANINGS(jax.random.key(1), world, 64)
    pure = jnp.arange(64) % 3
    mixed = jax.random.randint(jax.random.key(3), (64, 5), 0, 3)
    marks = np.asarray(style.closers(world))
    for spoken in (pure, mixed):
        text = RENDER(jax.random.key(2), world, meaning, spoken)
        found = READ(world, text)
        np.testing.assert_array_equal(found.count, meaning.count)
        np.testing.assert_array_equal(found.concepts[:, :4], meaning.concepts)
        for row in range(64):
            said = one(text, row)
            last = np.asarray(spoken).reshape(64, -1)[row, -1]
            assert said[-1] == END and said[-2] == marks[last]
    text = RENDER(jax.random.key(2), world, meaning, pure)
    styles = np.asarray(style.style_of(world))
    found = np.asarray(style_reward.strength(world, text, pure))
    for row in range(64):
        number = (styles[one(text, row)] >= 0).sum()
        np.testing.assert_allclose(found[row], (number + 1) / (number + 2), rtol=1e-6)


@functools.cache
def slow_distance(first: tuple, second: tuple) -> int:
    """Levenshtein's distance by its definition."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        slow_distance(first[1:], second) + 1,
        slow_distance(first, second[1:]) + 1,
        slow_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


def test_distances_of_all_short_sequences() -> None:
    every = [x for n in range(4) for x in itertools.product(range(2), repeat=n)]
    rows = jnp.array([[*x, *[-1] * (4 - len(x))] for x in every])
    packed = Meaning(rows, jnp.array([len(x) for x in every]))
    across = jax.vmap(jax.vmap(style_reward.edit_distance, (None, 0)), (0, None))
    expected = [[slow_distance(a, b) for b in every] for a in every]
    np.testing.assert_array_equal(jax.jit(across)(packed, packed), expected)


def slow_metrics(world: style.World, source: list, answer: list, wanted: int) -> list:
    """The three rewards, by reading token after token."""
    concept = np.asarray(style.concept_of(world))
    styles = np.asarray(style.style_of(world))
    kind = np.asarray(style_reward.kinds(world))
    if not any(t >= 3 for t in answer):
        return [0.0, 0.0, 0.0]
    own, every = (styles[answer] == wanted).sum(), (styles[answer] >= 0).sum()
    one, two = (
        tuple(concept[t] for t in row if concept[t] >= 0) for row in (source, answer)
    )
    longer = max(len(one), len(two))
    alike = 1 - slow_distance(one, two) / longer if longer and source else 0.0
    told = [t for t in answer if t != END] + [END]
    table = np.zeros((6, 5))
    leave = 1 / np.mean(world.lengths)
    table[0, 0] = table[4, 0] = table[5, 0] = table[3, 3] = 1
    table[1, [0, 1, 2]] = 0.75 * (1 - leave), 0.25, 0.75 * leave
    table[2, [0, 2]] = 1 - leave, leave
    table = 0.98 * table + 0.02 / 5
    grammar = 0.98 * np.exp(np.asarray(world.grammar)) + 0.02 / len(world.grammar)
    total, state, last = 0.0, 0, None
    for token in told:
        total += np.log(table[state, kind[token]])
        state = 1 + kind[token]
        if concept[token] >= 0:
            total += 0.0 if last is None else np.log(grammar[last, concept[token]])
            last = concept[token]
    fluent = 1 / (1 + np.exp(-4 * (total / len(told) + 2)))
    return [(own + 1) / (every + 2), alike, fluent]


def test_rewards_are_those_of_a_slow_reader(world: style.World) -> None:
    """Of sentences, of any tokens in any order, of nothing; padding says nothing."""
    generator = np.random.default_rng(0)
    written = CORPUS(jax.random.key(1), world, jnp.arange(12) % 3)
    rows = [one(written, i) for i in range(12)]
    for _ in range(40):
        size = generator.integers(0, 9)
        rows.append(generator.integers(0, world.vocabulary_size, size).tolist())
    rows += [[END], [END, 5, 6], [style.closers(world)[0], END], [PAD, BEGIN]]
    pairs = [(rows[i % 12], row) for i, row in enumerate(rows)]
    wanted = np.arange(len(rows)) % 3
    expected = [
        slow_metrics(world, a, b, s) for (a, b), s in zip(pairs, wanted, strict=True)
    ]
    source, answer = (texts([p[i] for p in pairs]) for i in range(2))
    found = METRICS(world, source, answer, jnp.asarray(wanted))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    assert np.all((found >= 0) & (found <= 1))
    np.testing.assert_array_equal(
        style_reward.aggregate(found) <= found.min(1) + 1e-7, True
    )
    wide = [
        Text(jnp.pad(x.tokens, ((0, 0), (0, 3))), jnp.pad(x.mask, ((0, 0), (0, 3))))
        for x in (source, answer)
    ]
    lead = [jax.tree.map(lambda x: jnp.roll(x, 2, axis=1), x) for x in wide]
    again = METRICS(world, *lead, jnp.asarray(wanted))
    np.testing.assert_allclose(again, found, rtol=1e-5, atol=1e-6)


def test_a_copy_keeps_meaning_and_a_mistake_costs_fluency(world: style.World) -> None:
    text = CORPUS(jax.random.key(1), world, jnp.zeros(200, jnp.int32))
    found = METRICS(world, text, text, jnp.ones(200, jnp.int32))
    np.testing.assert_allclose(found[:, 1], 1.0)
    assert np.all(found[:, 0] <= 0.5)
    other = jax.tree.map(lambda x: x[::-1], text)
    wanted = jnp.ones(200, jnp.int32)
    there, back = (
        METRICS(world, text, other, wanted),
        METRICS(world, other, text, wanted),
    )
    np.testing.assert_allclose(there[:, 1], back[:, 1], rtol=1e-6)
    cut = Text(text.tokens, text.mask & (style_reward.kinds(world)[text.tokens] != 2))
    assert np.all(
        METRICS(world, text, cut, jnp.ones(200, jnp.int32))[:, 2] < found[:, 2]
    )
    assert found[:, 2].mean() > 0.8


def test_rows_for_a_language_model(world: style.World) -> None:
    """A prompt is the source, BEGIN at its end; the answer follows, END included."""
    source = CORPUS(jax.random.key(1), world, jnp.arange(8) % 3)
    asked = jax.jit(style.prompts)(source)
    for row in range(8):
        said = one(Text(asked.tokens, asked.mask), row)
        assert said == [*one(source, row)[:-1], BEGIN]
    assert np.all(asked.mask[:, -1])
    back = READ(world, style.source_of(asked))
    np.testing.assert_array_equal(back.concepts, READ(world, source).concepts)
    rows = jax.jit(style.paraphrases, static_argnums=2)(jax.random.key(2), world, 500)
    assert rows.tokens.shape == (500, 20) and np.all(rows.tokens[:, 9] == BEGIN)
    answer = Text(rows.tokens, rows.response)
    told = READ(world, Text(rows.tokens, rows.mask & ~rows.response))
    meant = READ(world, answer)
    left = np.asarray(told.count).sum() / np.asarray(meant.count).sum()
    assert 0.88 < left < 0.97  # the first concept is never left out
    styles = np.asarray(style.style_of(world)[rows.tokens])
    for mask, many in ((rows.mask & ~rows.response, False), (rows.response, True)):
        kept = np.where(mask, styles, -1)
        distinct = [len(set(row[row >= 0])) for row in kept]
        assert (max(distinct) > 1) == many


def test_worlds_are_mapped_over_seeds() -> None:
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def scores(key: jax.Array) -> jax.Array:
        world = style.random(key, **TINY)
        source = style.corpus(key, world, jnp.zeros(4, jnp.int32))
        answer = style.corpus(jax.random.fold_in(key, 1), world, jnp.ones(4, jnp.int32))
        return style_reward.metrics(world, source, answer, jnp.ones(4, jnp.int32))

    together = jax.jit(jax.vmap(scores))(keys)
    np.testing.assert_allclose(together[1], scores(keys[1]), rtol=1e-5)


@pytest.mark.parametrize(
    "change", [{"num_successors": 11}, {"lengths": (0, 4)}, {"lengths": (4, 3)}]
)
def test_impossible_worlds_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="num_successors"):
        style.random(jax.random.key(0), **TINY | change)


def test_other_shapes_are_refused(world: style.World) -> None:
    meaning = MEANINGS(jax.random.key(1), world, 4)
    with pytest.raises(AssertionError):
        style.render(jax.random.key(2), world, meaning, jnp.zeros((4, 3), jnp.int32))
    text = CORPUS(jax.random.key(1), world, jnp.zeros(4, jnp.int32))
    with pytest.raises(AssertionError):
        style_reward.metrics(world, text, text, jnp.zeros(3, jnp.int32))
