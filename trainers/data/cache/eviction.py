"""Room in the cache of images, made by removing the files that were unused for longest."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock


def stats(paths: Iterable[Path]) -> dict[Path, os.stat_result]:
    """Size and times of the files that exist; other processes may remove some meanwhile."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            found[path] = path.stat()
    return found


class Room:
    """Bytes that may still be written to the cache.

    Args:
        folder: of the cache.
        keep: files that are not removed.
        limit: bytes of all its files together.
    """

    def __init__(self, folder: Path, *, keep: Sequence[Path], limit: int) -> None:
        self.limit, self._folder, self._lock = limit, folder, Lock()
        found = stats(folder.glob("*.arrow"))
        self._left = limit - sum(stat.st_size for stat in found.values())
        unused = sorted(found.keys() - set(keep), key=lambda path: found[path].st_mtime_ns)
        self._removable = [(path, found[path].st_size) for path in reversed(unused)]

    def take(self, size: int) -> bool:
        """Make room for `size` bytes; False if the limit does not allow it.

        Nothing is removed if removing everything would not be enough.

        Raises:
            OSError: ENOSPC; the disk does not have the room.
        """
        with self._lock:
            removable = sum(freed for _, freed in self._removable)
            if self._left + removable < size:
                return False
            self._require_disk(size, removable)
            self._left -= size
            while self._removable and (self._left < 0 or self._free() < size):
                path, freed = self._removable.pop()
                path.unlink(missing_ok=True)
                self._left += freed
            self._require_disk(size, 0)  # a removed file keeps its room while it is mapped
            return True

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
        return shutil.disk_usage(self._folder).free
