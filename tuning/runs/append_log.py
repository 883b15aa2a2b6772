"""A file of lines to which one process at a time appends: locked, synced, whole after a crash."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path

from trainers.errors import ConfigError, storage_failures, system_words

_TAKEN = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES})
"""What the system says where another process holds the lock; else there are none to be had."""


def open_alone(path: Path, taken: str) -> FileIO:
    """Open a file to append to, unbuffered, which nobody else then can; a torn line is cut off.

    Args:
        path: made where it is missing.
        taken: what to say where another process has it.

    Raises:
        ConfigError: another process has it open, or no locks are kept where it lies.
        StorageFailed: it cannot be opened.
    """
    with storage_failures(path, "cannot be opened"):
        file = path.open("ab+", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise (ConfigError(taken) if error.errno in _TAKEN else _no_locks(path, error)) from None
    cut_torn_line(path)
    return file


def is_open(path: Path) -> bool:
    """Whether a process on a machine that shares locks with this one has it open.

    Raises:
        ConfigError: no locks are kept where it lies, so nobody can tell.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in _TAKEN:
            return True
        raise _no_locks(path, error) from None
    return False


def append_synced(file: FileIO, content: bytes) -> None:
    """Append and wait until it is on disk; all of it, or nothing.

    Raises:
        OSError: it is not there, and the file ends as before, in so far as the system lets it.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        left = memoryview(content)
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), size)  # or the next line would be glued to half a one
        raise


def cut_torn_line(path: Path) -> None:
    """Cut off what a crash left of a line, so that the next one starts on its own."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _no_locks(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path}: it cannot be locked: {system_words(error)}; two processes could spoil it, so its "
        "file system must support locks (Lustre: mount option flock)"
    )
