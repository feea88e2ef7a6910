"""Preferences and demonstrations from JSON lines.

    {"prompt": "...", "chosen": "...", "rejected": "..."}      `load`
    {"prompt": "...", "response": "..."}                       `load_demonstrations`

the common forms, in plain text. The token that ends a response is added to each.
`rlx.data.language.draw` makes minibatches of the rows.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rlx.data import jsonl, packing
from rlx.data.language import Preferences, Sequences
from rlx.data.packing import Report
from rlx.data.tokenizer import Tokenizer

FIELDS = ("prompt", "chosen", "rejected")


def load(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    length: int,
    drop: bool = False,
) -> tuple[Preferences, Report]:
    """Pairs of responses as arrays `[N, length]`, and what was left out.

    Pairs whose two responses are the same say nothing: they are left out always, and
    counted. The weight of every pair is 1.

    Args:
      path: a file with `prompt`, `chosen` and `rejected` on each line.
      tokenizer: see there.
      length: S, of prompt and response together.
      drop: leave out rows with an empty prompt or response, or that do not fit, instead
        of refusing the file.

    Raises:
      rlx.data.jsonl.LanguageDataError: a line is malformed or at fault, by its number;
        or nothing is left.
    """
    rows = jsonl.numbered(path, FIELDS)
    report, kept = Report(len(rows)), []
    encoded = _encode(rows, FIELDS, tokenizer)
    for (line, _), (prompt, chosen, rejected) in zip(rows, encoded, strict=True):
        reason = packing.fault(prompt, (chosen, rejected), length)
        if not reason and chosen == rejected:
            reason = packing.IDENTICAL
        if reason:
            report.drop(reason, line)
        else:
            kept.append((prompt, chosen, rejected))
    report.kept = len(kept)
    packing.require_sound(report, str(path), drop=drop)
    prompts, *sides = zip(*kept, strict=True)
    one, two = (
        packing.sequences(prompts, side, length, tokenizer.pad) for side in sides
    )
    weight: Any = np.ones(len(kept), np.float32)
    return Preferences(one, two, weight), report


def load_demonstrations(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    length: int,
    drop: bool = False,
    response: str = "response",
) -> tuple[Sequences, Report]:
    """Prompts with their responses, for supervised fine-tuning; arguments as `load`'s.

    `response` names the field to learn: "chosen" takes the preferred half of a file of
    preferences, "completion" reads another common form.
    """
    fields = ("prompt", response)
    rows = jsonl.numbered(path, fields)
    report, kept = Report(len(rows)), []
    encoded = _encode(rows, fields, tokenizer)
    for (line, _), (prompt, answer) in zip(rows, encoded, strict=True):
        reason = packing.fault(prompt, (answer,), length)
        if reason:
            report.drop(reason, line)
        else:
            kept.append((prompt, answer))
    report.kept = len(kept)
    packing.require_sound(report, str(path), drop=drop)
    prompts, answers = zip(*kept, strict=True)
    return packing.sequences(prompts, answers, length, tokenizer.pad), report


def _encode(
    rows: list[tuple[int, dict[str, str]]],
    fields: tuple[str, ...],
    tokenizer: Tokenizer,
) -> list[tuple[list[int], ...]]:
    """Per row the prompt's tokens, then each response's with its end."""
    columns = [tokenizer.encode_all([row[name] for _, row in rows]) for name in fields]
    ended = [[*tokens, tokenizer.end] for column in columns[1:] for tokens in column]
    count = len(rows)
    return [
        (columns[0][i], *(ended[k * count + i] for k in range(len(fields) - 1)))
        for i in range(count)
    ]
