"""The study of STEER on real text, on a world that has learned nothing."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.steer import text, text_page, text_world
from rlx.data import style_corpus
from rlx.data.styles import Texts
from rlx.generation.sampling import Generated

TEXTS = Texts(
    {
        "plain": ["go to bed now.", "we go home.", "you go now.", "now go home."],
        "holy": ["go thou.", "thou art holy.", "unto thee go.", "go unto bed."],
        "sea": ["ahoy, sail on!", "sail to sea.", "the sea, ahoy!", "sail home."],
    },
    {},
)
SIZE = text_world.Size(
    words=300,
    source=14,
    answer=15,
    width=8,
    layers=1,
    judge_filters=4,
    parts=(2, 1, 1),
    batch=4,
)


@pytest.fixture(scope="module")
def world() -> text_world.World:
    words = style_corpus.tokenizer(TEXTS, SIZE.words)
    corpus = style_corpus.encoded(TEXTS, words, SIZE.source)
    parts = style_corpus.parted(corpus, SIZE.parts, seed=0)
    blank = text_world._empty(SIZE, words, 3)
    learned = blank.replace(
        train=parts[0],
        test=parts[2],
        bigrams=text_world._bigrams(parts[0], 3, words.vocabulary_size, 2),
        held_out_bigrams=text_world._bigrams(parts[1], 3, words.vocabulary_size, 2),
    )
    return text_world.World(
        SIZE, TEXTS.names, words, learned, {"size": dataclasses.asdict(SIZE)}
    )


def test_every_sentence_is_asked_for_in_every_other_style(
    world: text_world.World,
) -> None:
    asked = text.ask(world, world.learned.train, 2)
    pairs = list(zip(asked.source_style.tolist(), asked.style.tolist(), strict=True))
    expected = [(a, b) for a in range(3) for b in range(3) if a != b] * 2
    assert sorted(pairs) == sorted(expected)


def test_copies_are_the_sources(world: text_world.World) -> None:
    asked = text.ask(world, world.learned.test, 1)
    rows = text.copied(world, asked)
    for row in range(len(asked.style)):
        tokens = np.asarray(rows.tokens[row])
        source = tokens[: SIZE.source][np.asarray(rows.mask[row, : SIZE.source])]
        answer = tokens[np.asarray(rows.response[row])]
        np.testing.assert_array_equal(source[:-1], answer[:-1])
        assert (source[-1], answer[-1]) == (world.begin, world.tokenizer.end)
    found = text_page.measured(world, rows, asked)["metrics"]
    assert found["copied"]["mean"] == found["length ratio"]["mean"] == 1.0


def test_texts_are_spoken_in_order_and_in_pieces(
    world: text_world.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What answers with the style that is asked for; pieces of four, twelve rows."""
    asked = text.ask(world, world.learned.train, 2)

    def speaks(params: object, part: text.Asked, key: jax.Array) -> object:
        del params, key
        tokens = jnp.broadcast_to(part.style[:, None] + 10, (len(part.style), 2))
        return Generated(tokens, jnp.ones(tokens.shape, bool), 0.0 * tokens)

    for chunk in (4, 5, 99):
        monkeypatch.setattr(text, "CHUNK", chunk)
        rows = text.spoken(speaks, (), asked, jax.random.key(0))
        np.testing.assert_array_equal(rows.tokens[:, -1], asked.style + 10)
        np.testing.assert_array_equal(
            rows.tokens[:, : SIZE.source], asked.prompts.tokens
        )


def test_noise_is_undone_to_the_sentence(world: text_world.World) -> None:
    corpus = world.learned.train
    rows = text_world.paraphrases(jax.random.key(0), corpus, SIZE, world.tokenizer)
    assert len(rows.tokens) == len(text_world.NOISES) * len(corpus.style)
    np.testing.assert_array_equal(rows.tokens[:, SIZE.source - 1], world.begin)
    answers = jnp.where(rows.response, rows.tokens, -1)[:, SIZE.source :]
    whole = jnp.where(corpus.mask, corpus.tokens, -1)
    expected = jnp.tile(jnp.pad(whole, ((0, 0), (0, 1)), constant_values=-1), (4, 1))
    np.testing.assert_array_equal(answers, expected)


def test_only_whole_words_are_replaced(world: text_world.World) -> None:
    corpus = world.learned.train
    found = np.asarray(text_world.neighbours(corpus, world.tokenizer))
    spelled = [world.tokenizer.decode([token]) for token in range(len(found))]
    for token, choices in enumerate(found):
        if spelled[token].startswith(" "):
            assert token not in choices
            assert all(spelled[choice].startswith(" ") for choice in choices)
        else:
            assert set(choices) == {token}


def test_a_world_comes_back_whole(
    world: text_world.World, tmp_path: pathlib.Path
) -> None:
    text_world.save(tmp_path / "world", world)
    found = text_world.load(tmp_path / "world")
    assert (found.size, found.styles) == (world.size, world.styles)
    jax.tree.map(np.testing.assert_array_equal, found.learned, world.learned)


def test_perplexity_is_that_of_the_held_out_bigrams(world: text_world.World) -> None:
    asked = text.ask(world, world.learned.test, 1)
    rows = text.copied(world, asked)
    found = text_page._plain(world, rows, asked)["perplexity"]
    table = np.asarray(world.learned.held_out_bigrams)
    for row in range(3):
        said = np.asarray(rows.tokens[row])[np.asarray(rows.response[row])]
        before, terms = world.begin, []
        for token in said:
            terms.append(table[int(asked.style[row]), before, token])
            before = token
        np.testing.assert_allclose(found[row], -np.mean(terms), rtol=1e-5)


def test_seeds_are_joined_into_a_page(
    world: text_world.World, tmp_path: pathlib.Path
) -> None:
    asked = text.ask(world, world.learned.test, 1)
    arm = text_page.measured(world, text.copied(world, asked), asked)
    runs = []
    for seed, shift in enumerate((0, 100)):
        better = {**arm, "values_in_thousandths": [x + shift for x in [0, 400, 200]]}
        worse = {**arm, "values_in_thousandths": [0, 300, 100]}
        arms = dict.fromkeys(text_page.ARMS, worse) | {"STEER": better}
        runs.append(
            {
                "seed": seed,
                "arms": arms,
                "styles": world.styles,
                "plan": {},
                "world": {},
                "environment": {},
                "seconds": 1.0,
            }
        )
    text_page.write(runs, tmp_path)
    told = json.loads((tmp_path / "text.json").read_text())
    apart = told["differences_of_value"]["STEER - SFT"]
    expected = np.mean([[0, 0.1, 0.1], [0.1, 0.2, 0.2]])
    assert apart["mean"] == pytest.approx(expected)
    assert apart["low"] <= expected <= apart["high"]
    page = (tmp_path / "text.md").read_text()
    assert "**plain to holy**" in page and "| STEER |" in page
    assert (tmp_path / "text.png").stat().st_size > 5000
