"""Counts and sums over the images of one domain, and the measures made of them.

Workers add up counts and sums, and ratios are computed once at the end: an average of the workers'
averages would be wrong if their shares differ in size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.evaluation.metrics import ECE_BINS


@dataclass(frozen=True)
class DomainSums:
    """Sums for one domain and split: of a batch, a worker's share, or all images.

    Float64 tensors. C classes of the domain.
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
        """The sums of the images of both."""
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
        """The values of `MEASURES`; accuracies and calibration errors in percent.

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
