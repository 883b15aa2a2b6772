"""Counts and sums over the images of one domain, and the measures made of them.

Workers add up counts and sums, and ratios are computed once at the end: an average of the workers'
averages would be wrong if their shares differ in size.

Calibration errors are measured before and after temperature scaling (Guo, Pleiss, Sun and
Weinberger, ICML 2017, arXiv 1706.04599): logits are divided by a temperature T > 0, which changes
no prediction, and T minimises the negative log-likelihood on validation images. T comes from a
fixed grid, with sums at each temperature, so no logits are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.evaluation.metrics import ECE_BINS

TEMPERATURES: Final = tuple(2 ** (n / 8) for n in range(-24, 25))
"""G = 49 temperatures from 1/8 to 8, each 9 % larger than the previous one."""
UNSCALED: Final = TEMPERATURES.index(1.0)
"""Index of temperature 1."""


@dataclass(frozen=True)
class DomainSums:
    """Sums for one domain and split: of a batch, a worker's share, or all images.

    Float64 tensors. C classes of the domain, G temperatures.
    """

    classes: Tensor
    """(2, C) number of scored images of each class, and of those classified correctly."""
    nll: Tensor
    """(G,) sum of the negative log-likelihoods at each temperature, in nats."""
    gaps: Tensor
    """(G, 15), for each bin of confidence: correct predictions minus the sum of confidences."""
    drift: Tensor
    """(3,) number of images compared with the zero-shot model, scored or not, and sums over these:
    squared change of their image-text scores, distance of their features from the zero-shot
    ones."""

    @classmethod
    def zeros(cls, classes: int, device: torch.device | str = "cpu") -> DomainSums:
        """No images yet."""
        grid = len(TEMPERATURES)
        shapes = ((2, classes), (grid,), (grid, ECE_BINS), (3,))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    @classmethod
    def of(
        cls, logits: Tensor, labels: Tensor, energy_gaps: Tensor, distortions: Tensor
    ) -> DomainSums:
        """The sums of one batch.

        Args:
            logits: (B, C) of the domain's classes.
            labels: (B,) int64, columns of the logits.
            energy_gaps: (B') of the images compared with the zero-shot model: none, or all of the
                batch, including those that a class map excludes from scoring.
            distortions: (B') of the same images.
        """
        correct = logits.argmax(dim=-1) == labels
        counts = [of.bincount(minlength=logits.shape[1]) for of in (labels, labels[correct])]
        below = logits - logits.amax(dim=-1, keepdim=True)
        # One temperature at a time: all at once would need 49 times the memory of the logits.
        scaled = torch.empty_like(below)
        partition = torch.stack(  # (G, B)
            [torch.div(below, t, out=scaled).exp_().sum(dim=-1) for t in TEMPERATURES]
        )
        of_label = below.gather(1, labels[:, None]).T / below.new_tensor(TEMPERATURES)[:, None]
        nll = (partition.log() - of_label).double().sum(dim=1)
        confidence = partition.reciprocal()
        bins = (confidence.nan_to_num() * ECE_BINS).long().clamp(max=ECE_BINS - 1)
        gaps = nll.new_zeros(len(TEMPERATURES), ECE_BINS)
        gaps.scatter_add_(1, bins, correct.double() - confidence.double())
        number = nll.new_tensor(len(distortions))
        drift = torch.stack([number, energy_gaps.double().sum(), distortions.double().sum()])
        return cls(torch.stack(counts).double(), nll, gaps, drift)

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

    @property
    def temperature(self) -> float:
        """The temperature with the least NLL on these images; 1 if no NLL is finite.

        Use that of the ID validation split: a temperature fitted on the evaluated images makes
        `ece_scaled` too optimistic.
        """
        if not bool(self.nll.isfinite().any()):
            return 1.0
        return TEMPERATURES[int(self.nll.nan_to_num(nan=math.inf).argmin())]

    def measures(self, temperature: float | None = None) -> dict[str, float]:
        """The values of `MEASURES`; accuracies and calibration errors in percent.

        `class_acc` is the mean accuracy of the classes that occur. `energy_gap` and
        `feature_distortion` exist if images were compared, `ece_scaled` if a temperature is given,
        by which it divides the logits.
        """
        total, correct = self.classes
        number, occurs = float(total.sum()), total > 0

        def calibration_error(column: int) -> float:
            """The mean over images of their bin's |accuracy - confidence|."""
            return 100 * float(self.gaps[column].abs().sum()) / number

        found = {
            "acc": 100 * float(correct.sum()) / number,
            "class_acc": 100 * float((correct[occurs] / total[occurs]).mean()),
            "nll": float(self.nll[UNSCALED]) / number,
            "ece": calibration_error(UNSCALED),
        }
        if temperature is not None:
            nearest = min(
                range(len(TEMPERATURES)), key=lambda n: abs(TEMPERATURES[n] - temperature)
            )
            found["ece_scaled"] = calibration_error(nearest)
        compared, energy_gaps, distortions = self.drift.tolist()
        if compared:
            found["energy_gap"] = energy_gaps / compared
            found["feature_distortion"] = distortions / compared
        return found
