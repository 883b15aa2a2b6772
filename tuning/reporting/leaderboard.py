"""What a search found, for people: the leaderboard, the best of each method and the rules of
selection in the terminal, and `figures` beside them.

All say which split the choice was made on, since validation numbers that chose a trial are
optimistic about it; the test splits are read by `confirm` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from trainers.errors import storage_failures
from tuning.reporting.figures.id_vs_ood import figure
from tuning.reporting.figures.wise_curves import WISE_FIGURE, wise_figure
from tuning.reporting.formatting import (
    format_params,
    format_percent,
    format_seconds,
    format_value,
    natural_width,
    short_names,
)
from tuning.reporting.methods_report import methods_table
from tuning.reporting.selection_report import selection_table
from tuning.runs.records import (
    ID_ACC,
    METHOD_KEY,
    OOD_MEAN_ACC,
    SECONDS,
    ZERO_SHOT,
    SearchRecord,
    TrialRecord,
    domain_acc,
)
from tuning.selection.rules import best_trial, misses, pareto_front, ranked

__all__ = [
    "OUTCOME_STYLE",
    "figure",
    "figures",
    "format_percent",
    "format_seconds",
    "format_value",
    "leaderboard",
    "methods_table",
    "report",
    "selection_table",
]

OUTCOME_STYLE = {
    "finished": "green",
    "running": "cyan",
    "pruned": "yellow",
    "stopped": "yellow",
    "failed": "red",
}
# What a narrow terminal goes without, first to last; all of it is in trials.parquet.
_EXPENDABLE = ("domains", "parameters", "time", "step", "outcome")


@dataclass(frozen=True)
class _Column:
    header: str
    cell: Callable[[TrialRecord], str]
    group: str = ""
    justify: Literal["left", "right"] = "right"
    style: str = ""


def report(
    search: SearchRecord, records: Sequence[TrialRecord], width: int | None = None
) -> RenderableType:
    """The leaderboard, the best of each method where there are several, and the rules' choices."""
    tables = (
        leaderboard(search, records, width),
        methods_table(search, records, width),
        selection_table(search, records, width),
    )
    parts = [part for table in tables if table is not None for part in (table, "")]
    return Group(*parts[:-1])


def figures(
    search: SearchRecord, records: Sequence[TrialRecord], run_folder: Path
) -> tuple[Path, ...]:
    """All figures into `report/` of a run folder: ID against OOD, and WiSE-FT's curves if any.

    Raises:
        StorageFailed: the disk is full, or fails.
    """
    report = run_folder / "report"
    with storage_failures(report, "cannot be written"):
        found = wise_figure(search, records, report / WISE_FIGURE)
        return (figure(search, records, report / "id_vs_ood.png"), *([found] if found else []))


@dataclass(frozen=True)
class _Standing:
    trials: Sequence[TrialRecord]
    """Best first."""
    references: Sequence[TrialRecord]
    best: str | None
    front: Set[str]
    """Of several objectives; a single one has none worth a mark."""
    missed: Mapping[str, Mapping[str, float]]


def leaderboard(
    search: SearchRecord, records: Sequence[TrialRecord], width: int | None = None
) -> Table:
    """The trials, best first, under the two models to compare with: zero-shot and plain FT.

    Args:
        search: What the trials were chosen by.
        records: Trials and references in any order.
        width: Characters of the terminal. Where the table is wider, columns are left out until it
            fits, the single OOD domains first, and the caption says so.
    """
    standing = _standing(search, records)
    columns = [*_columns(search, records), *_misses_column(search, standing)]
    expendable = [group for group in _EXPENDABLE if any(c.group == group for c in columns)]
    for number in range(len(expendable) + 1):
        dropped = expendable[:number]
        kept = [column for column in columns if column.group not in dropped]
        table = _table(search, standing, kept)
        if width is None or natural_width(table) <= width:
            break
    table.caption = escape(_caption(search, standing, dropped))
    return table


def _standing(search: SearchRecord, records: Sequence[TrialRecord]) -> _Standing:
    several = len(search.objectives) > 1
    best = best_trial(search, records)
    return _Standing(
        trials=ranked(search, records),
        references=[record for record in records if record.kind == "reference"],
        best=None if best is None else best.trial_id,
        front={r.trial_id for r in pareto_front(search, records)} if several else set(),
        missed=misses(search, records),
    )


