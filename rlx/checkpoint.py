"""Checkpoints: the whole state of a run, saved atomically, restored to the bit.

This module is the only door to Orbax. One step is one folder:

    <directory>/<step>/state/          the arrays, as Orbax v1 writes them
    <directory>/<step>/manifest.json   name, shape and dtype of every leaf, and size
                                       and CRC-32 of every file

A save is written under a temporary name, flushed to the disk, and renamed; only then
do older steps go. A crash, a kill or a full disk in the middle therefore leaves every
step that was there before. A load checks the manifest first, so that a state of other
shapes or a damaged file is named before a single array is read.

Where several processes (`jax.distributed`) hold one sharded state, all of them call
`save` and `load`; they must see the same file system. What one of them cannot do fails
on all, so that none waits for another that has given up (where a process fails while
Orbax writes, the others notice when its barrier gives up, after five minutes).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import operator
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlx import leaves, sharding, step_folders
from rlx.step_folders import CheckpointError as CheckpointError
from rlx.types import PyTree

FORMAT = 1
"""Version of the layout above; a checkpoint of another version is refused."""

_MANIFEST = "manifest.json"
_STATE = "state"


# --------------------------------------------------------------------- public functions


def save(
    directory: str | os.PathLike[str],
    step: int,
    state: PyTree,
    keep: int = 3,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Save `state` as `step`; return when it is safely on the disk.

    Saving a step that exists replaces it. Of the steps in `directory` the `keep` latest
    stay, the new one among them.

    Args:
      directory: where the steps are; made if missing.
      step: non-negative; no later step may exist (see `keep_steps_up_to`).
      state: arrays, typed PRNG keys and Python numbers in any pytree.
      keep: how many steps stay, at least 1.
      metadata: JSON values kept beside the state, read back by `read_metadata`.

    Returns:
      The folder of the step.

    Raises:
      CheckpointError: disk full, no permission, a later step exists, a leaf that is
        no array; what was there before is still there.
    """
    root, step = Path(directory), operator.index(step)
    if step < 0 or keep < 1:
        raise CheckpointError(f"save needs step >= 0 and keep >= 1, got {step}, {keep}")
    named = leaves.named(state)
    temporary, final = root / f"{step_folders.TEMPORARY}{step}", root / str(step)
    first = jax.process_index() == 0
    try:
        with _together(root, step):
            if first:
                _require_last(root, step)
                root.mkdir(parents=True, exist_ok=True)
                step_folders.clear_leftovers(root)
                _require_space(root, step, named)
                temporary.mkdir()
        with _together(root, step):
            _write_arrays(temporary / _STATE, named)
        with _together(root, step):
            if first:
                _write_manifest(temporary, step, named, metadata or {})
                step_folders.commit(temporary, final)
                step_folders.prune(root, keep)
    finally:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def load(
    directory: str | os.PathLike[str],
    like: PyTree,
    step: int | None = None,
    part: str = "",
) -> PyTree:
    """Return the state saved as `step`, every leaf equal to the bit.

    Args:
      directory: where the steps are.
      like: a state of the same structure: arrays, or `jax.eval_shape` of what makes
        them. A leaf that carries a committed sharding comes back with it; any other
        lies on the default device, uncommitted, as fresh arrays do (so that a program
        compiled before still fits). NumPy leaves and Python numbers come back as such.
      step: None for the latest.
      part: the path of the subtree that `like` is, such as ".learner.params"; the rest
        is not read. The whole state unless given.

    Returns:
      A pytree of the structure of `like`. Arrays are strongly typed.

    Raises:
      CheckpointError: nothing there, other shapes, damaged files, another format.
    """
    root = Path(directory)
    step = _existing_step(root, step)
    manifest, targets = _sound_manifest(root, step), leaves.named(like)
    saved = leaves.below(part, manifest["leaves"])
    misfit = leaves.misfit(saved, targets)
    if misfit:
        raise CheckpointError(
            f"{root}: step {step} is of another run: {misfit}; use the method, "
            "configuration, environment and seeds it was saved with"
        )
    try:
        arrays = _read_arrays(step_folders.find(root)[step] / _STATE, saved, targets)
    except Exception as error:
        reason = _one_line(error)
        raise CheckpointError(
            f"{root}: step {step} cannot be read ({reason}); {_advice(root, step)}"
        ) from error
    restored = [
        leaves.place(arrays.get(saved[name]["key"]), saved[name], target)
        for name, target in targets.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), restored)


def steps(directory: str | os.PathLike[str]) -> list[int]:
    """Return the completely saved steps, ascending; none if there is no directory."""
    return sorted(step_folders.find(Path(directory)))


def latest(directory: str | os.PathLike[str]) -> int | None:
    """Return the last completely saved step, or None."""
    return max(step_folders.find(Path(directory)), default=None)


