"""How well other weights would do on ID validation images, for methods that ask for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from trainers.data.dataset import ImageDataset, eval_samples
from trainers.data.sampler import StepSampler
from trainers.data.transforms import normalise
from trainers.loop.distributed import gather
from trainers.models.student import Outputs

if TYPE_CHECKING:
    from trainers.loop.state import TrainState

BATCH_SIZE = 64
"""Images of all workers at each look."""


def id_losses(run: TrainState, images: ImageDataset) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """The mean cross-entropy of a run's student with given weights, on the next images each time.

    Differentiable in the weights. Every worker gets the loss over all workers' images, as
    `parallel.gather` has it: the mean of their gradients is the gradient.
    """
    batches = _shuffled(run, images)
    id_domain = run.config.data.id_domain
    class_map = run.class_maps({id_domain: images})[id_domain]

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        images, labels = next(batches)
        with run.precision.autocast():
            outputs: Outputs = functional_call(run.student, dict(weights), (images,))
        logits, labels = class_map.score(gather(outputs.logits), gather(labels))
        return functional.cross_entropy(logits, labels)

    return loss


def _shuffled(run: TrainState, images: ImageDataset) -> Iterator[tuple[Tensor, Tensor]]:
    """Centre crops without end, every image once before any comes again.

    Files have one class after the other: in their order, a batch would hold a few classes alone.
    """
    world_size, image_input = run.world_size, run.zero_shot.image_input
    sampler = StepSampler(
        len(images),
        world_size * max(1, BATCH_SIZE // world_size),  # as many for every worker
        seed=run.config.seed,
        steps=range(sys.maxsize),
        rank=run.rank,
        world_size=world_size,
    )
    samples = ([sample for _, sample in batch] for batch in sampler)
    for views, labels in eval_samples(images, samples, image_input, run.config.data.workers):
        yield normalise(views.to(run.device), image_input), labels.to(run.device)