def _table(search: SearchRecord, standing: _Standing, columns: Sequence[_Column]) -> Table:
    table = Table(title=escape(search.name), caption_justify="left", header_style="bold")
    table.add_column("#", justify="right", no_wrap=True, min_width=2)
    for column in columns:
        table.add_column(
            escape(column.header), justify=column.justify, style=column.style, no_wrap=True
        )
    zero_shot = TrialRecord(
        ZERO_SHOT,
        -1,
        "reference",
        params={},
        curve=({**search.zero_shot, "step": 0, SECONDS: math.nan},),
    )
    for record in [zero_shot, *standing.references]:
        table.add_row("", *(column.cell(record) for column in columns), style="dim")
    table.add_section()
    for rank, record in enumerate(standing.trials, 1):
        style = "dim" if record.outcome == "finished" and standing.missed[record.trial_id] else ""
        if record.trial_id == standing.best:
            style = "bold green"
        table.add_row(
            (str(rank) if record.outcome == "finished" else "-")
            + "*" * (record.trial_id in standing.front),
            *(column.cell(record) for column in columns),
            style=style,
        )
    return table


def _columns(search: SearchRecord, records: Sequence[TrialRecord]) -> list[_Column]:
    def percent(metric: str) -> Callable[[TrialRecord], str]:
        return lambda record: format_percent(record.metrics.get(metric))

    return [
        _Column("trial", lambda record: escape(record.trial_id), justify="left"),
        *_param_columns(search, records),
        _Column(f"{search.id_domain}\n(ID)", percent(ID_ACC), style="bold"),
        _Column("OOD\nmean", percent(OOD_MEAN_ACC), style="bold"),
        *(_Column(d, percent(domain_acc(d)), "domains") for d in search.ood_domains),
        _Column("step", lambda record: f"{record.step}/{search.total_steps}", "step"),
        _Column("outcome", _outcome, "outcome", justify="left"),
        _Column("time", lambda record: format_seconds(record.seconds), "time"),
    ]


def _param_columns(search: SearchRecord, records: Sequence[TrialRecord]) -> list[_Column]:
    """One a parameter; of several methods one a parameter that all have, and one for the others."""

    def param(key: str) -> Callable[[TrialRecord], str]:
        return lambda record: escape(format_value(record.params.get(key, "")))

    def method(record: TrialRecord) -> str:
        return escape(search.method(record) or "") if record.kind == "trial" else ""

    keys = list(dict.fromkeys(key for r in records for key in r.params))
    if len(search.methods(records)) < 2:
        return [_Column(h, param(k)) for h, k in zip(short_names(keys), keys, strict=True)]
    trials = [record for record in records if record.kind == "trial"]
    common = [key for key in keys if all(key in record.params for record in trials)]
    own = [METHOD_KEY, *common]
    shown = [key for key in common if key != METHOD_KEY]
    found = [_Column("method", method, justify="left")]
    found += [_Column(h, param(k)) for h, k in zip(short_names(shown), shown, strict=True)]
    if not {*keys} <= {*own}:

        def others(record: TrialRecord) -> str:
            return escape(format_params(record.params, but=own))

        found.append(_Column("parameters", others, "parameters", justify="left"))
    return found


def _misses_column(search: SearchRecord, standing: _Standing) -> list[_Column]:
    """By how much a finished trial misses a constraint at worst, and which where there are more."""
    if not search.constraints:
        return []
    letters = _letters(search)

    def cell(record: TrialRecord) -> str:
        amounts = standing.missed.get(record.trial_id)
        if not amounts or record.outcome != "finished":
            return ""
        text, amount = max(amounts.items(), key=lambda item: item[1])
        return f"{amount:.2g}" + (f" {letters[text]}" if len(letters) > 1 else "")

    return [_Column("misses\nby", cell)]


def _letters(search: SearchRecord) -> dict[str, str]:
    return {c.text: chr(ord("a") + index) for index, c in enumerate(search.constraints)}


def _outcome(record: TrialRecord) -> str:
    if record.trial_id == ZERO_SHOT:
        return ""
    return f"[{OUTCOME_STYLE[record.outcome]}]{record.outcome}[/]"


def _caption(search: SearchRecord, standing: _Standing, dropped: Sequence[str]) -> str:
    lines = [search.selection, "Validation accuracy in percent, each trial at its last step."]
    if len(search.objectives) > 1:
        lines.append("* On the Pareto front of the objectives; ranked by their mean.")
    if len(search.constraints) > 1:
        named = [f"{letter}: {text}" for text, letter in _letters(search).items()]
        lines.append(f"Misses {'; '.join(named)}.")
    finished = [record for record in standing.trials if record.outcome == "finished"]
    if finished and all(standing.missed[record.trial_id] for record in finished):
        lines.append("No finished trial meets the constraints: first comes what misses them least.")
    if dropped:
        lines.append(f"Left out for want of room: {', '.join(dropped)}; see trials.parquet.")
    everyone = [*standing.references, *standing.trials]
    failed = [record for record in everyone if record.outcome == "failed"]
    if failed:
        lines.append(f"{len(failed)} failed:")
        lines += [f"  {r.trial_id}: {r.error_line or 'no error recorded'}" for r in failed]
    return "\n".join(lines)
