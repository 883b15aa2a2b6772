"""Metric accumulators of one domain: counts and sums over its images, and the measures of them.

Workers add up counts and sums, and ratios are computed once at the end: an average of the workers'
averages would be wrong if their shares differ in size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.evaluation.calibration import (
    TEMPERATURES,
    UNSCALED,
    best_temperature,
    calibration_error,
    calibration_sums,
    temperature_index,
)
from trainers.evaluation.metrics import ECE_BINS


@dataclass(frozen=True)
class DomainSums:
    """Metric accumulators for one domain and split: of a batch, a worker's share, or all images.

    Float64 tensors. C classes of the domain, G temperatures.
    """

    total: Tensor
    """(C,) number of scored images of each class."""
    correct: Tensor
    """(C,) number of correctly classified images of each class."""
    nll: Tensor
    """(G,) sum of the negative log-likelihoods at each temperature, in nats."""
    gaps: Tensor
    """(G, 15), see `calibration_sums`."""
    compared: Tensor
    """Scalar: number of images compared with the zero-shot model, scored or not."""
    energy_gap: Tensor
    """Scalar: sum over these of the squared change of their image-text scores."""
    feature_distortion: Tensor
    """Scalar: sum over these of the distance of their features from the zero-shot ones."""

    @classmethod
    def zeros(cls, classes: int, device: torch.device | str = "cpu") -> DomainSums:
        """Empty accumulators."""
        grid = len(TEMPERATURES)
        shapes: list[tuple[int, ...]] = [(classes,), (classes,), (grid,), (grid, ECE_BINS)]
        shapes += [()] * 3
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    @classmethod
    def of(
        cls, logits: Tensor, labels: Tensor, energy_gaps: Tensor, distortions: Tensor
    ) -> DomainSums:
        """Accumulators of one batch.

        Args:
            logits: (B, C) of the domain's classes.
            labels: (B,) int64, columns of the logits.
            energy_gaps: (B') of the images compared with the zero-shot model: none, or all of the
                batch, including those that a class map excludes from scoring.
            distortions: (B') of the same images.
        """
        classes, double = logits.shape[1], torch.float64
        hits = labels[logits.argmax(dim=-1) == labels]
        nll, gaps = calibration_sums(logits, labels)
        return cls(
            total=labels.bincount(minlength=classes).to(double),
            correct=hits.bincount(minlength=classes).to(double),
            nll=nll,
            gaps=gaps,
            compared=nll.new_tensor(len(distortions)),
            energy_gap=energy_gaps.to(double).sum(),
            feature_distortion=distortions.to(double).sum(),
        )

    def __add__(self, other: DomainSums) -> DomainSums:
        """Accumulators of the images of both."""
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        return DomainSums(*(mine + its for mine, its in pairs))

    def reduce(self) -> DomainSums:
        """Accumulators of the images of all workers; a collective operation."""
        own = self._tensors()
        flat = torch.cat([tensor.flatten() for tensor in own])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in own])
        return DomainSums(*(part.view_as(like) for part, like in zip(parts, own, strict=True)))

    def cpu(self) -> DomainSums:
        """A copy on the CPU."""
        return DomainSums(*(tensor.cpu() for tensor in self._tensors()))

    @property
    def number(self) -> int:
        """Number of scored images."""
        return int(self.total.sum())

    @property
    def temperature(self) -> float:
        """The temperature with the least NLL on these images.

        Use that of the ID validation split: a temperature fitted on the evaluated images makes
        `ece_scaled` too optimistic.
        """
        return best_temperature(self.nll)

    def measures(self, temperature: float | None = None) -> dict[str, float]:
        """The values of `MEASURES`.

        `class_acc` is the mean accuracy of the classes that occur. `energy_gap` and
        `feature_distortion` exist if images were compared, `ece_scaled` if a temperature is given,
        by which it divides the logits.
        """
        number, occurs = float(self.total.sum()), self.total > 0
        found = {
            "acc": 100 * float(self.correct.sum()) / number,
            "class_acc": 100 * float((self.correct[occurs] / self.total[occurs]).mean()),
            "nll": float(self.nll[UNSCALED]) / number,
            "ece": calibration_error(self.gaps[UNSCALED], number),
        }
        if temperature is not None:
            scaled = self.gaps[temperature_index(temperature)]
            found["ece_scaled"] = calibration_error(scaled, number)
        if compared := float(self.compared):
            found["energy_gap"] = float(self.energy_gap) / compared
            found["feature_distortion"] = float(self.feature_distortion) / compared
        return found

    def _tensors(self) -> list[Tensor]:
        return list(vars(self).values())
