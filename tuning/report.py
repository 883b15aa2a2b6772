"""What a search found, for people: the leaderboard in the terminal, and `figure` beside it.

Both say which split the choice was made on, since validation numbers that chose a trial are
optimistic about it; the test splits are read by `confirm` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from tuning.figures import figure
from tuning.records import (
    ID_ACC,
    OOD_MEAN_ACC,
    SECONDS,
    ParamValue,
    SearchRecord,
    TrialRecord,
    domain_acc,
)
from tuning.results import ZERO_SHOT, best_trial, ranked

__all__ = ["OUTCOME_STYLE", "figure", "format_seconds", "format_value", "leaderboard"]

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
    columns = _columns(search, list(dict.fromkeys(key for r in records for key in r.params)))
    ruler = Console(width=10_000)
    for number in range(len(_EXPENDABLE) + 1):
        dropped = _EXPENDABLE[:number]
        kept = [column for column in columns if column.group not in dropped]
        table = _table(search, records, kept)
        if width is None or Measurement.get(ruler, ruler.options, table).maximum <= width:
            break
    table.caption = escape(_caption(search, records, dropped))
    return table


def _table(
    search: SearchRecord, records: Sequence[TrialRecord], columns: Sequence[_Column]
) -> Table:
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
        ZERO_SHOT,
        params={},
        curve=({**search.zero_shot, "step": 0, SECONDS: math.nan},),
    )
    for record in [zero_shot, *(r for r in records if r.kind == "reference")]:
        table.add_row("", *(column.cell(record) for column in columns), style="dim")
    table.add_section()
    best = best_trial(search, records)
    for rank, record in enumerate(ranked(search, records), 1):
        table.add_row(
            str(rank) if record.outcome == "finished" else "-",
            *(column.cell(record) for column in columns),
            style="bold green" if best is not None and record.trial_id == best.trial_id else "",
        )
    return table


def _columns(search: SearchRecord, params: Sequence[str]) -> list[_Column]:
    def param(key: str) -> Callable[[TrialRecord], str]:
        return lambda record: escape(format_value(record.params.get(key, "")))

    def percent(metric: str) -> Callable[[TrialRecord], str]:
        return lambda record: format_percent(record.metrics.get(metric))

    return [
        _Column("trial", lambda record: escape(record.name), justify="left"),
        *(_Column(h, param(k)) for h, k in zip(_short_names(params), params, strict=True)),
        _Column(f"{search.id_domain}\n(ID)", percent(ID_ACC), style="bold"),
        _Column("OOD\nmean", percent(OOD_MEAN_ACC), style="bold"),
        *(_Column(d, percent(domain_acc(d)), "domains") for d in search.ood_domains),
        _Column("step", lambda record: f"{record.step}/{search.total_steps}", "step"),
        _Column("outcome", _outcome, "outcome", justify="left"),
        _Column("time", lambda record: format_seconds(record.seconds), "time"),
    ]


def _outcome(record: TrialRecord) -> str:
    if record.trial_id == ZERO_SHOT:
        return ""
    return f"[{OUTCOME_STYLE[record.outcome]}]{record.outcome}[/]"


def _caption(search: SearchRecord, records: Iterable[TrialRecord], dropped: Sequence[str]) -> str:
    lines = [search.selection, "Validation accuracy in percent, each trial at its last step."]
    if dropped:
        lines.append(f"Left out for want of room: {', '.join(dropped)}; see trials.parquet.")
    failed = [r for r in records if r.outcome == "failed"]
    if failed:
        lines.append(f"{len(failed)} failed:")
        lines += [f"  {r.name}: {r.error_line or 'no error recorded'}" for r in failed]
    return "\n".join(lines)


def format_value(value: ParamValue) -> str:
    """A parameter's value, floats to 3 significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_percent(value: float | None) -> str:
    """An accuracy with one decimal and no sign; empty where unknown."""
    return "" if value is None else f"{value:.1f}"


def format_seconds(seconds: float | None) -> str:
    """48s, 6m 00s or 2h 05m; empty where unknown."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def _short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key, or the whole key where two would look the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return [s if last.count(s) == 1 else k for s, k in zip(last, keys, strict=True)]
