"""Retries at a source that does not answer, as opposed to a file that cannot be read."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from trainers.data.storage import Store
from trainers.errors import first_line

UNREADABLE = (OSError, ValueError, pa.ArrowException)
"""Errors that reading a file raises if it is missing, forbidden, cut off or corrupt."""

PAUSES_S = (0.5, 2.0, 8.0)
"""Between the attempts at a source that does not answer."""

_FILE_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_DISK_ERRORS = (errno.EIO, errno.EINVAL)  # a bad sector, or a name that the disk does not take

T = TypeVar("T")


class SourceLost(RuntimeError):
    """The source cannot be read at all, so its images cannot be judged."""


class BadFile(OSError):
    """The content of a file is not as expected."""


def with_retries(store: Store, path: str, read: Callable[[], T]) -> T:
    """Call `read`, again after a pause if the source rather than the file is in trouble.

    Raises:
        SourceLost: all attempts failed because of the source.
        OSError: or another error of `UNREADABLE`: this file cannot be read; others may.
    """
    for pause in (*PAUSES_S, None):
        try:
            return read()
        except Exception as error:  # each SDK has its own types of errors
            number = error.errno if isinstance(error, OSError) else None
            if is_file_error(store, error):
                raise
            if pause is None:
                if store.is_local and number in _DISK_ERRORS and _has_files(store):
                    raise  # the disk itself answers
                if number in (errno.EMFILE, errno.ENFILE):
                    reason = f"too many open files on {socket.gethostname()}; raise `ulimit -n`"
                else:
                    reason = f"the source does not answer: {first_line(error)}"
                raise SourceLost(f"{store.url}/{path}: {reason}") from error
        time.sleep(pause)
    raise AssertionError


def is_file_error(store: Store, error: Exception) -> bool:
    """Whether an error concerns one file, so that other files of the source may be readable."""
    if isinstance(error, PermissionError):
        return store.is_local  # a bucket refuses keys that are wrong or have expired
    if not isinstance(error, OSError) or isinstance(error, BadFile | FileNotFoundError):
        return isinstance(error, UNREADABLE)
    if type(error) is OSError and error.errno is None:
        return store.is_local  # Arrow about the content of the file; on a bucket, perhaps an outage
    return error.errno in _FILE_ERRORS


def require_source(store: Store) -> None:
    """Raise SourceLost if a source is missing or empty on this machine, as an unmounted disk is."""
    if not _has_files(store):
        raise SourceLost(
            f"{store.url}: not found on the machine {socket.gethostname()}: is it a disk that "
            "every machine shares?"
        )


def _has_files(store: Store) -> bool:
    try:
        if store.is_local:
            return any(store.local_path().iterdir())
        return bool(store.info().type != fs.FileType.NotFound)
    except OSError:
        return False
