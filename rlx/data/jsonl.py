"""JSON lines: one object a line, all of its wanted fields text."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class LanguageDataError(ValueError):
    """Texts cannot be read or used; the message says where and what to do."""


def read(path: str | os.PathLike[str], fields: Sequence[str]) -> list[dict[str, str]]:
    """The wanted fields of every line, in order; blank lines are passed over.

    Row i of the result need not be line i + 1: `numbered` keeps the line numbers.

    Raises:
      LanguageDataError: no file, no lines, or a line that is no UTF-8, no JSON, no
        object, or lacks a field, or has something other than text in it.
    """
    return [row for _, row in numbered(path, fields)]


def numbered(
    path: str | os.PathLike[str], fields: Sequence[str]
) -> list[tuple[int, dict[str, str]]]:
    """As `read`, each row with its line number, from 1."""
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LanguageDataError(f"{path}: {reason}") from error
    rows = [
        (number, _row(f"{path}, line {number}", line, fields))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not rows:
        raise LanguageDataError(f"{path}: no lines: it must hold a JSON object a line")
    return rows


def _row(where: str, line: bytes, fields: Sequence[str]) -> dict[str, str]:
    try:
        found: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LanguageDataError(f"{where}: not UTF-8: save the file as such") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise LanguageDataError(f"{where}: not JSON: {error}") from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise LanguageDataError(f"{where}: an object with {fields} is due, not {kind}")
    for field in fields:
        if field not in found:
            there = ", ".join(sorted(map(str, found))) or "nothing"
            raise LanguageDataError(f"{where}: no field {field!r}, only {there}")
        if not isinstance(found[field], str):
            advice = (
                ": write a conversation out as one text"
                if isinstance(found[field], list)
                else ""
            )
            kind = type(found[field]).__name__
            raise LanguageDataError(
                f"{where}: {field!r} must be text, not {kind}{advice}"
            )
        _require_unicode(found[field], f"{where}: {field!r}")
    return {field: found[field] for field in fields}


def _require_unicode(text: str, where: str) -> None:
    """JSON can say half of a surrogate pair, which is no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LanguageDataError(
            f"{where} holds half of a surrogate pair, which is no character"
        ) from error
