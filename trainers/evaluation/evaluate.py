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
from trainers.data.transforms import normalise
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


@dataclass(frozen=True)
class DomainSums:
    """Sums for one domain and split: of a batch, a worker's share, or all images.

    Workers add up counts and sums, and ratios are computed once at the end: an average of the
    workers' averages would be wrong if their shares differ in size. Float64 tensors, C classes of
    the domain.
    """

    classes: Tensor
    """(2, C) number of scored images of each class, and of those classified correctly."""
    nll: Tensor
    """Sum of the negative log-likelihoods, in nats."""
    gaps: Tensor
    """(15,), for each bin of confidence: correct predictions minus the sum of confidences."""

    @classmethod
    def zeros(cls, classes: int, device: torch.device | str = "cpu") -> DomainSums:
        """No images yet."""
        shapes: tuple[tuple[int, ...], ...] = ((2, classes), (), (ECE_BINS,))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> DomainSums:
        """The sums of one batch.

        Args:
            logits: (B, C) of the domain's classes.
            labels: (B,) int64, columns of the logits.
        """
        correct = logits.argmax(dim=-1) == labels
        counts = [of.bincount(minlength=logits.shape[1]) for of in (labels, labels[correct])]
        below = logits - logits.amax(dim=-1, keepdim=True)
        partition = below.exp().sum(dim=-1)
        nll = (partition.log() - below.gather(1, labels[:, None])[:, 0]).double().sum()
        confidence = partition.reciprocal()
        bins = (confidence.nan_to_num() * ECE_BINS).long().clamp(max=ECE_BINS - 1)
        gaps = nll.new_zeros(ECE_BINS)
        gaps.scatter_add_(0, bins, correct.double() - confidence.double())
        return cls(torch.stack(counts).double(), nll, gaps)

    def __add__(self, other: DomainSums) -> DomainSums:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return DomainSums(*(mine + its for mine, its in pairs))

    def reduce(self) -> DomainSums:
        """The sums of the images of all workers, on the CPU; a collective operation if several."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            for tensor in vars(self).values():
                dist.all_reduce(tensor)
        return DomainSums(*(tensor.cpu() for tensor in vars(self).values()))

    @property
    def number(self) -> int:
        """Number of scored images."""
        return int(self.classes[0].sum())

    def measures(self) -> dict[str, float]:
        """The values of `metrics.DIRECTIONS`; accuracies and calibration errors in percent.

        `class_acc` is the mean accuracy of the classes that occur, `ece` the mean over images of
        their bin's |accuracy - confidence|.
        """
        total, correct = self.classes
        number = float(total.sum())
        occurs = total > 0
        return {
            "acc": 100 * float(correct.sum()) / number,
            "class_acc": 100 * float((correct[occurs] / total[occurs]).mean()),
            "nll": float(self.nll) / number,
            "ece": 100 * float(self.gaps.abs().sum()) / number,
        }


@torch.no_grad()
def evaluate(
    models: Sequence[Classify],
    images: ImageDataset,
    batches: EvalBatches,
    *,
    class_map: ClassMap,
    note: Callable[[int, Tensor, Tensor, Tensor], object] | None = None,
) -> list[DomainSums]:
    """The sums of a domain for each model, on the CPU, the same on every worker.

    Each batch of images is read once for all models.

    Args:
        class_map: from the ID classes to the domain's own. Images that it leaves out are not
            scored.
        note: called with each batch: the index of its first image in the worker's share, its
            labels (B,), and the logits (B, K) of the last model and of the first one.
    """
    sums = [DomainSums.zeros(class_map.num_classes, batches.device) for _ in models]
    done = 0
    for views, labels in batches.of(images):
        labels = labels.to(batches.device)
        logits = [_in_memory(classify, views).float() for classify in models]
        for index, of_model in enumerate(logits):
            sums[index] += DomainSums.of(*class_map.score(of_model, labels))
        if note is not None:
            note(done, labels, logits[-1], logits[0])
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
