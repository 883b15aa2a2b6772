"""Features that the processes of a machine share: files of records of one size.

Whoever needs a record first computes and writes it. It ends with a checksum, so what a kill, a
crash of the machine or two writers at once left of a record is not read: it is computed again.
Records are read and written by file offset, because a mapped file that cannot grow on a full disk
would end the process. Records that are not there yet take no room.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import weakref
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from trainers.data.store import cache_folder
from trainers.folders import waiting_lock

FORMAT = 1
"""Increase it when the same identity gives other features than before."""

CHECKSUM_BYTES = 4

logger = logging.getLogger(__name__)


class FeatureFile:
    """Records of at most `rows` feature vectors each, by number.

    Args:
        identity: everything that the features depend on, as plain values.
        rows: feature vectors of a record.
        width: of a feature vector, D.
        limit_bytes: of all such files on this machine together, each counted at its full size. If
            there is no room, the files that were unused for longest are removed.
    """

    def __init__(
        self,
        identity: Sequence[object],
        *,
        records: int,
        rows: int,
        width: int,
        dtype: torch.dtype,
        limit_bytes: int,
    ) -> None:
        self._width, self._dtype = width, dtype
        self._stride = rows * width * dtype.itemsize + CHECKSUM_BYTES
        text = json.dumps([FORMAT, *identity, self._stride, width, str(dtype)])
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        path = cache_folder() / "lipsum-tune-features" / f"{name}.features"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = records * self._stride
        self._file: int | None = None
        with waiting_lock(path.with_name("lock"), "opening the features of the zero-shot model"):
            known = path.stat().st_size if path.exists() else 0
            if known < size and not _make_room(path, size, limit_bytes):
                _warn(f"there is no room for {size / 1e9:.3g} GB")
                return
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            weakref.finalize(self, os.close, self._file)
            if known < size:
                os.ftruncate(self._file, size)
            os.utime(path)

    def read(self, record: int, rows: int) -> Tensor | None:
        """The written rows of a record, (rows, D) float32 on the CPU; None if it is not there."""
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
        return flat.view(rows, self._width).float()

    def write(self, record: int, features: Tensor) -> Tensor:
        """Store features (rows, D) and return them as `read` does.

        They are rounded to the file's type even if they cannot be stored, so that results do not
        depend on what the cache holds.
        """
        rounded = features.to("cpu", self._dtype).contiguous()
        if self._file is not None:
            values = rounded.numpy().tobytes()
            try:
                os.pwrite(self._file, values + _checksum(values), record * self._stride)
            except OSError as error:
                _warn(error.strerror or type(error).__name__)
                self._file = None
        return rounded.float()


def _make_room(path: Path, size: int, limit: int) -> bool:
    """Remove other files, those unused for longest first, until `size` bytes fit.

    They do not if they are more than the limit, or than half of the disk that can be freed:
    checkpoints need a part of it as well. Then nothing is removed.
    """
    others = {file: file.stat() for file in path.parent.glob("*.features") if file != path}
    total = sum(stat.st_size for stat in others.values())
    if size > limit or shutil.disk_usage(path.parent).free + total < 2 * size:
        return False
    for file in sorted(others, key=lambda file: others[file].st_mtime_ns):
        if total + size <= limit and shutil.disk_usage(path.parent).free >= 2 * size:
            break
        file.unlink(missing_ok=True)
        total -= others[file].st_size
    return True


def _checksum(values: bytes | memoryview) -> bytes:
    return zlib.crc32(values).to_bytes(CHECKSUM_BYTES, "little")


@cache
def _warn(problem: str) -> None:
    """Log a reason for which features are not shared, once in a process."""
    logger.warning("features of the zero-shot model are computed by each trial: %s", problem)
