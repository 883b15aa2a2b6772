"""Everything random is a function of (seed, purpose, counters), independent of earlier draws.

So a resumed run draws the same as one without an interruption, all workers agree without
communication, and two trials of a search use the same batches and views: they differ only in their
hyperparameters.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """An independent generator, such as for ``(seed, "view", step, sample)``; portable."""
    key = (seed, zlib.crc32(purpose.encode()), *counters)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
