"""Where the bytes of one picture are: a file, a piece of a tar, a row of an array or of Parquet.

All paths are relative to the source's `Store`, so a source is small, can be sent to any machine,
and is read there.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from trainers.data.layouts.npy import read_npy_header, require_pictures
from trainers.data.storage import Store


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file of its own."""

    path: str


@dataclass(frozen=True, slots=True)
class RangeSource:
    """Some bytes of a file: a member of an uncompressed tar."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ArraySource:
    """One picture of a `.npy` of shape (N, H, W, 3) uint8."""

    path: str
    index: int


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """One row of a Parquet file's column of encoded pictures."""

    path: str
    row: int
    column: str


Source = FileSource | RangeSource | ArraySource | ParquetSource

_UNREADABLE = (OSError, ValueError, pa.ArrowException)
"""What reading raises where a file is gone, closed to us, cut off or not what it was."""

_READ_AHEAD = 4 << 20
"""Bytes a request on a bucket: neighbours in a tar or an array then come along."""

_READ_AT_ONCE = 16
"""Files that a bucket is asked for at a time."""

_BATCH = 64
"""Pictures of Parquet that are in memory at a time."""


def read_sources(store: Store, sources: Iterable[Source]) -> Iterator[bytes | OSError]:
    """The encoded pictures, in order; consecutive sources of one file share one opening of it.

    Rows of arrays come as PNG. What cannot be read comes as an `OSError` that is not raised, so
    one bad file does not keep its neighbours back. No tar, array or Parquet file is ever in
    memory as a whole.
    """
    for (kind, path), group in groupby(sources, key=_file_of):
        if kind is FileSource:
            yield from _read_files(store, (source.path for source in group))
            continue
        with ExitStack() as stack:
            try:
                read = stack.enter_context(_OPENERS[kind](store, path))
            except _UNREADABLE as error:
                unopened = _as_os_error(path, error)
                yield from (unopened for _ in group)
                continue
            for source in group:
                try:
                    data = read(source)
                except _UNREADABLE as error:
                    yield _as_os_error(path, error)
                else:
                    yield data


def _file_of(source: Source) -> tuple[type, str]:
    """What consecutive sources share: the file they lie in, or that each has its own."""
    return type(source), "" if isinstance(source, FileSource) else source.path


def _read_files(store: Store, paths: Iterable[str]) -> Iterator[bytes | OSError]:
    """Files of their own; a bucket, slow to answer, is asked for several at once."""
    if store.is_local:
        yield from (_read_file(store, path) for path in paths)
        return
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        paths = iter(paths)
        ahead = deque(pool.submit(_read_file, store, p) for p in islice(paths, _READ_AT_ONCE))
        while ahead:
            data = ahead.popleft().result()
            ahead.extend(pool.submit(_read_file, store, path) for path in islice(paths, 1))
            yield data


def _read_file(store: Store, path: str) -> bytes | OSError:
    try:
        return store.read_bytes(path)
    except _UNREADABLE as error:
        return _as_os_error(path, error)


def _as_os_error(path: str, error: Exception) -> OSError:
    return error if isinstance(error, OSError) else OSError(f"{path}: {reason(error)}")


def reason(error: Exception) -> str:
    """Why a file cannot be read, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def open_with_read_ahead(store: Store, path: str) -> Any:
    """A seekable file of which small pieces near one another cost few requests on a bucket."""
    file = store.open(path)
    return file if store.is_local else io.BufferedReader(file, _READ_AHEAD)


@contextmanager
def _open_ranges(store: Store, path: str) -> Iterator[Callable[[RangeSource], bytes]]:
    with open_with_read_ahead(store, path) as file:
        yield lambda source: _read_exactly(file, source.offset, source.size)


@contextmanager
def _open_array(store: Store, path: str) -> Iterator[Callable[[ArraySource], bytes]]:
    with open_with_read_ahead(store, path) as file:
        header = read_npy_header(file)
        require_pictures(header)

        def read(source: ArraySource) -> bytes:
            offset = header.offset + source.index * header.row_bytes
            pixels = np.frombuffer(_read_exactly(file, offset, header.row_bytes), np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(pixels.reshape(header.shape[1:])).save(encoded, "PNG")
            return encoded.getvalue()

        yield read


def _read_exactly(file: Any, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = bytes(file.read(size))
    if len(data) != size:
        raise OSError(f"the file ends {size - len(data)} bytes before the picture does")
    return data


@contextmanager
def open_parquet(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file of which pages are read as they are needed.

    A row group may be as large as its file, and Arrow would fetch all of it before the first row.
    """
    with (
        store.open(path) as file,
        pq.ParquetFile(file, buffer_size=_READ_AHEAD, pre_buffer=False) as parquet,
    ):
        yield parquet


@contextmanager
def _open_parquet(store: Store, path: str) -> Iterator[Callable[[ParquetSource], bytes]]:
    with open_parquet(store, path) as parquet:
        yield _PictureColumn(parquet).read


class _PictureColumn:
    """Rows of a column of pictures, in whatever order; cheap where they come in their own."""

    def __init__(self, parquet: pq.ParquetFile) -> None:
        self._parquet = parquet
        counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._column = ""
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._pictures: pa.Array = pa.array([], pa.binary())
        self._first = 0  # the row at which `_pictures` begins

    def read(self, source: ParquetSource) -> bytes:
        """The encoded picture of one row."""
        group = int(np.searchsorted(self._ends, source.row, side="right"))
        if group == len(self._ends):
            raise OSError(f"{source.path} has no row {source.row} any more")
        if (source.column, group) != (self._column, self._group) or source.row < self._first:
            self._start(source.column, group)
        while source.row >= self._first + len(self._pictures):
            self._advance()
        picture = self._pictures[source.row - self._first].as_py()
        if picture is None:
            raise OSError(f"{source.path} has no picture in row {source.row}")
        return bytes(picture)

    def _start(self, column: str, group: int) -> None:
        schema = self._parquet.schema_arrow
        if column not in schema.names:
            raise OSError(f"there is no column {column!r} any more")
        nested = pa.types.is_struct(schema.field(column).type)
        self._batches = self._parquet.iter_batches(
            _BATCH, row_groups=[group], columns=[f"{column}.bytes" if nested else column]
        )
        self._column, self._group = column, group
        self._first = int(self._ends[group - 1]) if group else 0
        self._pictures = self._pictures[:0]

    def _advance(self) -> None:
        self._first += len(self._pictures)
        self._pictures = self._pictures[:0]
        batch = next(self._batches, None)
        if batch is None:  # also after a page that could not be read
            raise OSError(f"the column {self._column!r} cannot be read from row {self._first} on")
        column = batch.column(0)
        self._pictures = (
            pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        )


_OPENERS: dict[type, Callable[[Store, str], AbstractContextManager[Callable[[Any], bytes]]]] = {
    RangeSource: _open_ranges,
    ArraySource: _open_array,
    ParquetSource: _open_parquet,
}
