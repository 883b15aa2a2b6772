"""Room in a folder of cached files, whose limit all processes of a machine share."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

import filelock


def room_lock(folder: Path) -> filelock.FileLock:
    """The lock that is held while files of the folder appear, grow or are removed."""
    return filelock.FileLock(folder / "lock")


def stats(paths: Iterable[Path]) -> dict[Path, os.stat_result]:
    """Size and times of the files that exist; other processes may remove some meanwhile."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            found[path] = path.stat()
    return found


def make_room(
    folder: Path, pattern: str, size: int, *, limit: int, free: int, keep: Collection[Path] = ()
) -> None:
    """Remove the files unused for longest until `size` bytes more fit; `room_lock` must be held.

    Nothing is removed if removing everything would not be enough. Processes that have a removed
    file open or mapped keep it, and it keeps its room on the disk until then.

    Args:
        pattern: of the files in the folder that count.
        limit: bytes of all these files together.
        free: bytes that the disk must have free.
        keep: files that are not removed.

    Raises:
        OSError: ENOSPC; the limit or the disk does not have the room.
    """

    def disk() -> int:
        return shutil.disk_usage(folder).free

    found = stats(folder.glob(pattern))
    unused = sorted(found.keys() - set(keep), key=lambda path: found[path].st_mtime_ns)
    removable = sum(found[path].st_size for path in unused)
    total = size + sum(stat.st_size for stat in found.values())
    if total - removable > limit:
        problem = f"{size / 1e9:.3g} GB more do not fit into the limit of {limit / 1e9:.3g} GB"
        raise OSError(errno.ENOSPC, problem)
    if disk() + removable >= free:
        for path in unused:
            if total <= limit and disk() >= free:
                break
            path.unlink(missing_ok=True)
            total -= found[path].st_size
            removable -= found[path].st_size
    if disk() < free:
        others = f" and {removable / 1e9:.3g} GB of other files" if removable else ""
        raise OSError(
            errno.ENOSPC,
            f"{free / 1e9:.3g} GB are needed, and the disk has {disk() / 1e9:.3g} GB free{others}",
        )
