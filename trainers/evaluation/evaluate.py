"""Accuracy, calibration, and distance from the zero-shot model, per domain, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.data.class_map import ClassMap
from trainers.data.dataset import ImageDataset
from trainers.data.transforms import normalise
from trainers.errors import ConfigError
from trainers.evaluation.domain_sums import DomainSums
from trainers.evaluation.predictions import Predictions
from trainers.hang import alive
from trainers.models.image import ImageInput


@dataclass(frozen=True)
class Drift:
    """The zero-shot model's side of a comparison; D features.

    With f and f0 the L2-normalised features of an image under the current and the zero-shot
    parameters, an image's energy gap is the mean over texts of ``(s <f, t_m> - s <f0, t_m>)^2``,
    which is ``s^2 (f - f0)' C (f - f0)`` with their second moment C, and its feature distortion is
    ``||f - f0||``. Nam, Heo and Lee, "Lipsum-FT" (arXiv 2404.00860), explain the effect of
    fine-tuning on robustness with both; half of this energy gap, s included, is their regulariser.
    Their released code has neither, so their published values may differ by such factors.
    """

    zero_shot_features: Tensor
    """(n, D) of one worker's share, as `image_features` returns them."""
    second_moment: Tensor
    """C: (D, D), ``mean_m t_m t_m'`` of L2-normalised text features."""
    logit_scale: float
    """s of the zero-shot model."""

    def of(self, features: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Energy gaps and distortions, (B,) each, float64, of L2-normalised features (B, D).

        The first of them is of the image with the index `first` in the worker's share.
        """
        zero_shot = self.zero_shot_features[first : first + len(features)]
        shift = (features - zero_shot.to(features.device)).double()
        moment = self.second_moment.to(shift)
        return self.logit_scale**2 * ((shift @ moment) * shift).sum(dim=-1), shift.norm(dim=-1)


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
        for views, labels in images.eval_batches(self.image_input, self.batch_size, *share):
            if len(labels):  # a worker may have no share of a very small domain
                yield normalise(views.to(self.device), self.image_input), labels
                alive()


@torch.no_grad()
def evaluate(
    classify: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: ImageDataset,
    batches: EvalBatches,
    *,
    class_map: ClassMap,
    drift: Drift | None = None,
    predictions: Predictions | None = None,
) -> DomainSums:
    """The sums of a domain, on the CPU, the same on every worker.

    Args:
        classify: images (B, 3, H, W) to L2-normalised features (B, D) and to logits (B, K) of the
            ID classes, both float32.
        class_map: from the ID classes to the domain's own. Images that it leaves out are compared
            with the zero-shot model, but not scored.
        drift: of the same batches; without it, `energy_gap` and `feature_distortion` are absent.
        predictions: those of this worker's share are added to it; needs `drift`.

    Raises:
        ConfigError: the class map leaves out every image.
    """
    sums, done = DomainSums.zeros(class_map.num_classes, batches.device), 0
    for views, labels in batches.of(images):
        features, logits = classify(views)
        none = features.new_zeros(0)
        shifts = (none, none) if drift is None else drift.of(features.float(), done)
        logits, labels = logits.float(), labels.to(batches.device)
        if predictions is not None and drift is not None:
            zero_shot = drift.zero_shot_features[done : done + len(labels)]
            predictions.add(done, labels, logits, zero_shot)
        done += len(labels)
        sums += DomainSums.of(*class_map.score(logits, labels), *shifts)
    sums = sums.reduce()
    if not sums.number:
        raise ConfigError(f"{images.name}: none of its images is of a class that is scored")
    return sums


@torch.no_grad()
def image_features(
    encode: Callable[[Tensor], Tensor], images: ImageDataset, batches: EvalBatches
) -> Tensor:
    """Features of one worker's share, in the order of `evaluate`: (n, D), on the CPU.

    Rounding depends on precision and batch size: with those of the evaluation, an unchanged model
    has distance 0 from itself. A worker without a share returns (0, 0). `encode` maps images (B, 3,
    H, W) to features (B, D).
    """
    found = [encode(views).float().cpu() for views, _ in batches.of(images)]
    return torch.cat(found) if found else torch.empty(0, 0)
