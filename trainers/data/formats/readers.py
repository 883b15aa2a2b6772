"""Where the bytes of an image are (a file, a range of a tar, a row of an array or of Parquet).

Paths are relative to the source's `Store`, so the location of an image is small and can be sent to
any machine, which then reads it.
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
from numpy.lib import format as npy
from PIL import Image

from trainers.data.formats.retry import UNREADABLE, BadFile, with_retries
from trainers.data.storage import Store
from trainers.errors import first_line

MAX_BYTES = 1 << 30
"""Larger files are not read as images: no image within Pillow's pixel limit needs so much."""

_READ_AHEAD = 4 << 20  # bytes a request on a bucket, so that neighbours in a file come along
_PARALLEL_FILES = 16  # files requested from a bucket at a time
_PARQUET_BATCH = 64  # rows in memory at a time


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file of its own."""

    path: str


@dataclass(frozen=True, slots=True)
class RangeSource:
    """A range of bytes of a file, such as a member of an uncompressed tar."""

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


class TooLarge(BadFile):
    """An image of more than `MAX_BYTES` bytes."""


def read_sources(store: Store, sources: Iterable[Source]) -> Iterator[bytes | OSError]:
    """Yield the encoded images in order; consecutive sources of one file share one opening.

    Rows of arrays are encoded as PNG. If an image cannot be read, its OSError is yielded instead of
    raised, so that its neighbours are still read. No tar, array or Parquet file is in memory as a
    whole.

    Raises:
        SourceLost: the source did not answer repeated attempts.
    """

    def attempt(path: str, read: Callable[[], Any]) -> Any:
        try:
            return with_retries(store, path, read)
        except UNREADABLE as error:
            return error if isinstance(error, OSError) else BadFile(f"{path}: {first_line(error)}")

    def read_file(path: str) -> bytes | OSError:
        def read() -> bytes:
            with store.open(path) as file:
                _check_size(file.size())
                return bytes(file.read())

        return attempt(path, read)

    def key(source: Source) -> tuple[type, str]:
        return type(source), "" if isinstance(source, FileSource) else source.path

    for (kind, path), group in groupby(sources, key):
        if kind is FileSource:
            paths = (source.path for source in group)
            yield from map(read_file, paths) if store.is_local else _read_ahead(read_file, paths)
            continue
        with ExitStack() as stack:

            def opened(kind: type = kind, path: str = path, stack: ExitStack = stack) -> Any:
                return stack.enter_context(_OPENERS[kind](store, path))

            read = attempt(path, opened)
            for source in group:
                yield read if isinstance(read, OSError) else attempt(path, partial(read, source))


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise TooLarge(f"{size:,} bytes, more than {MAX_BYTES:,}")


def _read_ahead(
    read: Callable[[str], bytes | OSError], paths: Iterator[str]
) -> Iterator[bytes | OSError]:
    """Read files in order, several at once, since a bucket takes long to answer."""
    with ThreadPoolExecutor(_PARALLEL_FILES) as pool:
        waiting = deque(pool.submit(read, path) for path in islice(paths, _PARALLEL_FILES))
        while waiting:
            data = waiting.popleft().result()
            waiting.extend(pool.submit(read, path) for path in islice(paths, 1))
            yield data


def stamp(store: Store, sources: Iterable[Source]) -> str:
    """Digest of sizes and times of the files that sources lie in; empty if one is missing.

    Single image files on a bucket are left out, since each would cost a request.
    """
    paths = {
        source.path for source in sources if store.is_local or not isinstance(source, FileSource)
    }
    digest = blake2b(digest_size=16)
    for path in sorted(paths):
        try:
            info = with_retries(store, path, partial(store.info, path))
        except UNREADABLE:
            return ""
        if not info.is_file:
            return ""
        digest.update(f"{path}\0{info.size}\0{info.mtime_ns}\n".encode())
    return digest.hexdigest()


def open_with_read_ahead(store: Store, path: str) -> Any:
    """Open a file so that small reads near one another cost few requests on a bucket."""
    file = store.open(path)
    return file if store.is_local else io.BufferedReader(file, _READ_AHEAD)


@contextmanager
def _open_ranges(store: Store, path: str) -> Iterator[Callable[[RangeSource], bytes]]:
    with open_with_read_ahead(store, path) as file:
        yield lambda source: _read_range(file, source.offset, source.size)


def _read_range(file: Any, offset: int, size: int) -> bytes:
    _check_size(size)
    file.seek(offset)
    data = bytes(file.read(size))
    if len(data) != size:
        raise BadFile(f"the file ends {size - len(data)} bytes before the image does")
    return data


def read_npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and offset of the values of a `.npy` file.

    Raises:
        ValueError: not a `.npy` of version 1 or 2, in Fortran order, or of Python objects.
    """
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read(file)
    except Exception as error:  # NumPy parses the header as Python, with several kinds of errors
        if isinstance(error, OSError):
            raise
        raise ValueError(f"not a .npy file: {first_line(error)}") from None
    if fortran_order or dtype.hasobject:
        raise ValueError("arrays in Fortran order or of Python objects (pickles) are not read")
    return shape, dtype, file.tell()


