"""Accuracy, calibration, and distance from the zero-shot model, per domain, in one pass.

`trainers.evaluation.accumulators` has the sums, `trainers.evaluation.calibration` those of the
calibration errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.config import DataConfig
from trainers.data.class_map import ClassMap
from trainers.data.dataset import ImageDataset
from trainers.data.transforms import normalise
from trainers.errors import ConfigError
from trainers.evaluation.accumulators import DomainSums
from trainers.evaluation.metrics import flat_metrics, temperature_name
from trainers.evaluation.predictions import Predictions
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
        """Energy gaps and distortions, (B,) each, float64.

        Args:
            features: (B, D), L2-normalised.
            first: index of the first of them in the worker's share.
        """
        zero_shot = self.zero_shot_features[first : first + len(features)]
        shift = (features - zero_shot.to(features.device)).double()
        moment = self.second_moment.to(shift)
        return self.logit_scale**2 * ((shift @ moment) * shift).sum(dim=-1), shift.norm(dim=-1)


@torch.no_grad()
def evaluate(
    classify: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: ImageDataset,
    image_input: ImageInput,
    *,
    batch_size: int,
    device: torch.device,
    class_map: ClassMap | None = None,
    drift: Drift | None = None,
    predictions: Predictions | None = None,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    lockstep: bool = False,
) -> DomainSums:
    """The accumulators of a domain, on the CPU, the same on every worker; see `summarise`.

    Args:
        classify: images (B, 3, H, W) to L2-normalised features (B, D) and to logits (B, K) of the
            ID classes, both float32.
        class_map: from the ID classes to the domain's own; by default they are the same. Images
            that it leaves out are compared with the zero-shot model, but not scored.
        drift: without it, `energy_gap` and `feature_distortion` are absent.
        predictions: those of this worker's share are added to it; needs `drift`.
        workers: processes that decode images; 0 decodes in this one.
        rank: of this worker, which evaluates its share.
        lockstep: call `classify` equally often on every worker, with a blank image if a worker has
            none left: required by sharded models, whose forward pass is a collective operation.

    Raises:
        ConfigError: the class map leaves out every image.
        ValueError: the number of images of `drift` is not that of this worker's share, or
            `predictions` without `drift`.
    """
    if predictions is not None and drift is None:
        raise ValueError(f"{images.name}: predictions need the zero-shot features of `drift`")
    share = _share(images, rank, world_size)
    if drift is not None and len(drift.zero_shot_features) != share:
        raise ValueError(
            f"{images.name}: {len(drift.zero_shot_features)} zero-shot features of a share of "
            f"{share} images"
        )
    classes = len(images.class_names) if class_map is None else class_map.num_classes
    sums, done, calls = DomainSums.zeros(classes, device), 0, 0
    for views, labels in images.eval_batches(image_input, batch_size, rank, world_size, workers):
        if not len(labels):  # a worker may have no share of a very small domain
            continue
        features, logits = classify(normalise(views.to(device), image_input))
        none = features.new_zeros(0)
        shifts = (none, none) if drift is None else drift.of(features.float(), done)
        logits, labels = logits.float(), labels.to(device)
        if predictions is not None and drift is not None:
            zero_shot = drift.zero_shot_features[done : done + len(labels)]
            predictions.add(done, labels, logits, zero_shot)
        done, calls = done + len(labels), calls + 1
        if class_map is not None:
            logits, labels = class_map.score(logits, labels)
        sums += DomainSums.of(logits, labels, *shifts)
    if lockstep:
        for blank in _missing(images, image_input, calls, batch_size, world_size):
            classify(blank.to(device))
    if world_size > 1:
        sums = sums.reduce()
    if not sums.number:
        raise ConfigError(f"{images.name}: none of its images is of a class that is scored")
    return sums.cpu()


@torch.no_grad()
def image_features(
    encode: Callable[[Tensor], Tensor],
    images: ImageDataset,
    image_input: ImageInput,
    *,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    lockstep: bool = False,
) -> Tensor:
    """Features of one worker's share, in the order of `evaluate`: (n, D), on the CPU.

    Rounding depends on precision and batch size: with those of the evaluation, an unchanged model
    has distance 0 from itself. A worker without a share returns (0, 0). The arguments are those of
    `evaluate`, with `encode` from images (B, 3, H, W) to features (B, D).
    """
    batches = images.eval_batches(image_input, batch_size, rank, world_size, workers)
    found = [
        encode(normalise(views.to(device), image_input)).float().cpu()
        for views, labels in batches
        if len(labels)
    ]
    if lockstep:
        for blank in _missing(images, image_input, len(found), batch_size, world_size):
            encode(blank.to(device))
    return torch.cat(found) if found else torch.empty(0, 0)


def _missing(
    images: ImageDataset, image_input: ImageInput, calls: int, batch_size: int, world_size: int
) -> Iterator[Tensor]:
    """A blank image for each batch that the first worker, with the largest share, has more."""
    for _ in range(calls, math.ceil(_share(images, 0, world_size) / batch_size)):
        yield torch.zeros(1, 3, image_input.size, image_input.size)


def _share(images: ImageDataset, rank: int, world_size: int) -> int:
    """Number of images that a worker evaluates."""
    return len(images.eval_rows[rank::world_size])


def summarise(
    by_domain: Mapping[str, DomainSums],
    data: DataConfig,
    split: str,
    temperature: float | None = None,
) -> dict[str, float]:
    """The reported metrics: those of `flat_metrics`, and `id_<split>/temperature`.

    Args:
        temperature: of `ece_scaled` in all domains. None, only for `val`, fits it on the ID images.

    Raises:
        ValueError: no temperature for another split than `val`.
    """
    if temperature is None:
        if split != "val":
            raise ValueError(f"{split}: the temperature is fitted on the validation split only")
        temperature = by_domain[data.id_domain].temperature
    measures = {domain: sums.measures(temperature) for domain, sums in by_domain.items()}
    return flat_metrics(measures, data, split) | {temperature_name(split): temperature}
