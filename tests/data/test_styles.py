"""Sentences of several styles: one spelling, limits, errors that name a line."""

from __future__ import annotations

import pathlib
import stat

import numpy as np
import pytest

from rlx.data import style_corpus, styles
from rlx.data.jsonl import LanguageDataError
from rlx.data.styles import Limits

PLAY = (
    "Will you be patient?\nHere 's no man , sir ; go you to bed !\nI pray you , go .\n"
)
HOLY = "And he went unto the man: and he was patient.\nGo unto the man, I pray thee.\n"
ANY = Limits(min_words=2, max_words=9, min_count=1)


def write(folder: pathlib.Path, **texts: str | bytes) -> dict[str, pathlib.Path]:
    paths = {}
    for name, text in texts.items():
        paths[name] = folder / f"{name}.txt"
        paths[name].write_bytes(text.encode() if isinstance(text, str) else text)
    return paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Here 's no Man , sir ;", "here's no man, sir."),
        ("\u2018Tis true\u2014O God!", "'tis true, o god!"),
        ("what, ho ?", "what, ho?"),
        ("of night.,", "of night."),
        ("  ,;  ", ""),
        ("", ""),
    ],
)
def test_one_spelling(text: str, expected: str) -> None:
    assert styles.plain(text) == expected
    assert styles.plain(expected) == expected


def test_sentences_are_cut_at_their_marks() -> None:
    text = "Who goes there? Stand: and unfold yourself.Long live the king!"
    expected = [
        "who goes there?",
        "stand.",
        "and unfold yourself.",
        "long live the king!",
    ]
    assert styles.split(text) == expected


def test_styles_are_read_in_order(tmp_path: pathlib.Path) -> None:
    texts = styles.load(write(tmp_path, play=PLAY, holy=HOLY), ANY)
    assert texts.names == ("play", "holy")
    assert texts.sentences["play"] == [
        "will you be patient?",
        "here's no man, sir.",
        "go you to bed!",
        "i pray you, go.",
    ]
    assert texts.sentences["holy"][0] == "and he went unto the man."
    assert texts.reports["holy"].kept == 3


def test_what_is_left_out_is_counted_by_line(tmp_path: pathlib.Path) -> None:
    odd = "Exit [with 3 men].\nGo.\nthe man goes.\nThe Man goes .\nzounds the man.\n"
    paths = write(tmp_path, a=odd, b="the man goes home.\nthe man is at home.\n")
    texts = styles.load(paths, Limits(min_words=2, max_words=9, min_count=2))
    assert texts.sentences["a"] == ["the man goes."]
    dropped = texts.reports["a"].dropped
    assert dropped == {
        styles.ODD: [1],
        styles.LENGTH: [2],
        styles.TWICE: [4],
        styles.RARE: [5],
    }
    assert texts.reports["b"].dropped == {styles.RARE: [2]}


@pytest.mark.parametrize(
    ("content", "options", "word"),
    [
        (b"", {}, "a.txt: empty"),
        (b"a man.\n\nhe goes.\n", {}, "a.txt, line 2: an empty line"),
        (b"\n\n", {"drop": True}, "a.txt: empty"),
        (b"a man.\n\xff\xfe goes.\n", {}, "a.txt, line 2: not utf-8"),
        (b"a man goes.\n", {"encoding": "klingon"}, "unknown encoding 'klingon'"),
        (b"12 34.\n", {}, "nothing is left of the style 'a'"),
    ],
)
def test_bad_files_are_named(
    tmp_path: pathlib.Path, content: bytes, options: dict, word: str
) -> None:
    paths = write(tmp_path, a=content, b=HOLY)
    with pytest.raises(LanguageDataError, match=word):
        styles.load(paths, ANY, **options)


def test_one_style_is_none_and_a_missing_file_is_told(tmp_path: pathlib.Path) -> None:
    paths = write(tmp_path, a=PLAY)
    with pytest.raises(LanguageDataError, match="at least two files, not 1"):
        styles.load(paths)
    with pytest.raises(LanguageDataError, match="c.txt: no such file"):
        styles.load({**paths, "c": tmp_path / "c.txt"})


