"""What `train.fit` writes and reads back: rows and checkpoints in a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax

from rlx import checkpoint, record, sharding
from rlx.json_values import differences
from rlx.program import Progress
from rlx.types import PyTree

Row: TypeAlias = Mapping[str, Any]


class Journal:
    """The run folder of a fit, or memory alone when no folder is wanted.

    Where several processes train together, the first writes the rows, and all of them
    write checkpoints; each of them calls every method.
    """

    def __init__(
        self,
        path: str | Path | None,
        resume: bool,
        labels: list[dict[str, float]],
        keep: int = 3,
    ) -> None:
        """Looks at the folder, so that a bad one is refused before anything compiles.

        Args:
          path: the run folder; None for none.
          resume: go on in it if there is something in it.
          labels: `[N]` seed and hyper-parameters of each run.
          keep: checkpoints to keep.

        Raises:
          RunFolderError: it holds something and `resume` is off, or it holds other
            runs than these.
        """
        self.path = Path(path) if path is not None else None
        self.labels = labels
        self.rows: list[Row] = []
        self.step: int | None = None
        """Of the checkpoint that `restore` found."""
        self._keep = keep
        self._folder: record.RunFolder | None = None
        self._going_on = False
        if self.path is not None:
            self._going_on = resume and bool(sharding.agree(_occupied(self.path)))
            with sharding.together(record.RunFolderError):
                if self._going_on:
                    _require_same(record.RunFolder.open(self.path), labels)
                else:
                    record.require_free(self.path)

    def begin(self, config: Mapping[str, Any]) -> None:
        """Makes the folder, or opens the one that is there, and locks it.

        Args:
          config: what a new folder's `config.json` will say.

        Raises:
          RunFolderError: another process writes it, or the disk refuses.
        """
        if self.path is None:
            return
        with sharding.together(record.RunFolderError):
            if jax.process_index() == 0:
                if self._going_on:
                    self._folder = record.RunFolder.open(self.path, write=True)
                else:
                    content = {**config, "runs": self.labels}
                    self._folder = record.RunFolder.create(self.path, content)
        if jax.process_index() > 0:
            self._folder = record.RunFolder.open(self.path)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._folder is not None:
            self._folder.close()

    @property
    def checkpoints(self) -> Path | None:
        """Where checkpoints lie; None when no folder is wanted."""
        return None if self.path is None else self.path / "checkpoints"

    def restore(self, like: PyTree) -> Progress | None:
        """The last checkpoint of a resumed folder, and the rows up to it.

        Raises:
          CheckpointError: it is damaged, or of another method, environment or size.
        """
        if self._folder is None or self.checkpoints is None or not self._going_on:
            return None
        self.step = checkpoint.latest(self.checkpoints)
        progress = None
        if self.step is not None:
            kept = sharding.unpadded_like(like, len(self.labels))
            with sharding.together(checkpoint.CheckpointError):
                loaded = checkpoint.load(self.checkpoints, kept, self.step)
            progress = sharding.repad(loaded, like)
        last = -1 if self.step is None else self.step
        with sharding.together(record.RunFolderError):
            self.rows = [row for row in self._folder.rows() if row["step"] <= last]
        with sharding.together(record.RunFolderError):
            if jax.process_index() == 0:
                self._folder.keep_rows_up_to(last)
        return progress

    def append(self, row: Row) -> None:
        """Records one row."""
        with sharding.together(record.RunFolderError):
            if self._folder is not None and jax.process_index() == 0:
                self._folder.append(row)
        self.rows.append(row)

    def save(self, step: int, progress: Progress) -> None:
        """Writes a checkpoint."""
        if self.checkpoints is not None:
            real = sharding.unpad(progress, len(self.labels))
            checkpoint.save(self.checkpoints, step, real, keep=self._keep)


def _occupied(path: Path) -> bool:
    try:
        record.require_free(path)
    except record.RunFolderError:
        return True
    return False


def _require_same(folder: record.RunFolder, labels: list[dict[str, float]]) -> None:
    saved = _columns(folder.config().get("runs", []))
    given = _columns(labels)
    given |= {name: "absent" for name in saved if name not in given}
    changed = differences(saved, given)
    if changed:
        raise record.RunFolderError(
            f"{folder.path}: is of other runs: {'; '.join(changed)}: resume with its "
            "own seeds and hyper-parameters, or train in another folder"
        )


def _columns(labels: list[dict[str, float]]) -> dict[str, Any]:
    """`{"seed": [0, 1]}` from `[{"seed": 0}, {"seed": 1}]`."""
    names = labels[0] if labels else ()
    return {name: [label.get(name) for label in labels] for name in names}
