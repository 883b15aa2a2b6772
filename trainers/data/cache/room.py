"""Room in the caches of this machine: the files that were unused for longest make it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def stats(paths: Iterable[Path]) -> dict[Path, os.stat_result]:
    """Size and times of the files that exist; other processes may remove some meanwhile."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            found[path] = path.stat()
    return found


def make_room(
    folder: Path, removable: Iterable[Path], size: int, limit: int, *, disk_share: float = 1.0
) -> None:
    """Remove files until the rest of them and `size` more bytes, at most `limit`, fit.

    Args:
        limit: bytes of the removable files and of `size` together.
        disk_share: of the free disk that `size` may take.

    Raises:
        OSError: ENOSPC; the disk does not have the room. Nothing is removed if removing everything
            would not be enough.
    """
    found = stats(removable)
    total = sum(stat.st_size for stat in found.values())
    needed = size / disk_share
    _require_disk(folder, needed, total)
    for path in sorted(found, key=lambda path: found[path].st_mtime_ns):
        if total + size <= limit and shutil.disk_usage(folder).free >= needed:
            break
        path.unlink(missing_ok=True)
        total -= found[path].st_size
    _require_disk(folder, needed, 0)  # a removed file keeps its room while it is mapped


def _require_disk(folder: Path, size: float, removable: int) -> None:
    free = shutil.disk_usage(folder).free
    if free + removable >= size:
        return
    others = f" and {removable / 1e9:.3g} GB of other files" if removable else ""
    raise OSError(
        errno.ENOSPC,
        f"{size / 1e9:.3g} GB more are needed, and the disk has {free / 1e9:.3g} GB free{others}",
    )
