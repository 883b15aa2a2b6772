"""The batches of an evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.data.dataset import ImageDataset
from trainers.data.transforms import normalise
from trainers.hang import alive
from trainers.models.image import ImageInput


@dataclass(frozen=True)
class EvalBatches:
    """How a worker reads its share of the evaluated images."""

    image_input: ImageInput
    batch_size: int
    device: torch.device
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""
    rank: int = 0
    """Of this worker, which evaluates its share."""
    world_size: int = 1

    def of(self, images: ImageDataset) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised views (B, 3, H, W) on the device, and their labels (B,) on the CPU."""
        share = (self.rank, self.world_size, self.workers)
        batches = images.eval_batches(
            self.image_input, self.batch_size, *share, pin_memory=self.device.type == "cuda"
        )
        for views, labels in batches:
            if len(labels):  # a worker may have no share of a very small domain
                views = views.to(self.device, non_blocking=True)
                yield normalise(views, self.image_input), labels
                alive()
