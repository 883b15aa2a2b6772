"""NumPy's `.npy`: what its header says, read from any file, so that rows can be read one by one."""

from __future__ import annotations

from dataclasses import dataclass
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy_format


@dataclass(frozen=True)
class NpyHeader:
    """Shape and type of an array, and where in its file the values start."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    offset: int
    """Bytes before the first value."""

    @property
    def row_bytes(self) -> int:
        """Size of one entry along the first axis, where these lie one after the other."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.offset + self.shape[0] * self.row_bytes


def require_images(header: NpyHeader) -> None:
    """Check that an array is one of images that can be read one by one.

    Raises:
        ValueError: not of shape (N, H, W, 3), not uint8, or in Fortran's order.
    """
    shape = header.shape
    if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:] or header.dtype != np.uint8:
        raise ValueError(f"shape {shape}, {header.dtype} is not the expected (N, H, W, 3), uint8")
    if header.fortran_order:
        raise ValueError("it is in Fortran's order; save numpy.ascontiguousarray of it")


def read_npy_header(file: Any) -> NpyHeader:
    """What stands at the beginning of a seekable binary file.

    Raises:
        ValueError: no `.npy` of version 1 or 2, or an array of Python objects, which would be
            pickles.
    """
    version = npy_format.read_magic(file)
    read = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not supported")
    try:
        shape, fortran_order, dtype = read[version](file)
    except (SyntaxError, TypeError, TokenError) as error:
        raise ValueError(f"its header cannot be read: {error}") from None
    if dtype.hasobject:
        raise ValueError("an array of Python objects (pickles), which are not read for safety")
    return NpyHeader(shape, dtype, fortran_order, file.tell())
