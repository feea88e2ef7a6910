"""Small files that a crash never leaves half-written, and the lock of a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"
_log = logging.getLogger("rlx")


class RunFolderError(RuntimeError):
    """A run folder cannot be made, opened or written; the message says what to do."""


class Lock:
    """The right to write a folder, held until released or until the process ends."""

    def __init__(self, folder: Path) -> None:
        self.handle: int | None = None
        with explained(folder):
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
            os.close(handle)
            raise RunFolderError(
                f"{folder}: process {owner or '?'} is writing it: wait for it, end it, "
                "or give another folder (--out; in Python, save_to)"
            ) from error
        self.handle = handle
        with explained(folder):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the right back."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None

    def __del__(self) -> None:
        self.release()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError into a RunFolderError that names the path."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = (error.strerror or str(error)).lower()
        advice = ": free some, then resume" if full else ""
        raise RunFolderError(f"{path}: {reason}{advice}") from error


def replace(file: Path, content: bytes) -> None:
    """Write a file such that it always has the old content or the new, whole."""
    temporary = file.with_name(f".{file.name}.tmp")
    with explained(file):
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def append_line(file: Path, line: bytes) -> None:
    """Add a line such that, on return, it is on the disk; else nothing has changed."""
    with explained(file):
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = cut_half_line(handle, file)
            try:
                if os.write(handle, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)


def cut_half_line(handle: int, file: Path) -> int:
    """Cut off a half-written last line of an open file; return the size left."""
    size = os.fstat(handle).st_size
    if size == 0 or os.pread(handle, 1, size - 1) == b"\n":
        return size
    whole = os.pread(handle, size, 0).rfind(b"\n") + 1
    os.ftruncate(handle, whole)
    _log.warning("%s: dropped a last line that was cut off", file)
    return whole
