"""What is counted and summed over the images of one domain, and the measures made of it.

Workers add up counts and sums, and ratios are taken once at the end: an average of the workers'
averages would be wrong wherever their shares differ in size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.evaluation.calibration import (
    ECE_BINS,
    TEMPERATURES,
    UNSCALED,
    best_temperature,
    calibration_error,
    calibration_sums,
    temperature_index,
)

MEASURES = ("acc", "class_acc", "nll", "ece", "ece_scaled", "energy_gap", "feature_distortion")
"""Of a domain, as reports have them."""


@dataclass(frozen=True)
class DomainSums:
    """Of images of one domain and split: of a batch, of a worker's share, or of all.

    Float64 tensors. C classes of the domain, G temperatures.
    """

    total: Tensor
    """(C,) images of each class, those alone that are scored."""
    correct: Tensor
    """(C,) how many of them are classified correctly."""
    nll: Tensor
    """(G,) sum of the negative log-likelihoods at each temperature, in nats."""
    gaps: Tensor
    """(G, 15) see `calibration_sums`."""
    compared: Tensor
    """Scalar: images that the zero-shot model has seen as well, whether scored or not."""
    energy_gap: Tensor
    """Scalar: the sum over these of the squared change of their image-text scores."""
    feature_distortion: Tensor
    """Scalar: the sum over these of how far their features are from the zero-shot ones."""

    @classmethod
    def zeros(cls, classes: int, device: torch.device | str = "cpu") -> DomainSums:
        """Of no image, in a domain of so many classes."""
        grid = len(TEMPERATURES)
        shapes: list[tuple[int, ...]] = [(classes,), (classes,), (grid,), (grid, ECE_BINS)]
        shapes += [()] * 3
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    @classmethod
    def of(
        cls, logits: Tensor, labels: Tensor, energy_gaps: Tensor, distortions: Tensor
    ) -> DomainSums:
        """Of one batch.

        Args:
            logits: (B, C) of the domain's classes.
            labels: (B,) int64, columns of the logits.
            energy_gaps: (B') of the images that are compared with the zero-shot model; none of
                them, or all of the batch, of which a class map may have left some out above.
            distortions: (B') of the same.
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
        """Of the images of both."""
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        return DomainSums(*(mine + its for mine, its in pairs))

    def reduce(self) -> DomainSums:
        """Of the images of all workers, the same on each; every worker must ask for it."""
        own = self._tensors()
        flat = torch.cat([tensor.flatten() for tensor in own])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in own])
        return DomainSums(*(part.view_as(like) for part, like in zip(parts, own, strict=True)))

    def cpu(self) -> DomainSums:
        """The same in the CPU's memory."""
        return DomainSums(*(tensor.cpu() for tensor in self._tensors()))

    @property
    def number(self) -> int:
        """Of the images that are scored."""
        return int(self.total.sum())

    @property
    def temperature(self) -> float:
        """The one that fits these images; those of the ID validation split, if it is to be used.

        Never fit it on the images whose error after scaling is reported as a result.
        """
        return best_temperature(self.nll)

    def measures(self, temperature: float | None = None) -> dict[str, float]:
        """The ratios by their names in `MEASURES`.

        `class_acc` is the mean of the classes' accuracies, over those that occur. `energy_gap` and
        `feature_distortion` are there if images were compared, `ece_scaled` with a temperature.

        Args:
            temperature: by which logits are divided for `ece_scaled`, of the grid.
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