def intact_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Return the steps whose files still have the size and checksum they were given."""
    root, intact = Path(directory), []
    for step, folder in sorted(step_folders.find(root).items()):
        with contextlib.suppress(CheckpointError):
            manifest = _read_manifest(root, step)
            if manifest and not step_folders.damage(folder, manifest["files"]):
                intact.append(step)
    return intact


def keep_steps_up_to(directory: str | os.PathLike[str], step: int) -> None:
    """Delete the steps after `step`, so that a run can go on from `step`."""
    for later, folder in step_folders.find(Path(directory)).items():
        if later > step:
            step_folders.delete(folder)


def read_metadata(
    directory: str | os.PathLike[str], step: int | None = None
) -> dict[str, Any]:
    """Return the `metadata` that `save` was given; `step=None` is the latest."""
    root = Path(directory)
    return _sound_manifest(root, _existing_step(root, step))["metadata"]


# ------------------------------------------------------------------------ Orbax, arrays


def _context() -> Any:
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    # Directories made in the background leave threads that wait for minutes after a
    # failed save; made first, a failure is final at once.
    context.async_options.create_directories_asynchronously = False
    return context


def _write_arrays(path: Path, named: dict[str, Any]) -> None:
    """Write the leaves that hold anything; Orbax refuses empty arrays."""
    from orbax.checkpoint import v1 as ocp

    arrays = {str(i): leaves.to_host(leaf) for i, leaf in enumerate(named.values())}
    arrays = {key: array for key, array in arrays.items() if np.size(array)}
    if arrays:
        with _context(), _quiet():
            ocp.save(path.absolute(), arrays)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax from logging tracebacks of errors that it raises as well."""
    log = logging.getLogger("absl")
    refuse = log.filters[:] + [lambda record: False]
    log.filters, kept = refuse, log.filters
    try:
        yield
    finally:
        log.filters = kept


def _read_arrays(path: Path, saved: dict, targets: dict) -> dict[str, Any]:
    """Read host arrays, and global arrays where a target spans several processes."""
    from orbax.checkpoint import v1 as ocp

    abstract: dict[str, Any] = {}
    for name, target in targets.items():
        entry, shape = saved[name], tuple(saved[name]["shape"])
        if 0 not in shape:
            dtype = np.uint32 if entry["prng"] else leaves.dtype(target)
            placed = getattr(target, "sharding", None)
            if placed is None or placed.is_fully_addressable:
                abstract[entry["key"]] = np.empty(shape, dtype)
            else:
                struct = jax.ShapeDtypeStruct(shape, dtype, sharding=placed)
                abstract[entry["key"]] = struct
    if not abstract:
        return {}
    context = _context()
    context.pytree_options.loading.partial_load = True  # a part may be all one wants
    with context:
        return ocp.load(path.absolute(), abstract)


# ------------------------------------------------------------- manifests and messages


def _existing_step(root: Path, step: int | None) -> int:
    there = steps(root)
    if not root.is_dir():
        raise CheckpointError(
            f"{root}: no such directory; give the path of a saved run"
        )
    if not there:
        raise CheckpointError(f"{root}: holds no checkpoint; train first")
    if step is not None and step not in there:
        raise CheckpointError(f"{root}: no step {step}; there are {there}")
    return there[-1] if step is None else int(step)


def _write_manifest(folder: Path, step: int, named: dict, metadata: dict) -> None:
    manifest = {
        "format": FORMAT,
        "step": step,
        "jax": jax.__version__,
        "metadata": metadata,
        "leaves": leaves.describe(named),
        "files": step_folders.inventory(folder),
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest) + "\n")
    step_folders.flush(*folder.rglob("*"), folder)


def _read_manifest(root: Path, step: int) -> dict[str, Any] | None:
    """Return the manifest; None where it is missing or cut off.

    Raises:
      CheckpointError: the manifest is whole, but of another format.
    """
    try:
        manifest = json.loads((step_folders.find(root)[step] / _MANIFEST).read_text())
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if version != FORMAT:
        raise CheckpointError(
            f"{root}: step {step} is in checkpoint format {version}, this rlx reads "
            f"{FORMAT}: use the rlx that wrote it"
        )
    return manifest


def _sound_manifest(root: Path, step: int) -> dict[str, Any]:
    manifest = _read_manifest(root, step)
    if manifest is None:
        problem = f"is damaged: no readable {_MANIFEST}"
    else:
        problem = step_folders.damage(step_folders.find(root)[step], manifest["files"])
    if manifest is None or problem:
        raise CheckpointError(f"{root}: step {step} {problem}; {_advice(root, step)}")
    return manifest


def _advice(root: Path, step: int) -> str:
    intact = [other for other in intact_steps(root) if other != step]
    folder = step_folders.find(root)[step]
    if intact:
        return f"the last intact step is {intact[-1]}: delete {folder} to go on from it"
    return f"no other step is intact: delete {folder} and train again"


@contextlib.contextmanager
def _together(root: Path, step: int) -> Iterator[None]:
    """A part of a save: what one process cannot do fails on all, and says why."""
    with sharding.together(CheckpointError):
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(_why_not_saved(root, step, error)) from error


def _require_last(root: Path, step: int) -> None:
    later = [s for s in steps(root) if s > step]
    if later:
        raise CheckpointError(
            f"{root}: step {step} would come before step {later[-1]}, which is there "
            "already: save elsewhere, or call checkpoint.keep_steps_up_to first"
        )


def _require_space(root: Path, step: int, named: dict[str, Any]) -> None:
    """Refuse before Orbax meets a full disk half-way, which it reports badly."""
    arrays = [leaf for leaf in named.values() if hasattr(leaf, "nbytes")]
    needed = sum(leaf.nbytes for leaf in arrays if isinstance(leaf.nbytes, int))
    free = shutil.disk_usage(root).free
    if needed > free:
        reason = f"{needed / 2**20:.1f} MiB are needed, {free / 2**20:.1f} are free"
        raise OSError(errno.ENOSPC, reason)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _why_not_saved(root: Path, step: int, error: Exception) -> str:
    there = steps(root)
    kept = f"; step {there[-1]} is still there" if there else ""
    cause: BaseException | None = error
    while cause is not None:
        code = getattr(cause, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(cause):
            numbers = f" ({cause.args[1]})" if "MiB" in str(cause) else ""
            return (
                f"{root}: no space left on the disk for step {step}{numbers}{kept}: "
                "free some, then resume"
            )
        cause = cause.__cause__ or cause.__context__
    return f"{root}: step {step} cannot be saved ({_one_line(error)}){kept}"
