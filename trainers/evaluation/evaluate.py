"""Accuracy, calibration, and distance from the zero-shot model, per domain, in one pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from trainers.data.class_map import ClassMap
from trainers.data.dataset import ImageDataset
from trainers.errors import ConfigError, is_memory_exhausted
from trainers.evaluation.batches import EvalBatches
from trainers.evaluation.domain_sums import DomainSums
from trainers.evaluation.predictions import Predictions
from trainers.models.zero_shot import ZeroShotModel

Classify: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images (B, 3, H, W) to L2-normalised features (B, D) and to logits (B, K) of the ID classes, both
float32."""


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
    zero_shot: ZeroShotModel
    """Its `logit_scale` is s."""

    def of(self, features: Tensor, zero_shot_features: Tensor) -> tuple[Tensor, Tensor]:
        """Energy gaps and distortions, (B,) each, float64, of L2-normalised features (B, D)."""
        shift = (features - zero_shot_features).double()
        gaps = ((shift @ self.second_moment.to(shift)) * shift).sum(dim=-1)
        return self.zero_shot.logit_scale**2 * gaps, shift.norm(dim=-1)


@torch.no_grad()
def evaluate(
    models: Sequence[Classify | None],
    images: ImageDataset,
    batches: EvalBatches,
    *,
    class_map: ClassMap,
    drift: Drift | None = None,
    predictions: Predictions | None = None,
) -> list[DomainSums]:
    """The sums of a domain for each model, on the CPU, the same on every worker.

    Each batch of images is read once for all models.

    Args:
        models: None is the zero-shot model, by its features in `drift`.
        class_map: from the ID classes to the domain's own. Images that it leaves out are compared
            with the zero-shot model, but not scored.
        drift: of the same batches; without it, `energy_gap` and `feature_distortion` are absent.
        predictions: those of the last model are added to it; needs `drift`.

    Raises:
        ConfigError: the class map leaves out every image.
    """
    sums, done = [DomainSums.zeros(class_map.num_classes, batches.device) for _ in models], 0
    for views, labels in batches.of(images):
        labels = labels.to(batches.device)
        if drift is not None:
            before = drift.zero_shot_features[done : done + len(labels)].to(batches.device)
            known = before, drift.zero_shot.logits(before)
        for index, classify in enumerate(models):
            features, logits = known if classify is None else _in_memory(classify, views)
            shifts = logits.new_zeros(2, 0)
            if drift is not None:
                shifts = torch.stack(drift.of(features.float(), before))
            sums[index] += DomainSums.of(*class_map.score(logits.float(), labels), *shifts)
        if predictions is not None:
            predictions.add(done, labels, logits.float(), known[1])
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

    Rounding depends on precision and batch size: with those of the evaluation, an unchanged model
    has distance 0 from itself. A worker without a share returns (0, 0). `encode` maps images (B, 3,
    H, W) to features (B, D).
    """
    found = []
    for views, _ in batches.of(images):
        (features,) = _in_memory(lambda some: (encode(some),), views)
        found.append(features.float().cpu())
    return torch.cat(found) if found else torch.empty(0, 0)


def _in_memory(
    compute: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor
) -> tuple[Tensor, ...]:
    """What is computed of a batch; if that does not fit into memory, of half as many at a time."""
    try:
        return compute(images)
    except RuntimeError as error:
        if len(images) == 1 or not is_memory_exhausted(error):
            raise
    # Outside of the handler, whose traceback keeps what was computed in memory.
    halves = [_in_memory(compute, half) for half in images.chunk(2)]
    return tuple(torch.cat(parts) for parts in zip(*halves, strict=True))
