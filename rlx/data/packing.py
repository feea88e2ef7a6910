"""Token lists into arrays with masks, and an account of what was left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlx.data.jsonl import LanguageDataError
from rlx.data.language import Sequences

Tokens = Sequence[int]


@dataclasses.dataclass
class Report:
    """What became of the rows of a file."""

    rows: int = 0
    kept: int = 0
    dropped: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    """Line numbers of what was left out, by reason."""

    def drop(self, reason: str, line: int) -> None:
        """Notes a row that is left out."""
        self.dropped.setdefault(reason, []).append(line)

    def __str__(self) -> str:
        """One line for a log."""
        parts = [f"{self.kept} of {self.rows} rows"]
        parts += [
            f"{reason}: {len(lines)} left out ({_some(lines)})"
            for reason, lines in self.dropped.items()
        ]
        return "; ".join(parts)


def _some(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:5]))
    return f"line {shown}" + (", ..." if len(lines) > 5 else "")


def require_sound(report: Report, path: str, *, drop: bool) -> None:
    """Refuses rows that are at fault, unless they may be dropped.

    Raises:
      LanguageDataError: rows are empty or too long and `drop` is off; or none is left.
    """
    faults = {
        reason: lines for reason, lines in report.dropped.items() if reason != IDENTICAL
    }
    if faults and not drop:
        reason, lines = next(iter(faults.items()))
        raise LanguageDataError(
            f"{path}: {reason} in {len(lines)} of {report.rows} rows ({_some(lines)}): "
            "mend the file, change the lengths, or pass drop=True to leave them out"
        )
    if not report.kept:
        raise LanguageDataError(f"{path}: nothing is left to learn from: {report}")


IDENTICAL = "chosen and rejected are the same"
EMPTY = "an empty response"
EMPTY_PROMPT = "an empty prompt"
LONG_PROMPT = "a prompt longer than the window"
LONG_RESPONSE = "a response that does not fit"


def fault(prompt: Tokens, responses: Sequence[Tokens], length: int) -> str:
    """Why a prompt with these responses, their end included, cannot be used, or ""."""
    if not prompt:
        return EMPTY_PROMPT
    if len(prompt) >= length:
        return LONG_PROMPT
    if any(len(response) < 2 for response in responses):
        return EMPTY
    if any(len(prompt) + len(response) > length for response in responses):
        return LONG_RESPONSE
    return ""


def sequences(
    prompts: Sequence[Tokens], responses: Sequence[Tokens], length: int, pad: int
) -> Sequences:
    """Rows `[N, length]`: prompt, response, padding on the right; NumPy arrays.

    Raises:
      LanguageDataError: a row does not fit.
    """
    count = len(prompts)
    tokens: Any = np.full((count, length), pad, np.int32)
    mask: Any
    answer: Any
    mask, answer = np.zeros((2, count, length), bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        begin, end = len(prompt), len(prompt) + len(response)
        if end > length:
            raise LanguageDataError(f"row {row} has {end} tokens: at most {length} fit")
        tokens[row, :begin], tokens[row, begin:end] = prompt, response
        mask[row, :end], answer[row, begin:end] = True, True
    return Sequences(tokens, mask, answer)


def left_padded(
    rows: Sequence[Tokens], length: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `int32[N, length]` and mask `bool[N, length]`, padding on the left.

    Raises:
      LanguageDataError: a row does not fit.
    """
    tokens = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        if len(row) > length:
            raise LanguageDataError(
                f"row {number} has {len(row)} tokens: at most {length} fit"
            )
        if len(row):
            tokens[number, -len(row) :], mask[number, -len(row) :] = row, True
    return tokens, mask
