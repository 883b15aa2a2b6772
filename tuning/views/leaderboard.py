"""The trials of a search as a table, best first, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.runs.ranking import best_trial, misses, pareto_front, ranked
from tuning.runs.records import METHOD_KEY, ZERO_SHOT, SearchRecord, TrialRecord
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


def leaderboard(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    width: int = 100,
    shown: int | None = None,
) -> Table:
    """Zero-shot model, references, and the trials, best first. Accuracies are in percent.

    A trial that ended early has no accuracies here: they belong to another step.
    """
    order = ranked(search, records)
    finished = [record for record in order if record.outcome == "finished"]
    visible = order if shown is None else (finished or order)[:shown]
    references = [record for record in records if record.kind == "reference"]
    keys = list(dict.fromkeys(key for record in order for key in record.params))
    each = _table(search, records, references, visible, keys, is_wide=True)
    console = Console(width=width)
    if Measurement.get(console, console.options.update(width=10 * width), each).minimum <= width:
        table = each
    else:
        table = _table(search, records, references, visible, keys, is_wide=False)
    hidden = len(order) - len(visible)
    if hidden > 0:
        table.add_row("", f"... {hidden} more", style="dim")
    return table


def _table(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    references: Sequence[TrialRecord],
    trials: Sequence[TrialRecord],
    keys: Sequence[str],
    *,
    is_wide: bool,
) -> Table:
    several = len(search.objectives) > 1
    front = {r.trial_id for r in pareto_front(search, records)} if several else set()
    best, missed = best_trial(search, records), misses(search, records)
    metrics = dict.fromkeys(o.metric for o in search.objectives)
    extra = [metric for metric in metrics if metric not in (ID_ACC, OOD_MEAN_ACC)]
    has_line = any(record.last("line/a") is not None for record in (*references, *trials))
    early = any(record.outcome != "finished" for record in trials)

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("trial", no_wrap=True)
    if is_wide:
        for name in short_names(keys):
            table.add_column(escape(name.replace("_", "_\n")), justify="right", no_wrap=True)
    elif keys:
        table.add_column("parameters", overflow="fold")
    if has_line:
        table.add_column("a", justify="right", no_wrap=True)
    table.add_column("ID", justify="right", style="bold", no_wrap=True)
    if search.ood_domains:
        table.add_column("OOD", justify="right", style="bold", no_wrap=True)
    for metric in extra:
        table.add_column(escape(metric.replace("/", "/\n")), justify="right", no_wrap=True)
    if search.constraints:
        table.add_column("misses", justify="right", no_wrap=True)
    if early:
        table.add_column("outcome", no_wrap=True)

    def row(
        rank: str,
        name: str,
        params: Mapping[str, Any],
        values: Mapping[str, Any],
        misses_by: str = "",
        outcome: Text | str = "",
        style: str = "",
    ) -> None:
        cells: list[Text | str] = [rank, Text(name)]
        if is_wide:
            cells += [format_value(params[key]) if key in params else "" for key in keys]
        elif keys:
            cells.append(Text(format_params({key: params[key] for key in keys if key in params})))
        if has_line:
            cells.append(f"{values['line/a']:.2g}" if "line/a" in values else "")
        cells.append(format_percent(values.get(ID_ACC)))
        if search.ood_domains:
            cells.append(format_percent(values.get(OOD_MEAN_ACC)))
        cells += [format_metric(m)(values[m]) if m in values else "" for m in extra]
        cells += [misses_by] if search.constraints else []
        cells += [outcome] if early else []
        table.add_row(*cells, style=style)

    row("", ZERO_SHOT, {}, search.zero_shot, style="dim")
    for record in references:
        is_done = record.outcome == "finished"
        values: Mapping[str, Any] = record.metrics if is_done else {}
        label, params = trial_label(search, record), search.reference_params
        row("", label, params, values, outcome=_outcome(record), style="dim")
    table.add_section()
    for rank, record in enumerate(ranked(search, records), 1):
        if record not in trials:
            continue
        is_done = record.outcome == "finished"
        amounts = missed[record.trial_id] if is_done else {}
        row(
            (str(rank) if is_done else "-") + "*" * (record.trial_id in front),
            record.trial_id,
            {METHOD_KEY: search.method(record), **record.params},
            record.metrics if is_done else {},
            f"{max(amounts.values()):.2g}" if amounts else "",
            _outcome(record),
            "bold green" if record is best and is_done else "dim" if amounts else "",
        )
    return table


def _outcome(record: TrialRecord) -> Text:
    step = "" if record.outcome == "finished" or not record.step else f" at {record.step}"
    return Text(record.outcome + step, OUTCOME_STYLE[record.outcome])
