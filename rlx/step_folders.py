"""Numbered folders on a disk: written aside, flushed, renamed into place, verified.

What `rlx.checkpoint` keeps its steps in. A folder named `7` is always a whole step 7:
it was built as `.tmp-7`, and it leaves by way of `.trash-7`. While a new step 7
replaces an old one, the old one is `.old-7`, and counts until the new one is there.
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from pathlib import Path

TEMPORARY, REPLACED, TRASH = ".tmp-", ".old-", ".trash-"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says what to do."""


def find(root: Path) -> dict[int, Path]:
    """Return step -> folder; a step whose replacement was interrupted still counts."""
    found: dict[int, Path] = {}
    for entry in sorted(root.iterdir()) if root.is_dir() else ():
        match = re.fullmatch(rf"(?:{re.escape(REPLACED)})?(\d+)", entry.name)
        if match and entry.is_dir():
            found[int(match[1])] = entry  # "7" sorts after ".old-7" and wins
    return found


def commit(temporary: Path, final: Path) -> None:
    """Rename the finished folder into place; the name never means half a step."""
    replaced = final.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    flush(final.parent)
    if replaced.exists():
        delete(replaced)


def prune(root: Path, keep: int) -> None:
    """Delete all but the `keep` latest steps."""
    for _, folder in sorted(find(root).items())[:-keep]:
        delete(folder)


def delete(folder: Path) -> None:
    """Delete a step. Renamed first: a deletion cut short must not look like a step."""
    trash = folder.with_name(f"{TRASH}{folder.name}")
    shutil.rmtree(trash, ignore_errors=True)
    folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def clear_leftovers(root: Path) -> None:
    """Remove what a killed process left half-written or half-deleted."""
    for entry in root.iterdir():
        whole = root / entry.name.removeprefix(REPLACED)
        stale = entry.name.startswith(REPLACED) and whole.exists()
        if stale or entry.name.startswith((TEMPORARY, TRASH)):
            shutil.rmtree(entry, ignore_errors=True)


def inventory(folder: Path) -> dict[str, list[int]]:
    """Return size in bytes and CRC-32 of every file below `folder`."""
    return {
        file.relative_to(folder).as_posix(): [file.stat().st_size, checksum(file)]
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def damage(folder: Path, expected: dict[str, list[int]]) -> str:
    """Return what differs from an `inventory` made before, or ''."""
    for name, (size, crc) in expected.items():
        file = folder / name
        if not file.is_file():
            return f"is damaged: {name} is missing"
        if file.stat().st_size != size:
            return f"is damaged: {name} has {file.stat().st_size} bytes of {size}"
        if checksum(file) != crc:
            return f"is damaged: the content of {name} has changed"
    return ""


def checksum(file: Path) -> int:
    """Return the CRC-32 of a file."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def flush(*paths: Path) -> None:
    """Force files and folders onto the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
