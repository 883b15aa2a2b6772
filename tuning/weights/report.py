"""The table of a soup and its ingredients."""

from __future__ import annotations

from rich.table import Table

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, val_acc
from tuning.runs.records import ZERO_SHOT
from tuning.views.formatting import format_gap, format_percent
from tuning.views.result_table import Column, ResultTable, Row, fit_table
from tuning.weights.soup import FinishedSoup


def soup_report(finished: FinishedSoup, width: int | None = None) -> Table:
    """The zero-shot model, the ingredients and the soup, with its gain over the best of them."""
    search, soup, best = finished.search, finished.soup, finished.ingredients[0].record
    columns = [
        Column("name", "", left=True),
        Column("method", "method", left=True),
        Column(ID_ACC, f"{search.id_domain}\n(ID)", format_percent),
        Column(OOD_MEAN_ACC, "OOD\nmean", format_percent),
        *(Column(val_acc(d), d, format_percent, drop=1) for d in search.ood_domains),
        Column("part", "in the soup", left=True),
    ]
    rows = [Row({**search.zero_shot, "name": ZERO_SHOT}, "dim")]
    id_accs = {step.ingredient: step.id_acc for step in soup.steps}
    for index, ingredient in enumerate(finished.ingredients):
        record = ingredient.record
        part = "yes" if index in soup.used else f"no: ID {format_percent(id_accs[index])}"
        named = {"name": record.trial_id, "method": search.method(record), "part": part}
        last = ingredient is finished.ingredients[-1]
        rows.append(Row({**record.metrics, **named}, ends_section=last))
    whole = {"name": f"{finished.recipe} soup", "part": f"{len(finished.used)} trials"}
    rows.append(Row({**soup.metrics, **whole}, "bold green"))
    gaps = [
        f"{format_gap(soup.metrics[name] - known)} {text}"
        for name, text in ((ID_ACC, "ID"), (OOD_MEAN_ACC, "OOD mean"))
        if name in soup.metrics and (known := best.last(name)) is not None
    ]
    notes = [f"Against {best.trial_id}, the best in ID accuracy: {', '.join(gaps)}."]
    if finished.recipe == "greedy":
        notes.append("Greedy decides by ID validation accuracy, so that of the soup is optimistic.")
    title = f"{search.name}, {finished.recipe} soup"
    return fit_table(ResultTable(title, columns, rows, notes), width)
