"""Which model to fine-tune: several models by zero-shot accuracy on the validation splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.markup import escape
from rich.table import Table

from trainers.config import TrialConfig
from trainers.errors import ConfigError
from tuning.views.result_table import borderless_table
from tuning.zero_shot.evaluate import Row, measure


@dataclass(frozen=True)
class Ranked:
    """One model."""

    name: str
    rows: Sequence[Row]
    """Its domains, the ID domain first."""

    @property
    def acc(self) -> float:
        """Mean of ID and mean OOD accuracy, in percent; ID accuracy alone without OOD domains."""
        first, *others = (row.acc for row in self.rows)
        return (first + fmean(others)) / 2 if others else first


def rank(
    configs: Sequence[tuple[str, TrialConfig]],
    began: Callable[[str], None] = lambda name: None,
) -> list[Ranked]:
    """The models of several configurations, best first by zero-shot accuracy.

    Raises:
        ConfigError: they have other data, or see `measure`.
    """
    (first, reference), *others = configs
    for name, config in others:
        if (config.data.root, config.data.domains) != (reference.data.root, reference.data.domains):
            raise ConfigError(f"its images are not those of {first}", source=name)
    found = []
    for name, config in configs:
        began(name)
        found.append(Ranked(name, measure(config, "val")))
    return sorted(found, key=lambda ranked: -ranked.acc)


def ranking_table(ranked: Sequence[Ranked]) -> Table:
    """One row per model."""
    table = borderless_table("", "ID acc, %", "mean OOD acc, %")
    for one in ranked:
        first, *others = one.rows
        ood = f"{fmean(row.acc for row in others):.2f}" if others else ""
        acc = f"{first.acc:.2f} ± {first.error:.2f}"
        table.add_row(escape(one.name), acc, ood)
    return table
