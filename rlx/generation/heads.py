"""Which heads of a model stream, and with which sink and window: a map, on the disk.

Xiao et al. 2024 (DuoAttention), https://arxiv.org/abs/2410.10819: some key-value heads
*retrieve* and need every token; the others see the first tokens and a window and lose
nothing. Which are which is measured once for a model (`rlx.generation.calibration`) and
kept beside its checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rlx import files, json_values
from rlx.networks import transformer

NAME = "head_map.json"
"""Of the file, when a folder is given."""
SINK, WINDOW = 128, 256
"""Tokens that streaming heads see; DuoAttention section 3.1, LServe's decoding."""
_FORMAT = "rlx head map 1"
_ELSEWHERE = ("max_length", "dtype", "lora_rank", "lora_scale")
"""Fields of a config that say nothing about what its heads do."""


@dataclasses.dataclass(frozen=True)
class HeadMap:
    """Retrieval and streaming heads of one model; hashable, a constant of programs.

    Raises:
      ValueError: no rectangle of truth values, or a sink or window out of its range.
    """

    retrieval: tuple[tuple[bool, ...], ...]
    """`[L][K]`, layers and their key-value heads; True: reads pages of all tokens."""
    sink: int = SINK
    """First tokens that a streaming head sees; >= 0."""
    window: int = WINDOW
    """Last tokens that it sees, the query's own included; >= 1."""
    model: str = ""
    """`fingerprint` of the config of the model that was measured."""

    def __post_init__(self) -> None:
        rows = self.retrieval
        if not (
            isinstance(rows, tuple)
            and rows
            and all(isinstance(row, tuple) and row for row in rows)
            and len({len(row) for row in rows}) == 1
            and all(type(head) is bool for row in rows for head in row)
        ):
            raise ValueError(
                "retrieval must be a tuple of layers, each a tuple of as many booleans "
                "as there are key-value heads"
            )
        if self.sink < 0 or self.window < 1:
            raise ValueError(
                f"sink must be >= 0 and window >= 1, got {self.sink} and {self.window}"
            )

    @property
    def streaming_share(self) -> float:
        """Of all key-value heads, those that stream."""
        heads = [head for row in self.retrieval for head in row]
        return 1 - sum(heads) / len(heads)


def fingerprint(config: transformer.Config) -> str:
    """What a map must agree on with a model: all of its shape but its length and type.

    Heads are the same in another precision, with adapters, and with more positions.
    """
    fields = {**vars(config), "num_kv_heads": config.kv_heads}
    fields |= {"head_width": config.head_size, "hidden_width": config.hidden}
    return " ".join(f"{k}={v}" for k, v in fields.items() if k not in _ELSEWHERE)


def check(head_map: HeadMap, config: transformer.Config) -> None:
    """Refuses a map of another model.

    Raises:
      ValueError: it has other layers or heads, or was measured on another config.
    """
    shape = len(head_map.retrieval), len(head_map.retrieval[0])
    wanted = config.num_layers, config.kv_heads
    if shape != wanted:
        raise ValueError(
            f"the head map is of {shape[0]} layers of {shape[1]} key-value heads, the "
            f"model has {wanted[0]} of {wanted[1]}: calibrate this model's own"
        )
    here = fingerprint(config)
    if head_map.model != here:
        theirs, ours = set(head_map.model.split()), here.split()
        apart = ", ".join(word for word in ours if word not in theirs)
        raise ValueError(
            f"the head map was measured on another model (this one has {apart}): "
            "calibrate this model's own"
        )


def all_retrieval(config: transformer.Config) -> HeadMap:
    """Every head reads pages."""
    return _same(config, True, SINK, WINDOW)


def all_streaming(
    config: transformer.Config, sink: int = SINK, window: int = WINDOW
) -> HeadMap:
    """Every head streams (Xiao et al. 2023, https://arxiv.org/abs/2309.17453)."""
    return _same(config, False, sink, window)


def _same(config: transformer.Config, kind: bool, sink: int, window: int) -> HeadMap:
    rows = ((kind,) * config.kv_heads,) * config.num_layers
    return HeadMap(rows, sink, window, fingerprint(config))


# ------------------------------------------------------------------------- on the disk


def save(head_map: HeadMap, path: str | Path) -> Path:
    """Writes a map, whole or not at all.

    Args:
      head_map: what to write.
      path: of the file, or a folder that is there, in which it is called `NAME`.

    Returns:
      The file.

    Raises:
      RunFolderError: it cannot be written.
    """
    file = _file(path)
    content = {"format": _FORMAT, **json_values.to_json(head_map)}
    files.replace(file, (json.dumps(content) + "\n").encode())
    return file


def load(path: str | Path) -> HeadMap:
    """Reads what `save` wrote.

    Raises:
      ValueError: no such file, a part of one, or another kind of file.
    """
    file = _file(path)
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"{file}: {reason}: save a head map there first") from error
    except ValueError as error:
        raise ValueError(f"{file} is no head map, or a part of one: {error}") from error
    return _parsed(file, content)


def _parsed(file: Path, content: Any) -> HeadMap:
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise ValueError(f"{file} is no head map: it does not say {_FORMAT!r}")
    kinds = {"retrieval": list, "sink": int, "window": int, "model": str}
    if set(content) != set(kinds) or not all(
        type(content[name]) is kind for name, kind in kinds.items()
    ):
        raise ValueError(f"{file} is no head map: it must hold {', '.join(kinds)}")
    rows = content.pop("retrieval")
    rows = tuple(tuple(row) if isinstance(row, list) else row for row in rows)
    try:
        return HeadMap(rows, **content)
    except ValueError as error:
        raise ValueError(f"{file} is no head map: {error}") from error


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / NAME if path.is_dir() else path
