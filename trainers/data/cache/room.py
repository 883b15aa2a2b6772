"""Room in the cache of images: its limit, shared by all processes of a machine that fill it.

    lock                    held while sizes are added up and files removed, which is short
    lock-<set>              held by the process that converts a set of files
    <file>.<set>.unfinished what it is writing; from the start as large as the file will be, so that
                            the others count it

A conversion whose lock is free was killed, and its files are removed by the next one.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import filelock

ROOM_LOCK = "lock"
_UNFINISHED = ".unfinished"


def set_lock(folder: Path, name: str) -> filelock.FileLock:
    """The lock of the process that converts a set of files."""
    return filelock.FileLock(folder / f"lock-{name}")


def stats(paths: Iterable[Path]) -> dict[Path, os.stat_result]:
    """Size and times of the files that exist; other processes may remove some meanwhile."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            found[path] = path.stat()
    return found


class Room:
    """Bytes that one conversion may write to the cache; its lock must be held.

    Args:
        name: of the set that is converted.
        keep: Arrow files that are not removed.
        limit: bytes of all files of the cache together.
    """

    def __init__(self, folder: Path, name: str, *, keep: Sequence[Path], limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._name, self._keep = name, set(keep)

    def __enter__(self) -> Self:
        """Remove what an earlier conversion of this set left when it was killed."""
        self._remove(self._name)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not finished."""
        self._remove(self._name)

    def unfinished(self, target: Path) -> Path:
        """Where the content of an Arrow file is written until it is whole."""
        return target.with_name(f"{target.stem}.{self._name}{_UNFINISHED}")

    def kept_bytes(self) -> int:
        """Size of the files to keep that exist."""
        return sum(stat.st_size for stat in stats(self._keep).values())

    def take(self, sizes: Mapping[Path, int]) -> bool:
        """Make or enlarge unfinished files; False if the limit does not allow it at present.

        Nothing is removed if removing everything would not be enough.

        Args:
            sizes: bytes that each file will have; it is sparse until it is written.

        Raises:
            OSError: ENOSPC; the disk does not have the room.
        """
        with filelock.FileLock(self.folder / ROOM_LOCK):
            written = stats(self.folder.glob(f"*{_UNFINISHED}"))
            for name in {path.name.split(".")[-2] for path in written} - {self._name}:
                if self._is_free(name):
                    self._remove(name)
            written = stats(written)
            size = sum(sizes.values()) - sum(written[p].st_size for p in sizes if p in written)
            found = stats(self.folder.glob("*.arrow"))
            left = self.limit - sum(stat.st_size for stat in (*written.values(), *found.values()))
            unused = sorted(found.keys() - self._keep, key=lambda path: found[path].st_mtime_ns)
            removable = sum(found[path].st_size for path in unused)
            if left + removable < size:
                return False
            self._require_disk(size, removable)
            left -= size
            for path in unused:
                if left >= 0 and self._free() >= size:
                    break
                path.unlink(missing_ok=True)
                left += found[path].st_size
            self._require_disk(size, 0)  # a removed file keeps its room while it is mapped
            for path, total in sizes.items():
                with path.open("ab") as file:
                    file.truncate(total)
            return True

    def _is_free(self, name: str) -> bool:
        """Whether no process converts this set."""
        try:
            with set_lock(self.folder, name).acquire(timeout=0):
                return True
        except filelock.Timeout:
            return False

    def _remove(self, name: str) -> None:
        for path in self.folder.glob(f"*.{name}{_UNFINISHED}"):
            path.unlink(missing_ok=True)

    def _require_disk(self, size: int, removable: int) -> None:
        if self._free() + removable >= size:
            return
        others = f" and {removable / 1e9:.3g} GB of other images" if removable else ""
        raise OSError(
            errno.ENOSPC,
            f"{size / 1e9:.3g} GB more are needed, "
            f"and the disk has {self._free() / 1e9:.3g} GB free{others}",
        )

    def _free(self) -> int:
        return shutil.disk_usage(self.folder).free
