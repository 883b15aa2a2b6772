"""Comparison of methods: the best trial of each, and the trials and time that it took to find it.

A search that compares methods gives each the same number of trials and takes the best trial of each
by the search's own objective, so no method gains from more trials or from a criterion that suits
it. The accuracies are those of the validation splits; `confirm` trains the same trials again and
reads the test splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainers.evaluation.metrics import ID, ID_ACC, MEAN_OOD, OOD_MEAN_ACC, MetricKey
from tuning.runs.ranking import misses, ranked
from tuning.runs.records import (
    METHOD_KEY,
    SECONDS,
    ZERO_SHOT,
    Outcome,
    SearchRecord,
    TrialRecord,
)
from tuning.selection.rules import best_by_method
from tuning.views.formatting import (
    format_metric,
    format_params,
    format_percent,
    format_seconds,
    trial_label,
)
from tuning.views.result_table import Column, ResultTable, Row

_ID_ECE: Final = str(MetricKey("val", ID, "ece"))
_OOD_MEAN_ECE: Final = str(MetricKey("val", MEAN_OOD, "ece"))
_ENDED: Final[tuple[Outcome, ...]] = ("finished", "pruned", "failed")


@dataclass(frozen=True)
class MethodRow:
    """A method of a search with all its trials."""

    method: str
    trials: tuple[TrialRecord, ...]
    """All of them, whatever their outcome."""
    best: TrialRecord | None
    """As chosen by `best_by_method`; if it chose none, the trial that got furthest, if any."""
    misses: bool
    """Whether the best trial misses a constraint, measured by the trials of its method."""

    def count(self, outcome: Outcome) -> int:
        """Number of trials with this outcome."""
        return sum(record.outcome == outcome for record in self.trials)

    @property
    def is_finished(self) -> bool:
        """Whether the best trial did all its steps, so that it can be compared."""
        return self.best is not None and self.best.outcome == "finished"


def method_rows(search: SearchRecord, records: Sequence[TrialRecord]) -> list[MethodRow]:
    """The methods, ordered by their best trials; empty if all trials have the same method."""
    order = ranked(search, records)
    methods = search.methods(order)
    if len(methods) < 2:
        return []
    best = best_by_method(search, order)
    for record in order:
        method = search.method(record)
        if record.outcome != "failed" and record.curve and method is not None:
            best.setdefault(method, record)
    found = []
    for method in dict.fromkeys([*best, *methods]):
        trials = tuple(record for record in order if search.method(record) == method)
        one = best.get(method)
        is_short = one is not None and bool(misses(search, trials)[one.trial_id])
        found.append(MethodRow(method, trials, one, is_short))
    return found


def methods_table(search: SearchRecord, records: Sequence[TrialRecord]) -> ResultTable | None:
    """One row per method, best first, below the zero-shot model and plain fine-tuning.

    None if the trials have fewer than two methods.
    """
    found = method_rows(search, records)
    if not found:
        return None
    above: list[dict[str, object]] = [{**search.zero_shot, "method": ZERO_SHOT}]
    for record in records:
        if record.kind == "reference":
            label, seconds = trial_label(search, record, "\n"), record.last(SECONDS)
            above.append({**record.metrics, "method": label, "time_best": seconds})
    rows = [Row(values, "dim", ends_section=values is above[-1]) for values in above]
    for number, row in enumerate(found):
        values: dict[str, object] = {
            "method": row.method,
            "trials": "/".join(str(row.count(outcome)) for outcome in _ENDED),
            "time_all": sum(record.seconds or 0.0 for record in row.trials),
        }
        if row.best is not None:
            values |= {
                **row.best.metrics,
                "trial": row.best.trial_id + "*" * (not row.is_finished),
                "parameters": row.best.params,
                "time_best": row.best.last(SECONDS),
            }
        style = "dim" if row.misses or not row.is_finished else ""
        rows.append(Row(values, "bold green" if number == 0 and row.is_finished else style))
    return ResultTable(
        "The best trial of each method", _columns(search), rows, _notes(search, found),
        "trials.parquet",
    )  # fmt: skip


def _columns(search: SearchRecord) -> list[Column]:
    objective = search.objectives[0].metric

    def format_own(params: Mapping[str, Any]) -> str:
        return format_params(params, but=[METHOD_KEY])

    return [
        Column("method", "method", left=True),
        Column("trials", "trials", drop=7),
        Column("trial", "trial", left=True),
        Column("parameters", "parameters", format_own, drop=1, left=True, min_width=24),
        Column(ID_ACC, "ID", format_percent),
        Column(OOD_MEAN_ACC, "OOD\nmean", format_percent),
        Column(objective, "objective", format_metric(objective), drop=2),
        Column(_ID_ECE, "ECE\nID", format_percent, drop=5),
        Column(_OOD_MEAN_ECE, "ECE\nOOD", format_percent, drop=4),
        Column("time_best", "time\nbest", format_seconds, drop=6),
        Column("time_all", "time\nall", format_seconds, drop=3),
    ]


def _notes(search: SearchRecord, found: Sequence[MethodRow]) -> list[str]:
    """Sentences about how the trials were chosen, on which split, and among how many."""
    counts = [len(row.trials) for row in found]
    if len(set(counts)) == 1:
        numbers = f"Equal numbers of trials, {counts[0]} per method"
    else:
        usual = max(counts, key=lambda number: (counts.count(number), number))
        others = [f"{row.method} {len(row.trials)}" for row in found if len(row.trials) != usual]
        numbers = f"Unequal numbers of trials, {usual} per method but {', '.join(others)}"
    waiting = sum(counts) - sum(row.count(outcome) for row in found for outcome in _ENDED)
    if waiting:
        numbers += f", of which {waiting} have not ended"
    numbers += ": finished/pruned/failed."
    if len(set(counts)) > 1:
        numbers += " More trials alone give a better best trial."
    first = " The objective shown is the first one." if len(search.objectives) > 1 else ""
    lines = [
        f"{search.selection}{first}",
        "Validation accuracy in percent, each trial at its last step; ECE: calibration error.",
        numbers,
    ]
    if any(row.method == "tpgm" for row in found):
        lines.append("tpgm also trains on ID validation labels: its ID accuracy is optimistic.")
    if any(row.best and not row.is_finished for row in found):
        lines.append("* No trial of the method finished: this is the trial that got furthest.")
    short = [row.method for row in found if row.misses]
    if short:
        lines.append(f"No trial meets the constraints: {', '.join(short)}.")
    return lines