def test_empty_lines_may_be_passed_over(tmp_path: pathlib.Path) -> None:
    paths = write(tmp_path, a="a man goes.\n\nhe is there.\n", b=HOLY)
    assert len(styles.load(paths, ANY, drop=True).sentences["a"]) == 2


def program(folder: pathlib.Path, script: str) -> str:
    path = folder / "verses"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_bible_is_read_verse_by_verse(tmp_path: pathlib.Path) -> None:
    """A program that prints as Debian's does, with its options."""
    says = 'printf "Ge1:1 In the beginning: God.\\nGe1:2 And.\\n"\n'
    script = 'test "$1" = -f || exit 3\n' + says
    rows = styles.bible(program(tmp_path, script))
    assert rows == [(1, "In the beginning: God."), (2, "And.")]


@pytest.mark.parametrize(
    ("script", "word"), [("exit 3", "fails with status 3"), ("", "says nothing")]
)
def test_without_the_bible_it_says_how_to_get_it(
    tmp_path: pathlib.Path, script: str, word: str
) -> None:
    with pytest.raises(LanguageDataError, match=f"{word}.*apt-get install bible-kjv"):
        styles.bible(program(tmp_path, script))
    with pytest.raises(LanguageDataError, match="not there: apt-get install bible-kjv"):
        styles.bible(str(tmp_path / "nobody"))


def corpus(tmp_path: pathlib.Path) -> tuple:
    texts = styles.load(write(tmp_path, play=PLAY, holy=HOLY), ANY)
    words = style_corpus.tokenizer(texts, 300)
    return texts, words, style_corpus.encoded(texts, words, 24)


def test_sentences_come_back_from_their_tokens(tmp_path: pathlib.Path) -> None:
    texts, words, rows = corpus(tmp_path)
    said = [
        style_corpus.text_of(words, row[there])
        for row, there in zip(rows.tokens, rows.mask, strict=True)
    ]
    every = [x for sentences in texts.sentences.values() for x in sentences]
    assert said == [x for x in every if x in said] and len(said) >= 6
    last = rows.tokens[np.arange(len(said)), rows.mask.sum(axis=1) - 1]
    np.testing.assert_array_equal(last, words.end)
    assert style_corpus.vocabulary(texts) >= {"patient", "unto", "here's"}


def test_prompts_end_in_begin(tmp_path: pathlib.Path) -> None:
    _, words, rows = corpus(tmp_path)
    begin = words.special(style_corpus.BEGIN)
    asked = style_corpus.asked(rows, begin)
    np.testing.assert_array_equal(asked.tokens[:, -1], begin)
    for row in range(len(rows.style)):
        mine = np.asarray(asked.tokens[row])[np.asarray(asked.mask[row])]
        np.testing.assert_array_equal(mine[:-1], rows.tokens[row][rows.mask[row]][:-1])
        first = int(np.argmax(asked.mask[row]))
        assert bool(np.all(asked.mask[row, first:]))  # padding is on the left alone


def test_parts_are_disjoint_and_balanced(tmp_path: pathlib.Path) -> None:
    _, _, rows = corpus(tmp_path)
    parts = style_corpus.parted(rows, (1, 2), seed=3)
    assert [np.bincount(part.style).tolist() for part in parts] == [[1, 1], [2, 2]]
    seen = {tuple(np.asarray(x)) for part in parts for x in part.tokens}
    assert len(seen) == 6
    with pytest.raises(LanguageDataError, match="the parts .* need 9"):
        style_corpus.parted(rows, (4, 5), seed=3)


def test_too_short_a_row_is_refused(tmp_path: pathlib.Path) -> None:
    texts, words, _ = corpus(tmp_path)
    with pytest.raises(LanguageDataError, match="no sentence of at most 1 tokens"):
        style_corpus.encoded(texts, words, 2)


def test_limits_that_no_sentence_keeps_are_refused() -> None:
    with pytest.raises(ValueError, match="min_words=9 must lie in 1 ... max_words=8"):
        Limits(min_words=9, max_words=8)
