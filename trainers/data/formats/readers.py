"""Where the bytes of one image are: a file, a piece of a tar, a row of an array or of Parquet.

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
from functools import partial
from hashlib import blake2b
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from trainers.data.formats.npy import read_npy_header, require_images
from trainers.data.formats.retry import UNREADABLE, Unusable, persistently, require_bytes
from trainers.data.storage import Store
from trainers.errors import first_line


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
    """One image of a `.npy` of shape (N, H, W, 3) uint8."""

    path: str
    index: int


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """One row of a Parquet file's column of encoded images."""

    path: str
    row: int
    column: str


Source = FileSource | RangeSource | ArraySource | ParquetSource

_READ_AHEAD = 4 << 20
"""Bytes a request on a bucket: neighbours in a tar or an array then come along."""

_READ_AT_ONCE = 16
"""Files that a bucket is asked for at a time."""

_BATCH = 64
"""Images of Parquet that are in memory at a time."""


def read_sources(store: Store, sources: Iterable[Source]) -> Iterator[bytes | OSError]:
    """The encoded images, in order; consecutive sources of one file share one opening of it.

    Rows of arrays come as PNG. A file that is gone, closed to us or broken comes as an `OSError`
    that is not raised, so it does not keep its neighbours back. No tar, array or Parquet file is
    ever in memory as a whole.

    Raises:
        SourceLost: the source did not answer, time and again.
    """
    for (kind, path), group in groupby(sources, key=_file_of):
        if kind is FileSource:
            yield from _read_files(store, (source.path for source in group))
            continue
        with ExitStack() as stack:
            try:
                read = persistently(store, path, partial(_opened, stack, kind, store, path))
            except UNREADABLE as error:
                unopened = _as_os_error(path, error)
                yield from (unopened for _ in group)
                continue
            for source in group:
                try:
                    data = persistently(store, path, partial(read, source))
                except UNREADABLE as error:
                    yield _as_os_error(path, error)
                else:
                    yield data


def _opened(stack: ExitStack, kind: type, store: Store, path: str) -> Callable[[Any], bytes]:
    return stack.enter_context(_OPENERS[kind](store, path))


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
        return persistently(store, path, partial(store.read_bytes, path))
    except UNREADABLE as error:
        return _as_os_error(path, error)


def _as_os_error(path: str, error: Exception) -> OSError:
    return error if isinstance(error, OSError) else OSError(f"{path}: {first_line(error)}")


def stamp(store: Store, sources: Iterable[Source]) -> str:
    """A digest of the sizes and times of the files that sources lie in; empty if one is gone.

    A bucket's files of single images are left out: each would cost a request.
    """
    paths = {
        source.path for source in sources if store.is_local or not isinstance(source, FileSource)
    }
    digest = blake2b(digest_size=16)
    for path in sorted(paths):
        try:
            info = persistently(store, path, partial(store.info, path))
        except UNREADABLE:
            return ""
        if not info.is_file:
            return ""
        digest.update(f"{path}\0{info.size}\0{info.mtime_ns}\n".encode())
    return digest.hexdigest()


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
        require_images(header)

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
        raise Unusable(f"the file ends {size - len(data)} bytes before the image does")
    return data


@contextmanager
def stream_parquet(store: Store, path: str) -> Iterator[pq.ParquetFile]:
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
    with ExitStack() as stack:
        for is_last in (False, True):
            try:
                parquet = stack.enter_context(stream_parquet(store, path))
                break
            except OSError as error:  # Arrow says the same of a broken footer
                require_bytes(store, path, 0, _READ_AHEAD)
                if is_last:
                    raise Unusable(f"{path}: {first_line(error)}") from error
        yield _ImageColumn(store, path, parquet).read


class _ImageColumn:
    """Rows of a column of images, in whatever order; cheap where they come in their own."""

    def __init__(self, store: Store, path: str, parquet: pq.ParquetFile) -> None:
        self._store, self._path, self._parquet = store, path, parquet
        counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._column = ""
        self._group = -1
        self._doubtful: set[int] = set()  # row groups that could not be read once
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._images: pa.Array = pa.array([], pa.binary())
        self._first = 0  # the row at which `_images` begins

    def read(self, source: ParquetSource) -> bytes:
        """The encoded image of one row."""
        group = int(np.searchsorted(self._ends, source.row, side="right"))
        if group == len(self._ends):
            raise Unusable(f"{source.path} has no row {source.row} any more")
        if (source.column, group) != (self._column, self._group) or source.row < self._first:
            self._start(source.column, group)
        while source.row >= self._first + len(self._images):
            self._advance()
        image = self._images[source.row - self._first].as_py()
        if image is None:
            raise Unusable(f"{source.path} has no image in row {source.row}")
        return bytes(image)

    def _start(self, column: str, group: int) -> None:
        schema = self._parquet.schema_arrow
        if column not in schema.names:
            raise Unusable(f"there is no column {column!r} any more")
        nested = pa.types.is_struct(schema.field(column).type)
        self._batches = self._parquet.iter_batches(
            _BATCH, row_groups=[group], columns=[f"{column}.bytes" if nested else column]
        )
        self._column, self._group = column, group
        self._first = int(self._ends[group - 1]) if group else 0
        self._images = self._images[:0]

    def _advance(self) -> None:
        self._first += len(self._images)
        self._images = self._images[:0]
        try:
            batch = next(self._batches, None)
        except OSError as error:  # Arrow says the same of a page that cannot be decoded
            self._doubt(error)
            batch = None
        if batch is None:  # also after such a page
            raise Unusable(f"the column {self._column!r} cannot be read from row {self._first} on")
        column = batch.column(0)
        self._images = (
            pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        )

    def _doubt(self, error: OSError) -> None:
        """Raise it unless it came twice while the bytes themselves can be read."""
        number, self._group = self._group, -1
        if number not in self._doubtful:
            self._doubtful.add(number)
            raise error
        group = self._parquet.metadata.row_group(number)
        chunks = (group.column(i) for i in range(group.num_columns))
        chunk = next(c for c in chunks if c.path_in_schema.removesuffix(".bytes") == self._column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        require_bytes(self._store, self._path, start, chunk.total_compressed_size)
        self._group = number


_OPENERS: dict[type, Callable[[Store, str], AbstractContextManager[Callable[[Any], bytes]]]] = {
    RangeSource: _open_ranges,
    ArraySource: _open_array,
    ParquetSource: _open_parquet,
}
