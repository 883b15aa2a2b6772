"""Where the bytes of one picture are: a file, a piece of a tar, a row of an array or of Parquet.

All paths are relative to the source's `Store`, so a source is small, can be sent to any machine,
and is read there.
"""

from __future__ import annotations

from dataclasses import dataclass


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
