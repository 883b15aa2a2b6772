"""The measures of several domains under the names that users see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Domains(Protocol):
    """Which domain is fine-tuned on, and which are its shifts: a `DataConfig` says so, too."""

    @property
    def id_domain(self) -> str:
        """Fine-tuned on."""

    @property
    def ood_domains(self) -> Sequence[str]:
        """Only evaluated."""


def flat_metrics(
    by_domain: Mapping[str, Mapping[str, float]], data: Domains, split: str
) -> dict[str, float]:
    """The measures of all domains under names such as `id_val/acc` and `ood_val/sketch/acc`.

    `ood_<split>/mean_acc` is the mean over the OOD domains, as for every other measure, and
    `<split>/mean_acc` the mean of that and the ID accuracy: neither distribution counts more than
    the other. Both are left out where an OOD domain is missing.
    """
    of_id = by_domain[data.id_domain]
    flat = {f"id_{split}/{name}": value for name, value in of_id.items()}
    measured = [domain for domain in data.ood_domains if domain in by_domain]
    for domain in measured:
        flat |= {f"ood_{split}/{domain}/{name}": v for name, v in by_domain[domain].items()}
    if measured and len(measured) == len(data.ood_domains):
        for name in of_id:
            values = [by_domain[domain][name] for domain in data.ood_domains]
            flat[f"ood_{split}/mean_{name}"] = sum(values) / len(values)
        flat[f"{split}/mean_acc"] = (flat[f"id_{split}/acc"] + flat[f"ood_{split}/mean_acc"]) / 2
    return flat


def temperature_name(split: str) -> str:
    """What the temperature of `ece_scaled` is called in reports."""
    return f"id_{split}/temperature"
