"""Methods side by side, for people: the best trial of each, and what finding it took.

A search that compares methods gives each as many trials as the others, and takes of each the trial
that is best by the search's own objective: so none is favoured by more tries, nor by a criterion
that suits it. The figures are those that chose, on validation splits; `confirm` trains the same
trials again and reads the test splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.markup import escape
from rich.table import Table

from tuning.reporting.formatting import (
    format_params,
    format_percent,
    format_seconds,
    format_value,
    natural_width,
)
from tuning.runs.records import (
    ID_ACC,
    METHOD_KEY,
    OOD_MEAN_ACC,
    SECONDS,
    ZERO_SHOT,
    Outcome,
    SearchRecord,
    TrialRecord,
)
from tuning.selection.ranking import misses, ranked
from tuning.selection.rules import best_by_method

ID_ECE: Final = "id_val/ece"
OOD_MEAN_ECE: Final = "ood_val/mean_ece"
"""Expected calibration error in percent."""
PARAMETERS: Final = "parameters"
_LEFT: Final = ("method", "trial", PARAMETERS)
# What a narrow terminal goes without, first to last; all of it is in methods.parquet.
_EXPENDABLE: Final = ("objective", "time\nall", "ECE\nOOD", "ECE\nID", "time\nbest", "trials")
_LEAST_ROOM = 24
"""Characters for the parameters, which may take several lines, or they are left out."""
_BORDER = 3
"""What a column takes beside its text."""
_ENDED: Final[tuple[Outcome, ...]] = ("finished", "pruned", "failed")


@dataclass(frozen=True)
class MethodRow:
    """A method of a search."""

    method: str
    trials: tuple[TrialRecord, ...]
    """All of them, whatever became of them."""
    best: TrialRecord | None
    """As `best_by_method` chooses; where that has none, what got furthest, if anything did."""
    misses: bool
    """Whether the best trial misses a constraint of the search."""

    def count(self, outcome: Outcome) -> int:
        """Trials with this outcome."""
        return sum(record.outcome == outcome for record in self.trials)

    @property
    def is_finished(self) -> bool:
        """Whether the best trial did all its steps, so that its figures compare."""
        return self.best is not None and self.best.outcome == "finished"

    @property
    def seconds(self) -> float:
        """Wall time of all trials together."""
        return sum(record.seconds or 0.0 for record in self.trials)

    @property
    def best_seconds(self) -> float | None:
        """Wall time of the best trial by its own clock, which starts with the training."""
        return None if self.best is None else self.best.last(SECONDS)


def method_rows(search: SearchRecord, records: Sequence[TrialRecord]) -> list[MethodRow]:
    """The methods, the one with the best trial first; none where all trials have the same one."""
    order = ranked(search, records)
    if len(search.methods(order)) < 2:
        return []
    missed = misses(search, order)
    best = best_by_method(search, order)
    for record in order:
        method = search.method(record)
        if record.outcome != "failed" and record.curve and method is not None:
            best.setdefault(method, record)
    found = []
    for method in dict.fromkeys([*best, *search.methods(order)]):
        trials = tuple(record for record in order if search.method(record) == method)
        one = best.get(method)
        found.append(MethodRow(method, trials, one, one is not None and bool(missed[one.trial_id])))
    return found


def methods_table(
    search: SearchRecord, records: Sequence[TrialRecord], width: int | None = None
) -> Table | None:
    """A row a method, best first, under the models to compare with; None with fewer than two.

    Args:
        search: What the trials were chosen by.
        records: Trials and references in any order.
        width: Characters of the terminal. Where the table is wider, columns are left out, and the
            caption says which.
    """
    found = method_rows(search, records)
    if not found:
        return None
    for number in range(len(_EXPENDABLE) + 1):
        dropped = [PARAMETERS, *_EXPENDABLE[:number]]
        table = _table(search, records, found, dropped)
        room = None if width is None else width - natural_width(table)
        if room is None or room >= 0:
            break
    if room is None or room >= _LEAST_ROOM + _BORDER:
        dropped.remove(PARAMETERS)
        table = _table(search, records, found, dropped, room and room - _BORDER)
    lines = notes(search, found)
    if dropped:
        named = ", ".join(header.replace("\n", " ") for header in dropped)
        lines.append(f"Left out for want of room: {named}; see methods.parquet.")
    table.caption = escape("\n".join(lines))
    return table


def _table(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    found: Sequence[MethodRow],
    dropped: Sequence[str],
    room: int | None = None,
) -> Table:
    kept = [header for header in cells(search, found[0]) if header not in dropped]
    table = Table(title="The best of each method", caption_justify="left", header_style="bold")
    for header in kept:
        wraps = header == PARAMETERS
        table.add_column(
            header,
            justify="left" if header in _LEFT else "right",
            no_wrap=not wraps,
            overflow="fold",
            max_width=room if wraps else None,
        )
    for model in model_cells(search, records):
        table.add_row(*(escape(model.get(header, "")) for header in kept), style="dim")
    table.add_section()
    for number, row in enumerate(found):
        style = "dim" if row.misses or not row.is_finished else ""
        if number == 0 and row.is_finished:
            style = "bold green"
        its = cells(search, row)
        table.add_row(*(escape(its[header]) for header in kept), style=style)
    return table


def cells(search: SearchRecord, row: MethodRow) -> dict[str, str]:
    """Header -> cell of a method's row."""
    best = row.best
    return {
        "method": row.method,
        "trials": "/".join(str(row.count(outcome)) for outcome in _ENDED),
        "trial": "" if best is None else best.trial_id + "*" * (not row.is_finished),
        PARAMETERS: "" if best is None else format_params(best.params, but=[METHOD_KEY]),
        **_figures(search, {} if best is None else best.metrics, best),
        "time\nbest": format_seconds(row.best_seconds),
        "time\nall": format_seconds(row.seconds),
    }


