"""Folders that appear whole or not at all, and leave nothing behind for long after a kill."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A new, hidden folder that becomes `target` at the end of the block.

    An error removes it. What a killed process has left of the same target is removed by the next
    one: a living process holds a lock on its folder.

    Raises:
        OSError: it cannot be written, or `target` is a folder that is not empty.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}-"
    for left in target.parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left)
    unfinished = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        with _locked(unfinished):
            yield unfinished
            unfinished.chmod(0o755)  # mkdtemp makes it for its owner alone
            unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder; a BlockingIOError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
