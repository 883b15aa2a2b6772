"""How well other weights would do on ID validation pictures, for methods that ask for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from trainers.data.pictures import Pictures
from trainers.data.views import normalise
from trainers.parallel import gather
from trainers.student import Outputs

if TYPE_CHECKING:
    from trainers.run import Run

BATCH_SIZE = 64
"""Pictures of all workers at each look."""


def id_losses(run: Run, pictures: Pictures) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """The mean cross-entropy of a run's student with given weights, on the next pictures each time.

    Differentiable in the weights. Every worker gets the loss over all workers' pictures, as
    `parallel.gather` has it: the mean of their gradients is the gradient.
    """
    batches = _endless(run, pictures)
    id_domain = run.config.data.id_domain
    class_map = run.class_maps({id_domain: pictures})[id_domain]

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        images, labels = next(batches)
        with run.precision.autocast():
            outputs: Outputs = functional_call(run.student, dict(weights), (images,))
        logits, labels = class_map.score(gather(outputs.logits), gather(labels))
        return functional.cross_entropy(logits, labels)

    return loss


def _endless(run: Run, pictures: Pictures) -> Iterator[tuple[Tensor, Tensor]]:
    """Centre crops in their order, over and over; the same number on every worker."""
    image_input = run.zero_shot.image_input
    per_worker = max(1, len(pictures) // run.world_size)  # a picture too many has no counterpart
    batch_size = min(max(1, BATCH_SIZE // run.world_size), per_worker)
    for _ in itertools.count():
        batches = pictures.eval_batches(image_input, batch_size, run.rank, run.world_size)
        for views, labels in itertools.islice(batches, per_worker // batch_size):
            yield normalise(views.to(run.device), image_input), labels.to(run.device)