def model_cells(search: SearchRecord, records: Sequence[TrialRecord]) -> list[dict[str, str]]:
    """Header -> cell of each row above the methods: of the zero-shot model and the references."""
    found = [{"method": ZERO_SHOT, **_figures(search, search.zero_shot, None)}]
    for record in records:
        if record.kind == "reference":
            name = {"method": f"{record.trial_id}, {record.kind}"}
            time = {"time\nbest": format_seconds(record.last(SECONDS))}
            found.append({**name, **_figures(search, record.metrics, record), **time})
    return found


def _figures(
    search: SearchRecord, metrics: Mapping[str, float], record: TrialRecord | None
) -> dict[str, str]:
    value: float | None
    if len(search.objectives) == 1:
        value = metrics.get(search.objectives[0].metric)
    else:
        value = None if record is None or search.values(record) is None else search.score(record)
    return {
        "ID": format_percent(metrics.get(ID_ACC)),
        "OOD\nmean": format_percent(metrics.get(OOD_MEAN_ACC)),
        "objective": _format(search, value),
        "ECE\nID": format_percent(metrics.get(ID_ECE)),
        "ECE\nOOD": format_percent(metrics.get(OOD_MEAN_ECE)),
    }


def _format(search: SearchRecord, value: float | None) -> str:
    """Percentages as elsewhere, other objectives as parameters are."""
    if value is None or all(o.metric.endswith(("acc", "ece")) for o in search.objectives):
        return format_percent(value)
    return format_value(float(value))


def notes(search: SearchRecord, found: Sequence[MethodRow]) -> list[str]:
    """How the trials were chosen, on which split, and among how many, in sentences."""
    several = " The objective is the mean of them." if len(search.objectives) > 1 else ""
    lines = [
        f"{search.selection}{several}",
        "Validation figures in percent, each trial at its last step; ECE: calibration error.",
        _numbers(found),
    ]
    if any(row.method == "tpgm" for row in found):
        lines.append("tpgm is trained on ID validation labels too: its ID figures are optimistic.")
    if any(row.best and not row.is_finished for row in found):
        lines.append("* No trial of the method finished: this is the one that got furthest.")
    short = [row.method for row in found if row.misses]
    if short:
        lines.append(f"No trial meets the constraints: {', '.join(short)}.")
    return lines


def _numbers(found: Sequence[MethodRow]) -> str:
    """How many trials the methods had; unequal numbers make an unequal comparison."""
    counted = [len(row.trials) for row in found]
    if len(set(counted)) == 1:
        text = f"Equal numbers of trials, {counted[0]} a method"
    else:
        usual = max(counted, key=lambda number: (counted.count(number), number))
        others = [f"{row.method} {len(row.trials)}" for row in found if len(row.trials) != usual]
        text = f"Unequal numbers of trials, {usual} a method but {', '.join(others)}"
    waiting = sum(counted) - sum(row.count(outcome) for row in found for outcome in _ENDED)
    if waiting:
        text += f", of which {waiting} have not ended"
    text += ": finished/pruned/failed."
    return text + ("" if len(set(counted)) == 1 else " The best of more is better by luck alone.")
