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
from trainers.data.class_map import ClassMap
from trainers.data.pictures import Pictures
from trainers.data.views import normalise
from trainers.errors import ConfigError
from trainers.models import ImageInput

ECE_BINS = 15
MEASURES = ("acc", "nll", "ece")
"""Of a domain, as reports have them; `evaluate` also counts the pictures."""


@torch.no_grad()
def evaluate(
    classify: Callable[[Tensor], Tensor],
    pictures: Pictures,
    image_input: ImageInput,
    *,
    batch_size: int,
    device: torch.device,
    class_map: ClassMap | None = None,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, float]:
    """`acc` (percent), `nll` (nats), `ece` (percent, 15 equal bins) and `count` of the pictures.

    Args:
        classify: pictures (B, 3, H, W) to logits (B, K) of the ID classes.
        pictures: of one domain and split.
        image_input: size and normalisation of the pictures.
        batch_size: of a forward pass.
        device: where `classify` runs.
        class_map: from the ID classes to the domain's own; by default they are the same.
        workers: processes that decode pictures; 0 decodes in this one.
        rank: of this worker; each evaluates its share, and all return the same figures.
        world_size: number of workers.

    Raises:
        ConfigError: the class map leaves every picture out.
    """
    sums = torch.zeros(3 + 3 * ECE_BINS, dtype=torch.float64, device=device)
    batches = pictures.eval_batches(image_input, batch_size, rank, world_size, workers)
    for views, labels in batches:
        if not len(labels):  # a worker may have no share of a very small domain
            continue
        logits = classify(normalise(views.to(device), image_input)).float()
        labels = labels.to(device)
        if class_map is not None:
            logits, labels = class_map.score(logits, labels)
        sums += _sums(logits, labels)
    if world_size > 1:
        dist.all_reduce(sums)
    if not sums[0]:
        raise ConfigError(f"{pictures.name}: none of its pictures is of a class that is scored")
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
        "count": number,
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
