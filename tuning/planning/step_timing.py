"""The intervals of a probe, between its evaluations, and which of their steps are timed.

Processes that decode (`data.workers`) work ahead, and go on during an evaluation. Steps right after
one find their batches ready and show the speed of the GPU alone, so the clock starts late in each
interval. Let decoding be the slower, one batch in s seconds where a step takes g, and B batches be
ready: after B s / (s - g) steps none is. With the first 2 B steps left out of 4 B, decoding is
timed to the full where s is 2 g or more, and a step nowhere comes out below 3/4 of what it takes.

The workers of a probe read this module, so it imports little.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TIMED_STEPS = 5
"""Of an interval at least, where images are decoded between the steps."""
PREFETCHED = 2
"""Batches that PyTorch's loader has ready, for each process that decodes."""
INTERVALS = 4
"""Each ends with an evaluation and a checkpoint; the first is the warm-up."""


def overrides(data_workers: int) -> dict[str, int]:
    """What a probe changes of a base trial with so many processes that decode."""
    steps = TIMED_STEPS + 2 * untimed_steps(data_workers)
    return {"steps": INTERVALS * steps, "eval.every": steps}


def untimed_steps(data_workers: int) -> int:
    """The first steps of an interval, which get by on what was decoded before it began."""
    return 2 * PREFETCHED * data_workers


class StepWatch:
    """A hook of the optimiser, which times the steps of an interval but the first ones.

    Args:
        data_workers: processes that decode.
        device: what it waits for before it looks at the clock.
        began: when the first interval did.
    """

    def __init__(self, data_workers: int, device: torch.device, began: float) -> None:
        self._untimed, self._device = untimed_steps(data_workers), device
        self.restart(began)

    def restart(self, began: float) -> None:
        """Another interval begins."""
        self.began = self._since = began
        self._steps = 0

    def step_s(self, ended: float) -> float:
        """Mean of the timed steps, in seconds."""
        return (ended - self._since) / (self._steps - self._untimed)

    def __call__(self, *_: object) -> None:
        """A step was done."""
        self._steps += 1
        if self._steps == self._untimed:
            if self._device.type == "cuda":
                import torch

                torch.cuda.synchronize(self._device)
            self._since = time.perf_counter()
