"""Everything random is a function of (seed, purpose, counters), never of what ran before.

So a resumed run goes on bit for bit, every worker agrees without a message, and two trials of a
search see the same batches and views: they differ by their hyperparameters alone.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A generator of its own for, say, ``(seed, "view", step, sample)``; equal on any machine."""
    key = (seed, zlib.crc32(purpose.encode()), *counters)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
