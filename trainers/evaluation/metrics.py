"""Names of metrics, which only `MetricKey` composes and parses.

Accuracies and calibration errors are percentages, 0 to 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from trainers.data.config import DataConfig

# No domain can have these names, since a domain is a folder.
ID = "/id"
"""Stands for the ID domain in `MetricKey.domain`."""
MEAN_OOD = "/mean"
"""Stands for the mean over the OOD domains."""
MEAN_ID_OOD = "/both"
"""Stands for the mean of the ID value and the mean OOD value."""


@dataclass(frozen=True)
class MetricKey:
    """One measure on one split of one domain.

    | domain | written as |
    |---|---|
    | `ID` | `id_val/acc` |
    | `"sketch"`, an OOD domain | `ood_val/sketch/acc` |
    | `MEAN_OOD` | `ood_val/mean_acc` |
    | `MEAN_ID_OOD` | `val/mean_acc`, `val/mean_nll` |
    """

    split: str
    """`val` or `test`."""
    domain: str
    """`ID`, `MEAN_OOD`, `MEAN_ID_OOD`, or the name of an OOD domain."""
    measure: str
    """`acc`, `nll`, `ece`, ..."""

    def __str__(self) -> str:
        if self.domain == ID:
            return f"id_{self.split}/{self.measure}"
        if self.domain == MEAN_OOD:
            return f"ood_{self.split}/mean_{self.measure}"
        if self.domain == MEAN_ID_OOD:
            return f"{self.split}/mean_{self.measure}"
        return f"ood_{self.split}/{self.domain}/{self.measure}"

    @classmethod
    def parse(cls, name: str) -> MetricKey | None:
        """Inverse of `str`; None for another name, such as `train/loss`."""
        group, _, rest = name.partition("/")
        kind, _, split = group.rpartition("_")
        domain, slash, measure = rest.rpartition("/")
        if split not in ("val", "test") or not measure:
            return None
        if kind == "id" and not slash:
            return cls(split, ID, measure)
        if kind == "ood" and slash:
            return cls(split, domain, measure)
        mean, is_mean = measure.removeprefix("mean_"), measure.startswith("mean_")
        if is_mean and not slash and kind in ("", "ood"):
            return cls(split, MEAN_OOD if kind else MEAN_ID_OOD, mean)
        return None

    @property
    def uses_ood(self) -> bool:
        """Whether the value depends on OOD images."""
        return self.domain != ID


ID_ACC = str(MetricKey("val", ID, "acc"))
OOD_MEAN_ACC = str(MetricKey("val", MEAN_OOD, "acc"))
MEAN_ACC = str(MetricKey("val", MEAN_ID_OOD, "acc"))
REPORTED = (
    "train/loss",
    "train/task_loss",
    "train/reg",
    "train/grad_norm",
    "train/lr",
    "train/images_per_s",
    "train/micro_batch_size",
    "eval/images",
    "cost/seconds",
    "cost/eval_seconds",
    "cost/gpu_seconds",
    "cost/cpu_seconds",
    "cost/memory_gb",
    "cost/gpu_memory_gb",
    "cost/gpu_util",
)
"""Names in reports, besides `metric_names`: the last two on GPUs only."""


def val_acc(domain: str) -> str:
    """Name of the validation accuracy on an OOD domain."""
    return str(MetricKey("val", domain, "acc"))


ECE_BINS: Final = 15
"""Bins of confidence of equal width for `ece`."""

DIRECTIONS: Final[Mapping[str, Literal["max", "min"]]] = {
    "acc": "max", "class_acc": "max", "nll": "min", "ece": "min",
}  # fmt: skip
"""The measures of a domain in reports, and whether more or less of each is better."""


def direction(name: str) -> Literal["max", "min"] | None:
    """Whether more (`max`) or less of a metric is better; None if it is no measure of a domain."""
    key = MetricKey.parse(name)
    return DIRECTIONS.get(key.measure) if key else None


def in_percent(name: str) -> bool:
    """Whether a metric lies between 0 and 100: accuracies and calibration errors."""
    key = MetricKey.parse(name)
    return key is not None and key.measure in ("acc", "class_acc", "ece")


def flat_metrics(
    by_domain: Mapping[str, Mapping[str, float]], data: DataConfig, split: str
) -> dict[str, float]:
    """The measures of all domains and their means under the names of `MetricKey`.

    Every measure has a mean over the OOD domains. Accuracy and NLL have one of ID and OOD: the
    arithmetic mean of the accuracies, and the geometric mean of the NLLs, so that neither counts
    more because it is larger. All means are left out if an OOD domain is missing.
    """
    of_id = by_domain[data.id_domain]
    measured = [domain for domain in data.ood_domains if domain in by_domain]
    flat = {MetricKey(split, ID, measure): value for measure, value in of_id.items()}
    for domain in measured:
        flat |= {MetricKey(split, domain, m): value for m, value in by_domain[domain].items()}
    if measured and len(measured) == len(data.ood_domains):
        for measure in of_id:
            values = [by_domain[domain][measure] for domain in measured]
            flat[MetricKey(split, MEAN_OOD, measure)] = sum(values) / len(values)
        (id_acc, ood_acc), (id_nll, ood_nll) = (
            (flat[MetricKey(split, ID, measure)], flat[MetricKey(split, MEAN_OOD, measure)])
            for measure in ("acc", "nll")
        )
        flat[MetricKey(split, MEAN_ID_OOD, "acc")] = (id_acc + ood_acc) / 2
        flat[MetricKey(split, MEAN_ID_OOD, "nll")] = math.sqrt(id_nll * ood_nll)
    return {str(key): value for key, value in flat.items()}


def metric_names(data: DataConfig) -> Sequence[str]:
    """The names of the metrics of the validation splits."""
    blank = dict.fromkeys((data.id_domain, *data.ood_domains), dict.fromkeys(DIRECTIONS, 0.0))
    return tuple(flat_metrics(blank, data, "val"))
