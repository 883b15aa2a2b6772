"""Samples of each step, as a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
from torch.utils.data import Sampler

from trainers.seeding import generator


@dataclass(eq=False)
class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (step, sample) for one worker, from any step on.

    Each epoch is a permutation of all samples. The steps cut the endless sequence of epochs into
    global batches, and worker `rank` of `world_size` takes its even share of each. So the global
    batch of a step depends neither on the number of workers nor on where a run was resumed.
    """

    num_samples: int
    batch_size: int
    _: KW_ONLY
    seed: int
    steps: range
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in self.steps:
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = generator(self.seed, "epoch", epoch).permutation(self.num_samples)
                batch.append((step, int(order[position % self.num_samples])))
            yield batch[self.rank :: self.world_size]
