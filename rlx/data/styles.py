"""Texts of several styles: one file for each, one sentence a line.

    texts = load({"shakespeare": "plays.txt", "bible": KING_JAMES})
    texts.sentences["bible"][0]
    'in the beginning god created the heaven and the earth.'

Sentences are brought to one spelling (`plain`), so that styles do not differ by how
their files were typed: lower case, straight apostrophes, no blank before a comma, no
brackets. What cannot be (stage directions, digits, other alphabets), is too short or
too long or holds a word that hardly ever occurs, is left out and counted.

The King James Bible comes from Debian's package `bible-kjv-text`, read through its
program; no file of it is needed.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from rlx.data.jsonl import LanguageDataError
from rlx.data.packing import Report

KING_JAMES = "@kjv"
"""In place of a path: the King James Bible of the Debian package."""
PROGRAM = "bible"
RANGE = "genesis1:1-revelation22:21"

BLANK = "an empty line"
ODD = "other characters than letters and punctuation"
LENGTH = "too few or too many words"
RARE = "a word that is rare in all styles"
TWICE = "the same sentence as before"

_CLITIC = re.compile(r" '(s|d|ll|st|re|ve|t|r|n)\b")
_ENDS = re.compile(r"(?<=[.?!;:])[\"')\]]*(?:\s+|(?=[A-Za-z]))")
_GOOD = re.compile(r"[a-z][a-z',.?! -]*[.?!]")
_WORD = re.compile(r"[a-z']+")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which sentences are kept.

    Raises:
      ValueError: limits that no sentence keeps.
    """

    min_words: int = 4
    max_words: int = 14
    min_count: int = 3
    """A word must stand in at least so many sentences of all styles together; thus
    words that were glued in scanning go."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words or self.min_count < 1:
            raise ValueError(
                f"min_words={self.min_words} must lie in 1 ... max_words="
                f"{self.max_words}, and min_count={self.min_count} be positive"
            )


@dataclasses.dataclass(frozen=True)
class Texts:
    """Sentences by style, in the order of their files."""

    sentences: dict[str, list[str]]
    reports: dict[str, Report]
    """By style: what was left out, with line numbers."""

    @property
    def names(self) -> tuple[str, ...]:
        """The styles, in the order in which they were given."""
        return tuple(self.sentences)


def load(
    paths: Mapping[str, str | os.PathLike[str]],
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    *,
    encoding: str = "utf-8",
    drop: bool = False,
) -> Texts:
    """Reads a file, or `KING_JAMES`, for each style.

    Args:
      paths: at least two, by the styles' names.
      limits: which sentences are kept.
      encoding: of the files.
      drop: pass over empty lines; else they are an error.

    Raises:
      LanguageDataError: fewer than two styles, an unknown encoding, a file that is
        missing, empty or in another encoding (names the line), an empty line, or a
        style of which nothing is left.
    """
    if len(paths) < 2:
        raise LanguageDataError(
            f"a style needs another to differ from: give at least two files, not "
            f"{len(paths)}"
        )
    found: dict[str, list[tuple[int, str]]] = {}
    reports: dict[str, Report] = {}
    for style, path in paths.items():
        king_james = os.fspath(path) == KING_JAMES
        lines = bible() if king_james else read(path, encoding, drop=drop)
        pieces = [(n, x) for n, line in lines for x in split(line)]
        reports[style] = Report(len(pieces))
        found[style] = list(_sound(pieces, limits, reports[style]))
    common = _common((x for rows in found.values() for _, x in rows), limits.min_count)
    kept: dict[str, list[str]] = {}
    for style, rows in found.items():
        kept[style] = _spoken(rows, common, reports[style])
        reports[style].kept = len(kept[style])
        if not kept[style]:
            raise LanguageDataError(
                f"{paths[style]}: nothing is left of the style {style!r}: "
                f"{reports[style]}"
            )
    return Texts(kept, reports)


def read(
    path: str | os.PathLike[str], encoding: str = "utf-8", *, drop: bool = False
) -> list[tuple[int, str]]:
    """The lines of a file with their numbers, from 1, without those that are blank.

    Raises:
      LanguageDataError: see `load`.
    """
    path = Path(path)
    try:
        "".encode(encoding)
        lines = path.read_bytes().splitlines()
    except LookupError as error:
        raise LanguageDataError(
            f"unknown encoding {encoding!r}: try utf-8 or latin-1"
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LanguageDataError(f"{path}: {reason}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode(encoding).strip()
        except UnicodeError as error:
            raise LanguageDataError(
                f"{path}, line {number}: not {encoding}: give the file's encoding"
            ) from error
        if text:
            rows.append((number, text))
        elif not drop:
            raise LanguageDataError(
                f"{path}, line {number}: {BLANK}: a sentence a line is due; remove it, "
                "or pass drop=True"
            )
    if not rows:
        raise LanguageDataError(f"{path}: empty: it must hold a sentence a line")
    return rows


def bible(program: str = PROGRAM) -> list[tuple[int, str]]:
    """The verses of the King James Bible, numbered from 1.

    Raises:
      LanguageDataError: the program is missing or fails.
    """
    advice = (
        "apt-get install bible-kjv-text (Debian, Ubuntu), or give a text file with a "
        "sentence a line"
    )
    try:
        ended = subprocess.run(
            [program, "-f", RANGE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
    except OSError as error:
        raise LanguageDataError(
            f"the King James Bible is read by the program {program!r}, which is not "
            f"there: {advice}"
        ) from error
    except subprocess.CalledProcessError as error:
        raise LanguageDataError(
            f"the program {program!r} fails with status {error.returncode}: {advice}"
        ) from error
    verses = [line.partition(" ")[2] for line in ended.stdout.splitlines()]
    rows = [(n, x.strip()) for n, x in enumerate(verses, 1) if x.strip()]
    if not rows:
        raise LanguageDataError(f"the program {program!r} says nothing: {advice}")
    return rows


def split(text: str) -> list[str]:
    """The sentences of a text, in the one spelling: cut after `.?!;:`."""
    pieces = (plain(piece) for piece in _ENDS.split(text))
    return [piece for piece in pieces if piece]


def plain(text: str) -> str:
    """A sentence in the one spelling; it ends in one of . ? ! unless it is empty."""
    text = text.lower().replace("\u2019", "'").replace("\u2018", "'")
    text = text.replace("\u2014", ", ").replace("--", ", ")
    text = re.sub(r"[\"\u201c\u201d]", "", text)
    text = _CLITIC.sub(r"'\1", " ".join(text.split()))
    text = re.sub(r"\s+([,.?!;:])", r"\1", text)
    text = re.sub(r"[,;:.?! ]+([,;:.?!])", r"\1", text).strip(" ,-")
    body = text.rstrip(" ,;:.?!-")
    if not body:
        return ""
    mark = text[len(body) :].strip()[:1]
    body = body.replace(";", ",").replace(":", ",")
    return body + (mark if mark in ("?", "!") else ".")


def words(text: str) -> list[str]:
    """The words of a sentence, without its punctuation."""
    return _WORD.findall(text)


def _sound(
    rows: Iterable[tuple[int, str]], limits: Limits, report: Report
) -> Iterable[tuple[int, str]]:
    for number, text in rows:
        count = len(words(text))
        if not _GOOD.fullmatch(text):
            report.drop(ODD, number)
        elif not limits.min_words <= count <= limits.max_words:
            report.drop(LENGTH, number)
        else:
            yield number, text


def _common(texts: Iterable[str], least: int) -> set[str]:
    count = collections.Counter(word for text in texts for word in set(words(text)))
    return {word for word, number in count.items() if number >= least}


def _spoken(
    rows: Iterable[tuple[int, str]], common: set[str], report: Report
) -> list[str]:
    """What has no rare word; of equal sentences the first."""
    kept: dict[str, None] = {}
    for number, text in rows:
        if not common.issuperset(words(text)):
            report.drop(RARE, number)
        elif text in kept:
            report.drop(TWICE, number)
        else:
            kept[text] = None
    return list(kept)
