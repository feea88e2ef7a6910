"""Datasets on a disk: rlx's own HDF5 layout, and the front door to every reader.

The layout is D4RL's, with the successors always there and the two ends kept apart, so
that what reads D4RL reads it too:

    /observations        [N, ...]   float32, or integers as they were
    /actions             [N, ...]   float32, or int32
    /rewards             [N]        float32
    /terminals           [N]        bool, the task ended at this step
    /timeouts            [N]        bool, the episode was cut after this step
    /next_observations   [N, ...]   the true successor, before any reset

Rows are in the order of time, episode after episode; an episode ends at each terminal
and each timeout, and the last row is one of them. A step is never both. Attributes of
the file, absent where unknown:

    format = "rlx-dataset"   format_version = 1
    env  kind  how           text: environment, sort of data, how they were collected
    random_return  expert_return              normalised score 0 and 100
    time_limit  action_minimum  action_maximum
    last_steps_dropped  terminal_successors_known      see `Metadata`
    env_options  versions  notes  details     JSON

Each chunk has a Fletcher-32 checksum: a damaged file says so when it is read.
h5py is imported here alone, and only when a file is opened: `pip install 'rlx[data]'`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlx import files
from rlx.data import dataset_checks, dataset_readers
from rlx.data.dataset_readers import require_array
from rlx.data.dataset_record import (
    Dataset,
    DatasetError,
    Metadata,
    from_arrays,
    to_arrays,
)
from rlx.json_values import from_json, to_json
from rlx.types import EnvSpec

FORMAT, FORMAT_VERSION = "rlx-dataset", 1
_JSON = ("env_options", "versions", "notes", "details")
_CHUNK_BYTES = 1 << 20
_MINARI_FILE = "main_data.hdf5"


def save(dataset: Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a dataset; on return it is on the disk, whole. `extras` are not written.

    Raises:
      DatasetError: something is there already, the disk is full or refuses, the dataset
        is not sound, or h5py is missing; nothing is left behind.
    """
    path, h5py = Path(path), require_library()
    require_free(path)
    dataset_checks.require(dataset, str(path))
    # Made in memory: HDF5 does not survive a disk that fills up under it.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, array in to_arrays(dataset).items():
            rows = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
            chunks = (min(rows, len(array)), *array.shape[1:])
            file.create_dataset(name, data=array, chunks=chunks, fletcher32=True)
        file.attrs.update(_attributes(dataset.metadata))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, content.getvalue())
    except (OSError, files.RunFolderError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        raise DatasetError(
            f"{path}: {len(content.getvalue()) / 2**20:.0f} MiB cannot be written: "
            f"{getattr(cause, 'strerror', None) or cause}; free space, or give another "
            "folder"
        ) from error
    return path


def require_free(path: str | os.PathLike[str]) -> None:
    """Check that a dataset may be written, before any work is done for it.

    Raises:
      DatasetError: something is there already.
    """
    if Path(path).exists():
        raise DatasetError(f"{path}: is there already: delete it, or give another name")


def require_library() -> Any:
    """Return h5py.

    Raises:
      DatasetError: it is not installed; says how to.
    """
    try:
        import h5py
    except ImportError as error:
        raise DatasetError(
            "HDF5 datasets need h5py: pip install 'rlx[data]'"
        ) from error
    return h5py


def load(
    path: str | os.PathLike[str],
    *,
    spec: EnvSpec | None = None,
    time_limit: int | None = None,
    observation_keys: Sequence[str] | None = None,
    check: bool = True,
) -> Dataset:
    """Read a dataset of rlx, D4RL (HDF5), Minari (folder or HDF5) or OGBench (npz).

    Args:
      path: a local file, or the folder of a Minari dataset.
      spec: the environment the data are wanted for: sizes, bounds and name must fit.
      time_limit: for D4RL files without `timeouts`, see `read_d4rl`; elsewhere it only
        says what the file does not.
      observation_keys: for Minari's dictionary observations.
      check: refuse data with errors, see `dataset_checks.report`.

    Raises:
      DatasetError: missing, damaged, of no known layout, or refused by the checks.
    """
    dataset = _read(_find(Path(path)), time_limit, observation_keys)
    if time_limit is not None and dataset.metadata.time_limit is None:
        dataset = dataset.with_metadata(time_limit=time_limit)
    if check:
        dataset_checks.require(dataset, str(path), spec)
    return dataset


def _find(path: Path) -> Path:
    if path.is_dir():
        for inner in (path / "data" / _MINARI_FILE, path / _MINARI_FILE):
            if inner.is_file():
                return inner
        raise DatasetError(
            f"{path}: is a folder, but not of a Minari dataset in HDF5 (no data/"
            f"{_MINARI_FILE}): give a file"
        )
    if not path.is_file():
        near = sorted(
            entry.name
            for entry in (path.parent.iterdir() if path.parent.is_dir() else ())
            if entry.suffix in (".h5", ".hdf5", ".npz")
        )
        there = f"; {path.parent} has {', '.join(near[:5])}" if near else ""
        raise DatasetError(f"{path}: no such dataset{there}")
    return path


def _read(path: Path, time_limit: int | None, keys: Sequence[str] | None) -> Dataset:
    if path.suffix == ".npz":
        return dataset_readers.read_ogbench(path)
    h5py = require_library()
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read as HDF5 ({' '.join(str(error).split())}): is it "
            "whole? copy it again, or collect it anew"
        ) from error
    with file:
        if file.attrs.get("format") == FORMAT:
            return _read_own(file, str(path))
        if any(dataset_readers.episode_groups(file)):
            return dataset_readers.read_minari(file, path, keys)
        if "observations" in file or "actions" in file:
            return dataset_readers.read_d4rl(file, str(path), time_limit)
        there = ", ".join(sorted(file)[:12]) or "nothing"
        raise DatasetError(
            f"{path}: is no dataset of rlx, D4RL or Minari: it holds {there}"
        )


def _read_own(file: Any, where: str) -> Dataset:
    attributes = dict(file.attrs)
    if attributes.get("format_version") != FORMAT_VERSION:
        raise DatasetError(
            f"{where}: is of format {attributes.get('format_version')}, this rlx reads "
            f"{FORMAT_VERSION}: use the rlx that wrote it"
        )
    names = (
        *("observations", "actions", "rewards"),
        *("terminals", "timeouts", "next_observations"),
    )
    arrays = {name: require_array(file, name, where) for name in names}
    return from_arrays(arrays, _metadata(attributes, where), where)


def _attributes(metadata: Metadata) -> dict[str, Any]:
    found: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    for field in dataclasses.fields(metadata):
        value = getattr(metadata, field.name)
        if field.name in _JSON:
            found[field.name] = json.dumps(to_json(value))
        elif value is not None:
            found[field.name] = value
    return found


def _metadata(attributes: dict[str, Any], where: str) -> Metadata:
    found: dict[str, Any] = {}
    try:
        for field in dataclasses.fields(Metadata):
            if field.name not in attributes:
                continue
            value = attributes[field.name]
            if field.name in _JSON:
                value = from_json(json.loads(value))
                value = tuple(value) if field.name == "notes" else value
            elif isinstance(value, np.ndarray):
                value = tuple(value.tolist())
            found[field.name] = value.item() if hasattr(value, "item") else value
    except (ValueError, TypeError) as error:
        raise DatasetError(
            f"{where}: the attribute {field.name} is damaged ({error}): collect anew"
        ) from error
    return Metadata(**found)
