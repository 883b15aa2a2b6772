"""The table of a soup and its ingredients."""

from __future__ import annotations

from rich.table import Table

from trainers.evaluation.metrics import ID, ID_ACC, OOD_MEAN_ACC, MetricKey, val_acc
from tuning.runs.records import ZERO_SHOT
from tuning.views.formatting import format_gap, format_percent
from tuning.views.result_table import Column, ResultTable, Row, fit_table
from tuning.weights.soup import FinishedSoup


def soup_report(finished: FinishedSoup, width: int | None = None) -> Table:
    """The zero-shot model, the ingredients and the soup, with explanations below."""
    search, soup = finished.search, finished.soup
    columns = [
        Column("name", "", left=True),
        Column("method", "method", left=True),
        Column(ID_ACC, f"{search.id_domain}\n(ID)", format_percent),
        Column(OOD_MEAN_ACC, "OOD\nmean", format_percent),
        *(Column(val_acc(d), d, format_percent, drop=1) for d in search.ood_domains),
        Column(str(MetricKey("val", ID, "ece")), "ID\nECE", format_percent, drop=2),
        Column("part", "in the soup", left=True),
    ]
    rows = [Row({**search.zero_shot, "name": ZERO_SHOT}, "dim")]
    id_accs = {step.ingredient: step.id_acc for step in soup.steps}
    for index, ingredient in enumerate(finished.ingredients):
        record, is_used = ingredient.record, index in soup.used
        values: dict[str, object] = {
            **record.metrics,
            "name": record.trial_id,
            "method": search.method(record),
            "part": "yes" if is_used else f"no: ID {format_percent(id_accs[index])}",
        }
        rows.append(Row(values, ends_section=ingredient is finished.ingredients[-1]))
    part = f"{len(finished.used)} trials"
    whole = {**soup.metrics, "name": f"{finished.recipe} soup", "part": part}
    rows.append(Row(whole, "bold green"))

    notes = ["Validation accuracy and calibration error in percent."]
    if finished.recipe == "greedy":
        notes.append(
            "Greedy decides by the ID validation accuracy, so that of the soup is optimistic; `no` "
            "is followed by its ID accuracy with that trial."
        )
    best = finished.ingredients[0].record
    gaps = [
        f"{format_gap(soup.metrics[name] - known)} {text}"
        for name, text in ((ID_ACC, "ID"), (OOD_MEAN_ACC, "OOD mean"))
        if name in soup.metrics and (known := best.last(name)) is not None
    ]
    notes.append(f"Against {best.trial_id}, the best in ID accuracy: {', '.join(gaps)}.")
    if search.sees_ood:
        notes.append("The search of the ingredients looked at OOD validation data.")
    title = f"{search.name}, {finished.recipe} soup"
    return fit_table(ResultTable(title, columns, rows, notes), width)