def check_image_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise ValueError unless an array is (N, H, W, 3) uint8."""
    if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:] or dtype != np.uint8:
        raise ValueError(f"shape {shape}, {dtype} is not the expected (N, H, W, 3), uint8")


@contextmanager
def _open_array(store: Store, path: str) -> Iterator[Callable[[ArraySource], bytes]]:
    with open_with_read_ahead(store, path) as file:
        shape, dtype, start = read_npy_header(file)
        check_image_array(shape, dtype)
        size = int(np.prod(shape[1:], dtype=np.int64))

        def read(source: ArraySource) -> bytes:
            pixels = np.frombuffer(_read_range(file, start + source.index * size, size), np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(pixels.reshape(shape[1:])).save(encoded, "PNG")
            return encoded.getvalue()

        yield read


@contextmanager
def stream_parquet(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose pages are read when they are needed.

    A row group may be as large as its file, and Arrow would otherwise fetch all of it for one row.
    """
    with (
        store.open(path) as file,
        pq.ParquetFile(file, buffer_size=_READ_AHEAD, pre_buffer=False) as parquet,
    ):
        yield parquet


def encoded_images(batch: pa.RecordBatch) -> pa.Array:
    """The bytes of a batch whose only column is binary, or a struct with the field `bytes`."""
    column = batch.column(0)
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


@contextmanager
def _open_parquet(store: Store, path: str) -> Iterator[Callable[[ParquetSource], bytes]]:
    """Reads rows of a column of images in any order; ascending order reads each batch once."""
    with stream_parquet(store, path) as parquet:
        counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        ends = np.cumsum(counts, dtype=np.int64)
        schema = parquet.schema_arrow
        images: Iterator[pa.Scalar] = iter(())
        following = "", -1, 0  # column, row group and row of the next one of `images`

        def read(source: ParquetSource) -> bytes:
            nonlocal images, following
            group = int(np.searchsorted(ends, source.row, side="right"))
            if group == len(ends) or source.column not in schema.names:
                raise BadFile(f"{path} has no row {source.row} of {source.column!r} any more")
            if (source.column, group) != following[:2] or source.row < following[2]:
                nested = pa.types.is_struct(schema.field(source.column).type)
                leaf = f"{source.column}.bytes" if nested else source.column
                batches = parquet.iter_batches(_PARQUET_BATCH, [group], columns=[leaf])
                images = (image for batch in batches for image in encoded_images(batch))
                following = source.column, group, int(ends[group - 1]) if group else 0
            skipped = source.row - following[2]
            following = "", -1, 0  # after an error, the rest of the row group cannot be read
            image = next(islice(images, skipped, None), None)
            if image is None:
                raise BadFile(f"{path} ends before row {source.row}")
            following = source.column, group, source.row + 1
            data = image.as_py()
            if data is None:
                raise BadFile(f"{path} has no image in row {source.row}")
            _check_size(len(data))
            return bytes(data)

        yield read


_OPENERS: dict[type, Callable[[Store, str], AbstractContextManager[Callable[[Any], bytes]]]] = {
    RangeSource: _open_ranges,
    ArraySource: _open_array,
    ParquetSource: _open_parquet,
}
