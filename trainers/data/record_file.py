"""What the processes of a machine share: files of records of one size.

Whoever needs a record first computes and writes it. It ends with a checksum, so what a kill, a
crash of the machine or two writers at once left of a record is not read: it is computed again.
Records are read and written by file offset, because a mapped file that cannot grow on a full disk
would end the process. Records that are not there yet take no room.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.folders import waiting_lock

FORMAT = 1
"""Increase it when the same identity gives other records than before."""

CHECKSUM_BYTES = 4
SUFFIX = ".records"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordFolder:
    """The files of a kind on this machine."""

    path: Path
    limit_bytes: int
    """Of all of them together, each counted at its full size. If there is no room, those that were
    unused for longest and that no process has open are removed."""
    what: str
    """What is in them, for messages, such as `decoded images`."""


class RecordFile:
    """Records of at most `rows` vectors each, by number.

    A file that cannot be used has no records, and takes none; the reason is logged once.

    Args:
        identity: everything that the records depend on, as plain values.
        rows: vectors of a record.
        width: of a vector, D.
    """

    def __init__(
        self,
        folder: RecordFolder,
        identity: Sequence[object],
        *,
        records: int,
        rows: int,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        self._what, self._width, self._dtype = folder.what, width, dtype
        self._stride = rows * width * dtype.itemsize + CHECKSUM_BYTES
        text = json.dumps([FORMAT, *identity, self._stride, width, str(dtype)])
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        path = folder.path / f"{name}{SUFFIX}"
        size = records * self._stride
        self._file: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with waiting_lock(path.with_name("lock"), f"opening the {folder.what}"):
                known = path.stat().st_size if path.exists() else 0
                if known < size and not _make_room(folder, path, size):
                    _warn(self._what, f"there is no room for {size / 1e9:.3g} GB in {path.parent}")
                    return
                self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                weakref.finalize(self, os.close, self._file)
                with suppress(OSError):  # without locks, as on NFS, it may be removed
                    fcntl.flock(self._file, fcntl.LOCK_SH)
                if known < size:
                    os.ftruncate(self._file, size)
                os.utime(path)
        except OSError as error:
            self.close(f"{path.parent}: {error.strerror or type(error).__name__}")

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process is without the file."""
        return vars(self) | {"_file": None}

    def read(self, record: int, rows: int) -> Tensor | None:
        """The written rows of a record, (rows, D) on the CPU; None if it is not there."""
        if self._file is None:
            return None
        size = rows * self._width * self._dtype.itemsize
        data = bytearray(size + CHECKSUM_BYTES)
        try:
            found = os.preadv(self._file, [data], record * self._stride)
        except OSError:
            return None
        values = memoryview(data)[:size]
        if found < len(data) or data[size:] != _checksum(values):
            return None
        flat = torch.frombuffer(data, dtype=self._dtype)[: rows * self._width]
        return flat.view(rows, self._width)

    def write(self, record: int, vectors: Tensor) -> Tensor:
        """Store vectors (rows, D) and return them as `read` does.

        They are rounded to the file's type even if they cannot be stored, so that results do not
        depend on what the cache holds.
        """
        rounded = vectors.to("cpu", self._dtype).contiguous()
        if self._file is not None:
            values = rounded.numpy().tobytes()
            try:
                os.pwrite(self._file, values + _checksum(values), record * self._stride)
            except OSError as error:
                self.close(error.strerror or type(error).__name__)
        return rounded

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._file is not None

    def close(self, problem: str) -> None:
        """Use the file no more, and log the reason, once in a process."""
        self._file = None
        _warn(self._what, problem)


def _make_room(folder: RecordFolder, path: Path, size: int) -> bool:
    """Remove other files, those unused for longest first, until `size` bytes fit.

    They do not if they are more than the limit, or than half of the disk that can be freed:
    checkpoints need a part of it as well. Then nothing is removed.
    """
    others = {file: file.stat() for file in folder.path.glob(f"*{SUFFIX}") if file != path}
    total = sum(stat.st_size for stat in others.values())
    unused = [file for file in others if not _is_open(file)]
    most = sum(others[file].st_size for file in unused)
    free = shutil.disk_usage(folder.path).free
    if total - most + size > folder.limit_bytes or free + most < 2 * size:
        return False
    for file in sorted(unused, key=lambda file: others[file].st_mtime_ns):
        is_enough = shutil.disk_usage(folder.path).free >= 2 * size
        if total + size <= folder.limit_bytes and is_enough:
            break
        file.unlink(missing_ok=True)
        total -= others[file].st_size
    return True


def _is_open(path: Path) -> bool:
    """Whether a process has a file of records open."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it has no locks, or is gone
        return False
    return False


def _checksum(values: bytes | memoryview) -> bytes:
    return zlib.crc32(values).to_bytes(CHECKSUM_BYTES, "little")


@cache
def _warn(what: str, problem: str) -> None:
    """Log a reason for which something is not shared, once in a process."""
    logger.warning("%s are not shared, but made by each trial: %s", what, problem)
