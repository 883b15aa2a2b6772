"""The trials of a search as a table, best first, for the terminal."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.runs.ranking import best_trial, misses, pareto_front, ranked
from tuning.runs.records import METHOD_KEY, SearchRecord, TrialRecord, zero_shot_record
from tuning.runs.seeds import margin_of_mean
from tuning.views.answer import answer
from tuning.views.formatting import (
    format_metric,
    format_params,
    format_percent,
    format_seconds,
    format_value,
    short_names,
    trial_label,
)

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
    search: SearchRecord,
    records: Sequence[TrialRecord],
    width: int = 100,
    shown: int | None = None,
) -> RenderableType:
    """Title, leaderboard, the answer, and at most two notes.

    Args:
        width: of the terminal; parameters share one column where a column each does not fit.
        shown: number of trials, best first; all of them by default.
    """
    trials = [record for record in records if record.kind == "trial"]
    outcomes = [record.outcome for record in trials]
    counted = ", ".join(f"{outcomes.count(o)} {o}" for o in OUTCOME_STYLE if o in outcomes)
    starts = [record.started_at for record in records if record.started_at is not None]
    ends = [record.ended_at for record in records if record.ended_at is not None]
    took = f", in {format_seconds(max(ends) - min(starts))}" if starts and ends else ""
    number = f"{len(trials)} trial{'s' * (len(trials) != 1)}"
    title = f"[bold]{escape(search.name)}[/]   {number}: {counted or 'none has begun'}{took}"
    return Group(
        Text.from_markup(title),
        leaderboard(search, records, width, shown),
        *(Text(line) for line in answer(search, records)),
        *(Text(note, style="dim") for note in notes(search, records)[:2]),
    )


def notes(search: SearchRecord, records: Sequence[TrialRecord]) -> list[str]:
    """Sentences about failed trials, and about a search whose sampler has proposed nothing."""
    trials = [record for record in records if record.kind == "trial"]
    failed = [record for record in records if record.outcome == "failed"]
    found = []
    if failed:
        first = failed[0]
        found.append(f"{len(failed)} failed: {first.trial_id}, {first.error_line or 'no error'}")
    if trials and all(record.is_first_point for record in trials):
        found.append("All trials are given points: the sampler proposes from the next one on.")
    return found


@dataclass(frozen=True)
class TrialRow:
    """A trial, a reference or the zero-shot model as a row of a table."""

    record: TrialRecord
    label: str
    rank: int | None
    """Of a finished trial, from 1."""
    params: Mapping[str, Any]
    values: Mapping[str, float]
    """The last report, or its means over seeds; empty for a trial that ended early, since it
    belongs to another step."""
    seeds: str
    """Number of seeds and half the 95 % interval of the objective's mean, `3 ±0.42`; empty for
    one."""
    missed: float
    """Largest amount by which it misses a constraint."""
    outcome: str
    is_best: bool


def trial_rows(search: SearchRecord, records: Sequence[TrialRecord]) -> list[TrialRow]:
    """Zero-shot model, references, and the trials, best first."""
    missed, best, rows = misses(search, records), best_trial(search, records), []
    zero_shot = zero_shot_record(search.zero_shot)
    references = [record for record in records if record.kind == "reference"]
    ordered = [zero_shot, *references, *ranked(search, records)]
    for rank, record in enumerate(ordered, -len(references)):
        is_done, is_trial = record.outcome == "finished", record.kind == "trial"
        params: Mapping[str, Any] = {METHOD_KEY: search.method(record), **record.params}
        if not is_trial:
            params = {} if record is zero_shot else search.reference_params
        amounts = missed.get(record.trial_id, {}) if is_done else {}
        margin = margin_of_mean(search, records, record) if is_done else None
        at = "" if is_done or not record.step else f" at {record.step}"
        row = TrialRow(
            record,
            trial_label(search, record),
            rank if is_trial and is_done else None,
            params,
            record.means if is_done else {},
            "" if margin is None else f"{1 + len(record.repetitions)} ±{margin:.2g}",
            max(amounts.values(), default=0.0),
            "" if record is zero_shot else record.outcome + at,
            is_done and best is not None and record.trial_id == best.trial_id,
        )
        rows.append(row)
    return rows


def extra_metrics(search: SearchRecord) -> list[str]:
    """The objectives that have no column of their own."""
    metrics = dict.fromkeys(objective.metric for objective in search.objectives)
    return [metric for metric in metrics if metric not in (ID_ACC, OOD_MEAN_ACC)]


def leaderboard(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    width: int = 100,
    shown: int | None = None,
) -> Table:
    """Zero-shot model, references, and the trials, best first. Accuracies are in percent."""
    rows = trial_rows(search, records)
    trials = [row for row in rows if row.record.kind == "trial"]
    finished = [row for row in trials if row.rank is not None]
    visible = trials if shown is None else (finished or trials)[:shown]
    keys = list(dict.fromkeys(key for row in trials for key in row.record.params))
    several = len(search.objectives) > 1
    front = {r.trial_id for r in pareto_front(search, records)} if several else set()
    compared = [*rows[: len(rows) - len(trials)], *visible]
    console = Console(width=width)
    for heads in ("whole", "broken", "shared"):
        table = _table(search, compared, keys, front, heads)
        needs = Measurement.get(console, console.options.update(width=10 * width), table).minimum
        if needs <= width:
            break
    if hidden := len(trials) - len(visible):
        table.add_row("", f"... {hidden} more", style="dim")
    return table


def _table(
    search: SearchRecord,
    rows: Sequence[TrialRow],
    keys: Sequence[str],
    front: Container[str],
    heads: str,
) -> Table:
    """The table with `whole` heads, with those `broken` at `_` and `/`, or with all parameters in
    one `shared` column."""
    metrics, is_wide = extra_metrics(search), heads != "shared"

    def head(name: str) -> str:
        return escape(name if heads == "whole" else re.sub("([_/])", "\\1\n", name))

    has_line = any("line/a" in row.values for row in rows)
    has_outcome = any(row.rank is None for row in rows if row.record.kind == "trial")
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("trial", no_wrap=True)
    if is_wide:
        for name in short_names(keys):
            table.add_column(head(name), justify="right", no_wrap=True)
    elif keys:
        table.add_column("parameters", overflow="fold")
    names = ["a"] * has_line + ["[bold]ID[/]"] + ["[bold]OOD[/]"] * bool(search.ood_domains)
    names += [head(metric) for metric in metrics]
    has_seeds = any(row.seeds for row in rows)
    for name in [*names, *["seeds"] * has_seeds, *["misses"] * bool(search.constraints)]:
        table.add_column(name, justify="right", no_wrap=True)
    if has_outcome:
        table.add_column("outcome", no_wrap=True)
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        is_trial = row.record.kind == "trial"
        rank = str(row.rank or "-") + "*" * (row.label in front) if is_trial else ""
        cells: list[Text | str] = [rank, Text(row.label)]
        if is_wide:
            cells += [format_value(row.params[key]) if key in row.params else "" for key in keys]
        elif keys:
            params = {key: row.params[key] for key in keys if key in row.params}
            cells.append(Text(format_params(params)))
        cells += [f"{row.values['line/a']:.2g}" if "line/a" in row.values else ""] * has_line
        accs = [ID_ACC, OOD_MEAN_ACC] if search.ood_domains else [ID_ACC]
        cells += [Text(format_percent(row.values.get(metric)), "bold") for metric in accs]
        cells += [format_metric(m)(row.values[m]) if m in row.values else "" for m in metrics]
        cells += [row.seeds] * has_seeds
        cells += [f"{row.missed:.2g}" if row.missed else ""] * bool(search.constraints)
        style = OUTCOME_STYLE[row.record.outcome]
        cells += [Text(row.outcome, style)] * has_outcome
        look = "bold green" if row.is_best else "dim" if row.missed or not is_trial else ""
        begins = not is_trial and after is not None and after.record.kind == "trial"
        table.add_row(*cells, style=look, end_section=begins)
    return table
