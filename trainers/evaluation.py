"""Accuracy, negative log-likelihood and calibration error of a classifier, per domain.

Workers add up counts and sums, and ratios are taken once at the end: an average of the workers'
averages would be wrong wherever their shares differ in size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.config import DataConfig
from trainers.data.pictures import Pictures
from trainers.data.views import normalise
from trainers.models import ImageInput

ECE_BINS = 15
MEASURES = ("acc", "nll", "ece")


@torch.no_grad()
def evaluate(
    classify: Callable[[Tensor], Tensor],
    pictures: Pictures,
    image_input: ImageInput,
    *,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, float]:
    """`acc` (percent), `nll` (nats) and `ece` (percent, 15 equal bins) of all the pictures.

    Args:
        classify: pictures (B, 3, H, W) to logits (B, K).
        pictures: of one domain and split.
        image_input: size and normalisation of the pictures.
        batch_size: of a forward pass.
        device: where `classify` runs.
        rank: of this worker; each evaluates its share, and all return the same figures.
        world_size: number of workers.
    """
    sums = torch.zeros(3 + 3 * ECE_BINS, dtype=torch.float64, device=device)
    batches = pictures.eval_batches(image_input.size, batch_size, rank, world_size)
    for views, labels in batches:
        logits = classify(normalise(views.to(device), image_input)).float()
        sums += _sums(logits, labels.to(device))
    if world_size > 1:
        dist.all_reduce(sums)
    return _ratios(sums)


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Number, correct, sum of NLL; then per bin: number, correct, sum of confidence."""
    log_probabilities = logits.log_softmax(dim=-1)
    confidence, predicted = log_probabilities.exp().max(dim=-1)
    correct = (predicted == labels).double()
    nll = -log_probabilities.gather(1, labels[:, None]).sum()
    bins = (confidence.nan_to_num() * ECE_BINS).long().clamp(max=ECE_BINS - 1)
    per_bin = torch.zeros(3, ECE_BINS, dtype=torch.float64, device=logits.device)
    for row, values in enumerate((torch.ones_like(correct), correct, confidence.double())):
        per_bin[row].index_add_(0, bins, values)
    total = torch.stack([correct.new_tensor(len(labels)), correct.sum(), nll.double()])
    return torch.cat([total, per_bin.flatten()])


def _ratios(sums: Tensor) -> dict[str, float]:
    number, correct, nll = sums[:3].tolist()
    _, bin_correct, bin_confidence = sums[3:].view(3, ECE_BINS)
    return {
        "acc": 100 * correct / number,
        "nll": nll / number,
        "ece": 100 * float((bin_correct - bin_confidence).abs().sum()) / number,
    }


def summarise(
    by_domain: Mapping[str, Mapping[str, float]], data: DataConfig, split: str
) -> dict[str, float]:
    """The flat metrics that users see, such as `id_val/acc` and `ood_val/sketch/acc`.

    `ood_<split>/mean_acc` is the mean over the OOD domains, and `<split>/mean_acc` the mean of
    that and the ID accuracy: neither distribution counts more than the other.
    """
    flat = {f"id_{split}/{name}": by_domain[data.id_domain][name] for name in MEASURES}
    for domain in data.ood_domains:
        flat |= {f"ood_{split}/{domain}/{name}": by_domain[domain][name] for name in MEASURES}
    if data.ood_domains:
        accuracies = [by_domain[domain]["acc"] for domain in data.ood_domains]
        flat[f"ood_{split}/mean_acc"] = sum(accuracies) / len(accuracies)
        flat[f"{split}/mean_acc"] = (flat[f"id_{split}/acc"] + flat[f"ood_{split}/mean_acc"]) / 2
    return flat


def metric_names(data: DataConfig, split: str = "val") -> Sequence[str]:
    """The names that `summarise` gives for this data."""
    blank = dict.fromkeys(MEASURES, 0.0)
    return tuple(summarise(dict.fromkeys((data.id_domain, *data.ood_domains), blank), data, split))
