"""The run folder: everything about a run that a person or a program may want later.

    runs/<name>/
      config.json     all resolved values, versions, devices, precision, command line
      metrics.jsonl   one JSON object per evaluation, with `step`; `[seed]` lists
      checkpoints/    see `rlx.checkpoint`
      curve.png       see `rlx.plot`

JSON has no NaN and no infinity: both are written as the strings "NaN", "Infinity" and
"-Infinity", and are floats again when read. One process at a time writes a folder; its
lock is the kernel's, so that a killed process leaves none behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import difflib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rlx import system
from rlx.files import LOCK, Lock, append_line, explained, replace
from rlx.files import RunFolderError as RunFolderError
from rlx.json_values import from_json, to_json

FORMAT = 1
"""Version of the layout above; a folder of another version is refused."""

_CONFIG, _METRICS = "config.json", "metrics.jsonl"
_log = logging.getLogger("rlx")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """An existing run folder: made by `create`, found by `open`."""

    path: Path
    lock: Lock | None = None
    """Held while this process may write."""

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], config: Mapping[str, Any]
    ) -> RunFolder:
        """Make the folder of a new run and lock it.

        Args:
          path: a folder that is missing or empty.
          config: every resolved value of the run: dataclasses, arrays, functions (kept
            by name) and JSON values. What `system.describe` says is added.

        Raises:
          RunFolderError: something is there already, or the disk refuses.
        """
        path = Path(path)
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
        lock = Lock(path)
        try:
            require_free(path)
        except RunFolderError:
            lock.release()
            raise
        content = {
            "format": FORMAT,
            "created": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
            **to_json(config),
            "environment": to_json(system.describe()),
        }
        replace(path / _CONFIG, json.dumps(content, indent=2).encode() + b"\n")
        return cls(path, lock)

    @classmethod
    def open(cls, path: str | os.PathLike[str], write: bool = False) -> RunFolder:
        """Open a run folder, to read it or (`write`, locked) to go on with the run.

        Raises:
          RunFolderError: missing, no run folder, of another format, or locked.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunFolderError(f"{path}: no such run folder{_neighbours(path)}")
        if not (path / _CONFIG).is_file():
            raise RunFolderError(
                f"{path}: is not a run folder, it has no {_CONFIG}{_inside(path)}"
            )
        folder = cls(path)
        folder.config()
        return cls(path, Lock(path)) if write else folder

    @property
    def checkpoints(self) -> Path:
        """Where `rlx.checkpoint` keeps the steps."""
        return self.path / "checkpoints"

    @property
    def curve(self) -> Path:
        """The learning curve."""
        return self.path / "curve.png"

    def config(self) -> dict[str, Any]:
        """Return what `create` wrote.

        Raises:
          RunFolderError: unreadable, or of another format.
        """
        try:
            content = from_json(json.loads((self.path / _CONFIG).read_text()))
            version = content["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{self.path}: {_CONFIG} is damaged ({error}): restore it from a copy, "
                "or train in another folder"
            ) from error
        if version != FORMAT:
            raise RunFolderError(
                f"{self.path}: is a run folder of format {version}, this rlx reads "
                f"{FORMAT}: use the rlx that wrote it"
            )
        return content

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to the metrics; on return it is on the disk, whole.

        Args:
          row: `step` (an integer), and numbers or arrays; times and memory under names
            that say so and give the unit (`time_s`, `memory_mib`).

        Raises:
          RunFolderError: no `step`, or the disk is full; the file stays as it was.
        """
        try:
            step = int(row["step"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunFolderError(f"a row needs an integer `step`: {error!r}") from error
        line = json.dumps({"step": step, **to_json(row)}).encode() + b"\n"
        append_line(self.path / _METRICS, line)

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows; a last line that a crash cut off is dropped with a notice.

        Raises:
          RunFolderError: another line is no JSON object.
        """
        file = self.path / _METRICS
        if not file.exists():
            return []
        *lines, rest = file.read_bytes().split(b"\n")
        if rest:
            _log.warning("%s: dropped a last line that was cut off", file)
        found = []
        for number, line in enumerate(lines, 1):
            try:
                row = from_json(json.loads(line))
                row["step"]
            except (ValueError, KeyError, TypeError) as error:
                raise RunFolderError(
                    f"{file}: line {number} is damaged: remove it to go on"
                ) from error
            found.append(row)
        return found

    def keep_rows_up_to(self, step: int) -> None:
        """Remove the rows after `step`: a run resumed there will write them again."""
        rows = self.rows()
        kept = [row for row in rows if row["step"] <= step]
        if (self.path / _METRICS).exists():
            text = "".join(json.dumps(to_json(row)) + "\n" for row in kept)
            replace(self.path / _METRICS, text.encode())

    def close(self) -> None:
        """Let other processes write."""
        if self.lock is not None:
            self.lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_free(path: str | os.PathLike[str]) -> None:
    """Check that a new run may use a folder, before any work is done for it.

    Raises:
      RunFolderError: something is there already.
    """
    path = Path(path)
    if path.is_dir() and [entry for entry in path.iterdir() if entry.name != LOCK]:
        raise RunFolderError(
            f"{path}: is not empty: if it holds this run, go on with it (--resume; in "
            "Python, resume=True), else give another folder (--out; save_to)"
        )


