"""The trials of a search as a table, best first, for the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, val_acc
from tuning.log.records import TrialRecord, trial_label, zero_shot_record
from tuning.results.ranking import misses, pareto_front, ranked
from tuning.run import Run
from tuning.views.formatting import (
    format_metric,
    format_outcomes,
    format_params,
    format_seconds,
    format_value,
    param_names,
)
from tuning.views.result_table import add_rigid_column, compact_table, fits

SHOWN = 3
"""Trials at the end of a search; `report` shows all."""
OUTCOME_STYLE = {
    "finished": "green",
    "running": "cyan",
    "pruned": "yellow",
    "stopped": "yellow",
    "failed": "red",
}


def report(
    run: Run,
    width: int = 100,
    shown: int | None = None,
    *,
    seconds: float | None = None,
) -> RenderableType:
    """Title, leaderboard, the conclusion, and notes.

    Args:
        width: of the terminal; parameters share one column where a column each does not fit.
        shown: number of trials, best first; all of them by default.
        seconds: that the search took.
    """
    trials = [record for record in run.records if record.kind == "trial"]
    counted = format_outcomes(run.records)
    took = f", in {format_seconds(seconds)}" if seconds else ""
    number = f"{len(trials)} trial{'s' * (len(trials) != 1)}"
    title = f"[bold]{escape(run.name)}[/]   {number}: {counted or 'none has begun'}{took}"
    return Group(
        Text.from_markup(title),
        leaderboard(run, width, shown),
        *(Text(line) for line in run.conclusion.lines),
        *(Text(note, style="dim") for note in _notes(run)),
    )


def _notes(run: Run) -> Iterator[str]:
    """Sentences about failed and destroyed trials, and about a sampler that proposed nothing."""
    if failed := [record for record in run.records if record.outcome == "failed"]:
        first = failed[0]
        yield f"{len(failed)} failed: {first.trial_id}, {first.error_line or 'no error'}"
    trials = [record for record in run.records if record.kind == "trial"]
    if trials and all(record.is_first_point for record in trials):
        yield "All trials are first points: the sampler has proposed none."


@dataclass(frozen=True)
class TrialRow:
    """A trial, a reference or the zero-shot model as a row of a table."""

    record: TrialRecord
    is_best: bool
    misses: bool
    """Whether it is finished and misses a constraint."""
    cells: Mapping[str, tuple[str, Any]]
    """By the key of the column: text, and the value to sort by. `parameters` has all of them."""


def trial_table(run: Run) -> tuple[dict[str, str], list[TrialRow]]:
    """The header of each column by its key; zero-shot model, references, and trials, best first.

    Accuracies are in percent. A trial that ended early has none: they belong to another step. What
    `confirm` has trained comes first, in the order of its means over fresh seeds, which have a
    column of their own.
    """
    found = run.conclusion
    means = found.means or {}
    params = param_names(run.records)
    metrics = {ID_ACC: "ID", **({OOD_MEAN_ACC: "OOD"} if run.goal.ood_domains else {})}
    metrics |= {o.metric: o.metric for o in run.goal.objectives if o.metric not in metrics}
    more = {"line/a": "a", **{val_acc(domain): domain for domain in run.goal.ood_domains}}
    columns = {"#": "#", "trial": "trial", **metrics, **params, **more}
    columns |= {"fresh": f"{run.goal.objectives[0].metric}, fresh seeds"} if means else {}
    columns |= {"misses": "misses"} if run.goal.constraints else {}
    columns |= {"outcome": "outcome", "time": "time"}

    missed = misses(run.goal, run.records)
    front = pareto_front(run.goal, run.records) if len(run.goal.objectives) > 1 else []
    zero_shot = zero_shot_record(run.goal.zero_shot)
    references = [record for record in run.records if record.kind == "reference"]
    confirmed = [*means]
    trials = ranked(run.goal, run.records)
    trials.sort(key=lambda r: confirmed.index(r.trial_id) if r.trial_id in means else len(means))
    ordered = [zero_shot, *references, *trials]
    rows = []
    for rank, record in enumerate(ordered, -len(references)):
        is_done = record.outcome == "finished"
        is_trial = record.kind == "trial"
        given: dict[str, Any] = dict(record.params)
        if not is_trial:
            given = {} if record is zero_shot else run.file.reference_params
        own = {key: given[key] for key in params if key in given}
        values = {**own, **(record.metrics if is_done else {})}
        cells: dict[str, tuple[str, Any]] = dict.fromkeys(columns, ("", None))
        for key in columns.keys() & values.keys():
            style: Callable[[Any], str] = format_value if key in params else format_metric(key)
            cells[key] = (style(values[key]), values[key])
        if record.trial_id in means:
            mean = means[record.trial_id]
            cells["fresh"] = (format_metric(run.goal.objectives[0].metric)(mean), mean)
        number = (str(rank) if is_done else "-") + "*" * (record in front)
        amount = max(missed.get(record.trial_id, {}).values(), default=0.0) if is_done else 0.0
        at = "" if is_done or not record.step else f" at {record.step}"
        cells |= {
            "#": (number if is_trial else "", rank),
            "trial": (trial_label(record), record.number),
            "parameters": (format_params(own), None),
            "misses": (f"{amount:.2g}" if amount else "", amount),
            "outcome": ("" if record is zero_shot else record.outcome + at, record.outcome),
            "time": (format_seconds(record.seconds), record.seconds),
        }
        is_best = found.best is not None and record.trial_id == found.best.trial_id
        rows.append(TrialRow(record, is_best, amount > 0, cells))
    return columns, rows


def leaderboard(
    run: Run,
    width: int = 100,
    shown: int | None = None,
) -> Table:
    """Zero-shot model, references, and the trials, best first. Accuracies are in percent."""
    columns, rows = trial_table(run)
    models = [row for row in rows if row.record.kind != "trial"]
    trials = rows[len(models) :]
    finished = [row for row in trials if row.record.outcome == "finished"]
    visible = trials if shown is None else (finished or trials)[:shown]
    accs = [ID_ACC, OOD_MEAN_ACC] if run.goal.ood_domains else [ID_ACC]
    metrics = dict.fromkeys((*accs, *(objective.metric for objective in run.goal.objectives)))
    others = ["line/a", *metrics, *(["fresh"] if "fresh" in columns else []), "misses"]
    others += ["outcome"] if any(row.record.outcome != "finished" for row in visible) else []
    compared = [*models, *visible]
    for shown_params, is_broken in product(
        (param_names(run.records), ["parameters"]), (False, True)
    ):
        keys = [*shown_params, *others]
        filled = [key for key in keys if any(row.cells[key][0] for row in compared)]
        table = _table(columns, compared, ["#", "trial", *filled], is_broken)
        if fits(table, width):
            break
    if hidden := len(trials) - len(visible):
        table.add_row("", f"... {hidden} more", style="dim")
    return table


def _table(
    columns: Mapping[str, str], rows: Sequence[TrialRow], keys: Sequence[str], is_broken: bool
) -> Table:
    """The columns `keys`, with headers that may be broken at `_` and `/`."""
    table = compact_table()
    for key in keys:
        name = columns.get(key, key)
        name = re.sub("([_/])", r"\1\n", name) if is_broken else name
        style = "bold" if key in (ID_ACC, OOD_MEAN_ACC) else ""
        if key == "parameters":
            table.add_column(name, overflow="fold")
        else:
            side = "left" if key in ("trial", "outcome") else "right"
            texts = [row.cells[key][0] for row in rows]
            add_rigid_column(table, name, texts, justify=side, style=style, header_style=style)
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        is_trial = row.record.kind == "trial"
        styles = {"outcome": OUTCOME_STYLE[row.record.outcome]}
        cells = [Text(row.cells[key][0], styles.get(key, "")) for key in keys]
        look = "" if is_trial and not row.misses else "dim"
        if row.is_best:
            look = "bold green"
        is_last = not is_trial and after is not None and after.record.kind == "trial"
        table.add_row(*cells, style=look, end_section=is_last)
    return table
