"""Folders that leave nothing behind for long after a kill: their process holds a lock on them."""

from __future__ import annotations

import fcntl
import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final

import filelock

_UNSAID_WAIT_S: Final = 1.0

logger = logging.getLogger(__name__)


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A new, hidden folder that becomes `target` at the end of the block. An error removes it.

    Raises:
        OSError: it cannot be written, or `target` is a folder that is not empty.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # What is left of this prefix is removed, so no folder of somebody else may have it.
    prefix = f".{target.name}.lipsum-tune-unfinished-"
    with temporary_folder(prefix, target.parent) as unfinished:
        yield unfinished
        unfinished.chmod(0o755)  # mkdtemp makes it for its owner alone
        unfinished.replace(target)


@contextmanager
def temporary_folder(
    prefix: str, parent: Path | None = None, name: str | None = None
) -> Iterator[Path]:
    """A folder that is removed at the end of the block, unless the block has renamed it.

    What killed processes have left of the same prefix and parent is removed first.

    Args:
        parent: by default the folder for temporary files.
        name: follows the prefix, and must be new; by default random letters.
    """
    parent = parent or Path(tempfile.gettempdir())
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError), locked(left):
            shutil.rmtree(left)
    with ExitStack() as stack:
        new = Path(tempfile.mkdtemp(prefix=f".{prefix}", dir=parent))
        with suppress(OSError):  # without locks, as on NFS, no other process removes anything
            stack.enter_context(locked(new))
        named = new.name[1:] if name is None else f"{prefix}{name}"
        folder = new.rename(parent / named)  # now others see it, and it is locked
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def private_lock(path: Path) -> FileIO:
    """Open a lock file that only those can open, and so lock, who may write its folder.

    One that others can open, as earlier versions made it, loses their rights.
    """
    writers = path.parent.stat().st_mode & 0o222
    mode = writers | writers << 1
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode)
    file = os.fdopen(descriptor, "rb+", buffering=0)
    with suppress(PermissionError):  # only its owner can change it
        os.fchmod(descriptor, os.fstat(descriptor).st_mode & mode)
    return file


@contextmanager
def waiting_lock(file: Path, what: str) -> Iterator[None]:
    """Hold a `private_lock`; a wait for it is logged once, as one of `what`, such as `copying
    images`."""
    private_lock(file).close()
    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=_UNSAID_WAIT_S)
    except filelock.Timeout:
        logger.warning("%s waits for another process, which holds %s", what, file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder; a BlockingIOError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
