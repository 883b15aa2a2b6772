"""A store that counts how often its files are opened, and fails when told to."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, field

from trainers.data.storage import Store, open_store


def troubled(url):
    """The folder of a path or URL, which does not fail yet."""
    return Troubled(**vars(open_store(url)))


@dataclass(frozen=True)
class Troubled(Store):
    """A store whose next reads fail, as a disk or a network does."""

    failures: list[Exception] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)

    def open(self, path):
        self.asked[path] += 1
        self._fail()
        return _Troubled(super().open(path), self._fail)

    def _fail(self):
        if self.failures:
            raise self.failures.pop(0)


class _Troubled(io.RawIOBase):
    def __init__(self, file, fail):
        self._file, self._fail = file, fail

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return int(self._file.tell())

    def size(self):
        return int(self._file.size())

    def seek(self, offset, whence=0):
        return int(self._file.seek(offset, whence))

    def read(self, size=-1):
        self._fail()
        return bytes(self._file.read(None if size < 0 else size))
