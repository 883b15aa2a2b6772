"""The size of the benchmark's images, their arrays, and random numbers.

Images are float32 arrays with values in [0, 1], shaped (SIZE, SIZE, 3); coverage masks and other
planes are (SIZE, SIZE).
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

SIZE = 64  # pixels a side

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Rng: TypeAlias = np.random.Generator

Y, X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
"""Positions of the pixels, from above and from the left."""


def generator(*key: int) -> Rng:
    """The random generator of a key of non-negative integers, alike everywhere."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
