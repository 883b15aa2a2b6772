"""Evaluation of several models on the images of a domain, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.data.class_map import ClassMap
from trainers.data.dataset import ImageDataset
from trainers.data.loaders import eval_batches, to_device
from trainers.data.record_file import RecordFolder
from trainers.data.transforms import normalise
from trainers.distributed import world
from trainers.errors import ConfigError, is_memory_exhausted
from trainers.evaluation.metrics import ECE_BINS
from trainers.hang import alive
from trainers.models.image import ImageInput

Classify: TypeAlias = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) to logits (B, K) of the ID classes, float32."""


@dataclass(frozen=True)
class EvalBatches:
    """How a worker reads its share of the evaluated images."""

    image_input: ImageInput
    batch_size: int
    device: torch.device
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""
    decoded: RecordFolder | None = None
    """Where the processes of this machine share decoded images."""

    def of(self, images: ImageDataset) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised views (B, 3, H, W) and their labels (B,), on the device."""
        share = (*world(), self.workers)
        batches = eval_batches(
            images,
            self.image_input,
            self.batch_size,
            *share,
            pin_memory=self.device.type == "cuda",
            decoded=self.decoded,
        )
        for views, labels in batches:
            if len(labels):  # a worker may have no share of a very small domain
                views = to_device(views, self.device)
                yield normalise(views, self.image_input), to_device(labels, self.device)
                alive()


def domain_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums over a batch, (2 C + 16,) float64, which batches and workers add up.

    Ratios are computed once at the end: an average of the workers' averages would be wrong if their
    shares differ in size. For each of the C classes, the number of images, then that of those
    classified correctly; the negative log-likelihood in nats; and for each bin of confidence,
    correct predictions minus the sum of confidences. No step needs a value of a GPU, for which the
    CPU would have to wait.

    Args:
        logits: (B, C) of the domain's classes.
        labels: (B,) int64, columns of the logits; -1 for images that are left out.
    """
    counts = labels >= 0
    column = labels.clamp(min=0)
    correct = (logits.argmax(dim=-1) == labels).double()
    below = logits - logits.amax(dim=-1, keepdim=True)
    partition = below.exp().sum(dim=-1)
    losses = partition.log() - below.gather(1, column[:, None])[:, 0]
    confidence = partition.reciprocal()
    bins = (confidence.nan_to_num() * ECE_BINS).long().clamp(max=ECE_BINS - 1)
    sums = correct.new_zeros(2 * logits.shape[1] + 1 + ECE_BINS)
    total, hits, nll, gaps = sums.split([logits.shape[1], logits.shape[1], 1, ECE_BINS])
    total.scatter_add_(0, column, counts.double())
    hits.scatter_add_(0, column, correct)
    nll.copy_(torch.where(counts, losses, 0).double().sum())
    gaps.scatter_add_(0, bins, torch.where(counts, correct - confidence.double(), 0))
    return sums


def measures_of(sums: Tensor) -> dict[str, float]:
    """The values of `metrics.DIRECTIONS`; accuracies and calibration errors in percent.

    `class_acc` is the mean accuracy of the classes that occur, `ece` the mean over images of
    their bin's |accuracy - confidence|.
    """
    classes = (len(sums) - 1 - ECE_BINS) // 2
    total, correct, nll, gaps = sums.split([classes, classes, 1, ECE_BINS])
    number = float(total.sum())
    occurs = total > 0
    return {
        "acc": 100 * float(correct.sum()) / number,
        "class_acc": 100 * float((correct[occurs] / total[occurs]).mean()),
        "nll": float(nll) / number,
        "ece": 100 * float(gaps.abs().sum()) / number,
    }


@torch.no_grad()
def measure_domain(
    models: Sequence[Classify],
    images: ImageDataset,
    batches: EvalBatches,
    *,
    class_map: ClassMap,
    stored: tuple[Tensor, Classify] | None = None,
    note: Callable[[int, Tensor, Tensor, Tensor], object] | None = None,
) -> tuple[int, list[dict[str, float]]]:
    """The number of scored images of a domain, and the measures of each model.

    They are the same on every worker. Each batch of images is read once for all models.

    Args:
        class_map: from the ID classes to the domain's own. Images that it leaves out are not
            scored.
        stored: a model of which the features (n, D) of this worker's share are known, as these and
            the function from features to logits. It is the first model then.
        note: called with each batch: the index of its first image in the worker's share, its
            labels (B,), and the logits (B, K) of the last model and of the first one.
    """
    classes = class_map.num_classes
    shape = len(models) + (stored is not None), 2 * classes + 1 + ECE_BINS
    sums = torch.zeros(shape, dtype=torch.float64, device=batches.device)
    done = 0
    for views, labels in batches.of(images):
        logits = [_in_memory(classify, views).float() for classify in models]
        if stored is not None:
            features, classify = stored
            rows = features[done : done + len(labels)]
            logits.insert(0, _in_memory(classify, rows).float())
        columns = class_map.columns(labels)
        for index, of_model in enumerate(logits):
            sums[index] += domain_sums(class_map.project(of_model), columns)
        if note is not None:
            note(done, labels, logits[-1], logits[0])
        done += len(labels)
    if world()[1] > 1:
        dist.all_reduce(sums)
    number = int(sums[0, :classes].sum())
    if not number:
        raise ConfigError(f"{images.name}: none of its images is of a class that is scored")
    return number, [measures_of(of_model) for of_model in sums.cpu()]


@torch.no_grad()
def image_features(
    encode: Callable[[Tensor], Tensor], images: ImageDataset, batches: EvalBatches
) -> Tensor:
    """Features of one worker's share, in the order of `measure_domain`: (n, D), on the CPU.

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
