"""Whether an image cannot be read, or its source cannot: an outage says nothing about images."""

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
"""What reading raises where a file is gone, closed to us, cut off or not what it was."""

_OF_THE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_MAYBE_OF_THE_FILE = (errno.EIO, errno.EINVAL)
"""On a disk: a sector that cannot be read, or a name that it does not take."""
_OUR_OWN = (errno.EMFILE, errno.ENFILE)
_PAUSES_S = (0.5, 2.0, 8.0)
"""Between the attempts at a source that does not answer."""

T = TypeVar("T")


class SourceLost(RuntimeError):
    """A source that cannot be asked, which says nothing about the images in it."""


class Unusable(OSError):
    """What was read, and is not what it should be."""


def persistently(store: Store, path: str, read: Callable[[], T]) -> T:
    """What `read` returns, tried again where the source rather than the file is in trouble.

    Raises:
        SourceLost: the source did not answer, or we could not ask, time and again.
        OSError: or others of `UNREADABLE`: the file itself cannot be read.
    """
    for pause in (*_PAUSES_S, None):
        try:
            return read()
        except Exception as error:  # an SDK has kinds of its own
            if is_of_the_file(store, path, error):
                raise
            if pause is None:
                if _is_damage(store, error):
                    raise
                raise _lost(store, path, error) from error
        time.sleep(pause)
    raise AssertionError


def _is_damage(store: Store, error: Exception) -> bool:
    """Whether what stays unreadable on a disk is one file's, since the disk itself answers."""
    number = error.errno if isinstance(error, OSError) else None
    if not store.is_local or number not in _MAYBE_OF_THE_FILE:
        return False
    try:
        require_source(store)
    except (SourceLost, OSError):
        return False
    return True


def _lost(store: Store, path: str, error: Exception) -> SourceLost:
    if isinstance(error, OSError) and error.errno in _OUR_OWN:
        return SourceLost(
            f"{store.url}/{path}: not read, for too many files are open on the machine "
            f"{socket.gethostname()}: raise `ulimit -n` there"
        )
    return SourceLost(f"{store.url}/{path}: the source does not answer: {first_line(error)}")


def is_of_the_file(store: Store, path: str, error: Exception) -> bool:
    """Whether other files of the source may well be readable."""
    if isinstance(error, PermissionError):
        return store.is_local  # a bucket refuses keys that are wrong or have expired
    if not isinstance(error, OSError) or isinstance(error, Unusable):
        return isinstance(error, UNREADABLE)
    if error.errno is None and store.is_local:  # so Arrow says that it is no file
        return bool(store.info(path).type == fs.FileType.Directory)
    return isinstance(error, FileNotFoundError) or error.errno in _OF_THE_FILE


def require_source(store: Store) -> None:
    """Check that a source is there, on this machine.

    Raises:
        SourceLost: it is not, or nothing is in it: a disk that is not mounted.
    """
    if not store.exists() or (store.is_local and not any(store.local_path().iterdir())):
        raise SourceLost(
            f"{store.url}: the source is not there on the machine {socket.gethostname()}: "
            "is it a disk that every machine shares?"
        )


def require_bytes(store: Store, path: str, start: int, size: int) -> None:
    """Read some bytes for nothing: raises where it is not their meaning that is wrong."""
    with store.open(path) as file:
        file.seek(start)
        while size > 0 and (piece := file.read(min(size, 4 << 20))):
            size -= len(piece)
