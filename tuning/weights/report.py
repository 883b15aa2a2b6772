"""The table of a soup and its ingredients."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, val_acc
from tuning.runs.records import ZERO_SHOT
from tuning.weights.soup import FinishedSoup


def soup_report(finished: FinishedSoup) -> Table:
    """The zero-shot model, the ingredients and the soup; validation accuracies in percent."""
    search, soup, best = finished.search, finished.soup, finished.ingredients[0].record
    names = [ID_ACC, OOD_MEAN_ACC, *map(val_acc, search.ood_domains)]
    accs = {step.ingredient: step.id_acc for step in soup.steps}
    rows: list[tuple[str, str, Mapping[str, float], str, str]]
    rows = [(ZERO_SHOT, "", search.zero_shot, "", "dim")]
    for index, ingredient in enumerate(finished.ingredients):
        record, used = ingredient.record, index in soup.used
        part = "yes" if used else f"no: ID {accs[index]:.1f}"
        rows.append((record.trial_id, search.method(record) or "", record.metrics, part, ""))
    name, part = f"{finished.recipe} soup", f"{len(finished.used)} trials"
    rows.append((name, "", soup.metrics, part, "bold green"))

    gaps = {"ID": ID_ACC, "OOD mean": OOD_MEAN_ACC}
    values = {name: soup.metrics[metric] - best.metrics[metric] for name, metric in gaps.items()}
    gain = ", ".join(f"{gap:+.1f} {name}" for name, gap in values.items())
    note = f"Against {best.trial_id}, the best in ID accuracy: {gain}."
    if finished.recipe == "greedy":
        note += " Greedy decides by ID validation accuracy, so that of the soup is optimistic."
    table = Table(title=f"{search.name}, {name}", caption=note, box=box.SIMPLE_HEAD)
    for header in ("", "method", f"{search.id_domain} (ID)", "OOD mean", *search.ood_domains, ""):
        table.add_column(header)
    for label, method, metrics, part, style in rows:
        cells = (f"{metrics[n]:.1f}" if n in metrics else "-" for n in names)
        table.add_row(label, method, *cells, part, style=style)
    return table
