"""The table of a soup and its ingredients."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, val_acc
from tuning.reporting.formatting import format_gap, format_percent
from tuning.runs.records import ZERO_SHOT
from tuning.weights.soup import FinishedSoup

_ECE = "id_val/ece"


def soup_report(finished: FinishedSoup) -> RenderableType:
    """The zero-shot model, the ingredients, the soup, and explanations."""
    search, recipe = finished.search, finished.recipe
    metrics = {f"{search.id_domain}\n(ID)": ID_ACC, "OOD\nmean": OOD_MEAN_ACC}
    metrics |= {domain: val_acc(domain) for domain in search.ood_domains}
    metrics["ID\nECE"] = _ECE
    table = Table(title=f"{escape(search.name)}, {recipe} soup", header_style="bold")
    for header in ("", "method"):
        table.add_column(header, no_wrap=True)
    for header in metrics:
        table.add_column(escape(header), justify="right", no_wrap=True)
    table.add_column("in the soup", no_wrap=True)

    def row(title: str, method: str, of: Mapping[str, float], note: str, style: str = "") -> None:
        figures = (format_percent(of.get(name)) for name in metrics.values())
        table.add_row(escape(title), escape(method), *figures, note, style=style)

    row(ZERO_SHOT, "", search.zero_shot, "", "dim")
    rejected = {step.ingredient: step.id_acc for step in finished.soup.steps}
    for index, ingredient in enumerate(finished.ingredients):
        record = ingredient.record
        is_used = index in finished.soup.used
        part = "yes" if is_used else f"no: ID {format_percent(rejected[index])}"
        row(record.trial_id, search.method(record) or "", record.metrics, part)
    table.add_section()
    title = f"{recipe} soup"
    row(title, "", finished.soup.metrics, f"{len(finished.used)} trials", "bold green")
    return Group(table, *_notes(finished))


def _notes(finished: FinishedSoup) -> list[str]:
    soup, search = finished.soup.metrics, finished.search
    lines = ["Validation accuracy and calibration error in percent."]
    if finished.recipe == "greedy":
        lines.append(
            "Greedy decides by the ID validation accuracy, so that of the soup is optimistic; `no` "
            "is followed by its ID accuracy with that trial."
        )
    best = finished.ingredients[0].record
    gaps = [
        f"{format_gap(soup[name] - known)} {text}"
        for name, text in ((ID_ACC, "ID"), (OOD_MEAN_ACC, "OOD mean"))
        if name in soup and (known := best.last(name)) is not None
    ]
    lines.append(f"Against {best.trial_id}, the best in ID accuracy: {', '.join(gaps)}.")
    if search.sees_ood:
        lines.append("The search of the ingredients looked at OOD validation data.")
    return [escape(line) for line in lines]
