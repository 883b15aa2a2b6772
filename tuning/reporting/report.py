"""What a search found, for people: the leaderboard and the rules of selection in the terminal, and
`figure` beside them.

All say which split the choice was made on, since validation numbers that chose a trial are
optimistic about it; the test splits are read by `confirm` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from tuning.records import (
    ID_ACC,
    OOD_MEAN_ACC,
    SECONDS,
    SearchRecord,
    TrialRecord,
    domain_acc,
)
from tuning.reporting.figures import figure
from tuning.reporting.formats import format_percent, format_seconds, format_value
from tuning.reporting.selection_report import selection_table
from tuning.reporting.tables import ZERO_SHOT
from tuning.selection import best_trial, misses, pareto_front, ranked

__all__ = [
    "OUTCOME_STYLE",
    "figure",
    "format_percent",
    "format_seconds",
    "format_value",
    "leaderboard",
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
_EXPENDABLE = ("domains", "time", "step", "outcome")


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
    """The leaderboard, and under it what each rule of selection chooses."""
    return Group(leaderboard(search, records, width), "", selection_table(search, records, width))


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
    params = list(dict.fromkeys(key for r in records for key in r.params))
    columns = [*_columns(search, params), *_misses_column(search, standing)]
    ruler = Console(width=10_000)
    for number in range(len(_EXPENDABLE) + 1):
        dropped = _EXPENDABLE[:number]
        kept = [column for column in columns if column.group not in dropped]
        table = _table(search, standing, kept)
        if width is None or Measurement.get(ruler, ruler.options, table).maximum <= width:
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


def _columns(search: SearchRecord, params: Sequence[str]) -> list[_Column]:
    def param(key: str) -> Callable[[TrialRecord], str]:
        return lambda record: escape(format_value(record.params.get(key, "")))

    def percent(metric: str) -> Callable[[TrialRecord], str]:
        return lambda record: format_percent(record.metrics.get(metric))

    return [
        _Column("trial", lambda record: escape(record.trial_id), justify="left"),
        *(_Column(h, param(k)) for h, k in zip(_short_names(params), params, strict=True)),
        _Column(f"{search.id_domain}\n(ID)", percent(ID_ACC), style="bold"),
        _Column("OOD\nmean", percent(OOD_MEAN_ACC), style="bold"),
        *(_Column(d, percent(domain_acc(d)), "domains") for d in search.ood_domains),
        _Column("step", lambda record: f"{record.step}/{search.total_steps}", "step"),
        _Column("outcome", _outcome, "outcome", justify="left"),
        _Column("time", lambda record: format_seconds(record.seconds), "time"),
    ]


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


def _short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key, or the whole key where two would look the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return [s if last.count(s) == 1 else k for s, k in zip(last, keys, strict=True)]
