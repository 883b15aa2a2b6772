"""The table of a search's model: its test accuracy, alone and beside others."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.runs.confirmation import SPLIT, Confirmation, Estimate
from tuning.runs.model import OWN, Model, coverage_in_words, findings
from tuning.views.result_table import Cell, ResultTable


def model_table(confirmation: Confirmation, models: Sequence[Model]) -> ResultTable | None:
    """The last model that was tested, and below it earlier ones; None without any."""
    if not models:
        return None
    *earlier, model = models
    search = confirmation.search
    domains = {ID: f"{search.id_domain}\n(ID)"}
    if search.ood_domains:
        domains[MEAN_OOD] = "OOD\nmean"
    domains |= {domain: domain for domain in search.ood_domains}
    metrics = [str(MetricKey(SPLIT, domain, "acc")) for domain in domains]
    rows: list[Sequence[Cell]] = []
    notes = [f"The model is {model.made_of()}."]
    of_model = findings(confirmation, model)
    for found in of_model:
        is_own = found.label == OWN
        label = Text(OWN, "bold") if is_own else f"more {found.label}"
        cells = [_cell(found.values.get(metric), "" if is_own else "+") for metric in metrics]
        rows.append([label, *cells])
    if covers := coverage_in_words(of_model):
        notes.append(f"{covers}.")
    for one in reversed(earlier):
        for found in findings(confirmation, one):
            if found.label == OWN:
                cells = [_cell(found.values.get(metric), "") for metric in metrics]
                rows.append([f"an earlier model: {one.made_of()}", *cells])
    title = f"{search.name}, the model, test splits, in percent"
    return ResultTable(["", *domains.values()], rows, notes, title)


def _cell(value: Estimate | None, sign: str) -> str:
    if value is None:
        return "-"
    margin = "" if math.isnan(value.low) else f" ± {value.high - value.mean:.1f}"
    return f"{value.mean:{sign}z.1f}{margin}"
