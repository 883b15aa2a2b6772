"""Evaluation of several models on the images of a domain, in one pass."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from trainers.data.class_map import ClassMap
from trainers.data.dataset import ImageDataset
from trainers.errors import ConfigError, is_memory_exhausted
from trainers.evaluation.batches import EvalBatches
from trainers.evaluation.domain_sums import DomainSums
from trainers.evaluation.predictions import Predictions

Classify: TypeAlias = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) to logits (B, K) of the ID classes, float32."""


@torch.no_grad()
def evaluate(
    models: Sequence[Classify],
    images: ImageDataset,
    batches: EvalBatches,
    *,
    class_map: ClassMap,
    predictions: Predictions | None = None,
) -> list[DomainSums]:
    """The sums of a domain for each model, on the CPU, the same on every worker.

    Each batch of images is read once for all models.

    Args:
        class_map: from the ID classes to the domain's own. Images that it leaves out are not
            scored.
        predictions: those of the last model are added to it, beside those of the first one, which
            is the zero-shot model.
    """
    sums = [DomainSums.zeros(class_map.num_classes, batches.device) for _ in models]
    done = 0
    for views, labels in batches.of(images):
        labels = labels.to(batches.device)
        logits = [_in_memory(classify, views).float() for classify in models]
        for index, of_model in enumerate(logits):
            sums[index] += DomainSums.of(*class_map.score(of_model, labels))
        if predictions is not None:
            predictions.add(done, labels, logits[-1], logits[0])
        done += len(labels)
    sums = [of_model.reduce() for of_model in sums]
    if not sums[0].number:
        raise ConfigError(f"{images.name}: none of its images is of a class that is scored")
    return sums


@torch.no_grad()
def image_features(
    encode: Callable[[Tensor], Tensor], images: ImageDataset, batches: EvalBatches
) -> Tensor:
    """Features of one worker's share, in the order of `evaluate`: (n, D), on the CPU.

    Rounding depends on precision and batch size: with those of the evaluation, they are the
    features of an unchanged model. A worker without a share returns (0, 0). `encode` maps images
    (B, 3, H, W) to features (B, D).
    """
    found = [_in_memory(encode, views).float().cpu() for views, _ in batches.of(images)]
    return torch.cat(found) if found else torch.empty(0, 0)


def _in_memory(compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What is computed of a batch; if that does not fit into memory, of half as many at a time."""
    try:
        return compute(images)
    except RuntimeError as error:
        if len(images) == 1 or not is_memory_exhausted(error):
            raise
    # Outside of the handler, whose traceback keeps what was computed in memory.
    return torch.cat([_in_memory(compute, half) for half in images.chunk(2)])