def _neighbours(path: Path) -> str:
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    runs = sorted(entry.name for entry in there if (entry / _CONFIG).is_file())
    near = difflib.get_close_matches(path.name, runs, 3) or runs[:3]
    return f"; {path.parent} has {', '.join(near)}" if near else ""


def _inside(path: Path) -> str:
    """Where a folder of runs was named in place of a run: the runs in it."""
    runs = sorted(entry.name for entry in path.iterdir() if (entry / _CONFIG).is_file())
    return f"; give one of the runs in it: {', '.join(runs[:3])}" if runs else ""


# ------------------------------------------------------------------------------ writers

Writer: TypeAlias = Callable[[Mapping[str, Any]], None]
"""Takes a row of the metrics, as `RunFolder.append` does."""


class Writers:
    """Several writers as one; `close` flushes those that hold files or connections."""

    def __init__(self, targets: Sequence[Writer]) -> None:
        self.targets = list(targets)

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Give a row to every writer."""
        for target in self.targets:
            target(row)

    def close(self) -> None:
        """Close every writer that can be closed."""
        for target in self.targets:
            getattr(target, "close", lambda: None)()

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def writers(
    names: Sequence[str | Writer],
    path: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
) -> Writers:
    """Return the writers named: "tensorboard", "wandb", or any function of a row.

    Args:
      names: what to write to; libraries are imported only when named.
      path: the run folder; its name is the run's name, its files go below it.
      config: what wandb shows as the run's configuration.

    Raises:
      RunFolderError: an unknown name, or a library that is not installed.
    """
    makers: dict[str, Callable[..., Writer]] = {
        "tensorboard": _TensorBoard,
        "wandb": _Wandb,
    }
    targets: list[Writer] = []
    for name in names:
        if not isinstance(name, str):
            targets.append(name)
        elif name in makers:
            targets.append(makers[name](Path(path), to_json(config or {})))
        else:
            raise RunFolderError(
                f"unknown writer {name!r}: use {' or '.join(map(repr, makers))}, or a "
                "function of a row"
            )
    return Writers(targets)


class _TensorBoard:
    """Scalars as they are, per-seed values as their mean and each seed's own."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        del config
        with _installed("tensorboard"):
            from tensorboardX import SummaryWriter
        self.writer = SummaryWriter(logdir=str(path / "tensorboard"))

    def __call__(self, row: Mapping[str, Any]) -> None:
        for name, value in _scalars(row).items():
            self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """One wandb run; the same folder resumes the same run."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        with _installed("wandb"):
            import wandb
        self.run = wandb.init(
            project="rlx",
            name=path.name,
            dir=str(path),
            config=dict(config),
            resume="allow",
            id=f"{path.name}-{zlib.crc32(str(path.absolute()).encode()):08x}",
        )

    def __call__(self, row: Mapping[str, Any]) -> None:
        self.run.log(_scalars(row), step=row["step"])

    def close(self) -> None:
        self.run.finish()


@contextlib.contextmanager
def _installed(extra: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise RunFolderError(
            f"the writer {extra!r} needs a library: pip install 'rlx[{extra}]'"
        ) from error


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Flatten a row: `return` of `[seed]` becomes `return`, `return/0`, `return/1`."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            inner = _scalars(value).items()
            found.update({f"{name}/{key}": scalar for key, scalar in inner})
            continue
        try:
            array = np.asarray(value, float)
        except (TypeError, ValueError):
            continue  # text is for the metrics file
        if name == "step" or array.size == 0:
            continue
        found[name] = float(array.mean())
        if array.ndim:
            flat = array.reshape(-1).tolist()
            found.update({f"{name}/{index}": x for index, x in enumerate(flat)})
    return found
