"""Methods side by side on the test splits: of each the trial that validation found best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.markup import escape
from rich.table import Table

from tuning.confirmation.formatting import format_difference, format_mean
from tuning.confirmation.results import FT, SPLIT, Configuration, Confirmation
from tuning.reporting.formatting import format_percent, format_seconds, natural_width
from tuning.runs.records import SECONDS, ZERO_SHOT

_METRICS: Final = {
    "ID": f"id_{SPLIT}/acc",
    "OOD mean": f"ood_{SPLIT}/mean_acc",
    "ECE ID": f"id_{SPLIT}/ece",
    "ECE OOD": f"ood_{SPLIT}/mean_ece",
}
"""Header -> metric, all in percent."""
_COMPARED: Final = ("ID", "OOD mean")
# What a narrow terminal goes without, first to last; all of it is in confirm/results.parquet.
_EXPENDABLE: Final = ("trial", "time", "ECE ID", "ECE OOD")


def methods_table(confirmation: Confirmation, width: int | None = None) -> Table | None:
    """A row a method, in the order of validation; None where fewer than two were confirmed.

    Args:
        confirmation: what to show.
        width: characters of the terminal. Where the table is wider, intervals take a second line,
            then columns are left out, and the caption says which.
    """
    if not confirmation.methods:
        return None
    for number in range(-1, len(_EXPENDABLE) + 1):
        dropped = _EXPENDABLE[: max(0, number)]
        table = _table(confirmation, dropped, between=" " if number < 0 else "\n")
        if width is None or natural_width(table) <= width:
            break
    table.caption = escape("\n".join(_notes(confirmation, dropped)))
    return table


def tuned_ft(confirmation: Confirmation) -> Configuration | None:
    """Plain fine-tuning as one of the methods that were searched, where it is among them."""
    return next((one for one in confirmation.methods if one.method == FT), None)


def _table(confirmation: Confirmation, dropped: Sequence[str], between: str) -> Table:
    name = escape(confirmation.search.name)
    table = Table(
        title=f"{name}, methods on the test splits, in percent",
        caption_justify="left",
        header_style="bold",
    )
    reference = [one for one in confirmation.configurations if one.trial_id == FT]
    above = [_zero_shot_cells(confirmation)]
    above += [_cells(confirmation, one, between) for one in reference]
    rows = [_cells(confirmation, one, between) for one in confirmation.methods]
    headers = [header for header in rows[0] if header not in dropped]
    for header in headers:
        left = header in ("method", "trial")
        table.add_column(header, justify="left" if left else "right", no_wrap=True)
    for row in above:
        table.add_row(*(row.get(header, "") for header in headers), style="dim")
    table.add_section()
    for row in rows:
        table.add_row(*(row[header] for header in headers))
    return table


def _zero_shot_cells(confirmation: Confirmation) -> dict[str, str]:
    figures = {h: format_percent(confirmation.zero_shot.get(m)) for h, m in _METRICS.items()}
    return {"method": ZERO_SHOT, **figures}


def _cells(confirmation: Confirmation, one: Configuration, between: str) -> dict[str, str]:
    against = tuned_ft(confirmation)
    ft = FT if against is None else against.trial_id
    seconds = confirmation.estimate(one.trial_id, SECONDS)
    found = {
        "method": f"{FT}, reference" if one.trial_id == FT else escape(one.method or ""),
        "trial": "" if one.trial_id == FT else escape(one.trial_id),
        **{h: format_mean(confirmation.estimate(one.trial_id, m)) for h, m in _METRICS.items()},
        "time": "" if seconds is None else format_seconds(seconds.mean),
    }
    for header in _COMPARED:
        gap = confirmation.against(ft, one.trial_id, _METRICS[header])
        text = "" if one.trial_id == ft else format_difference(gap, between)
        found[f"{header} - ft\n\\[95 % interval]"] = text
    return found


def _notes(confirmation: Confirmation, dropped: Sequence[str]) -> list[str]:
    against = tuned_ft(confirmation)
    untuned = "has the settings of the configuration file and was not tuned"
    lines = [
        f"Of each method the best trial, in this order. {confirmation.search.selection}",
        "Mean ± standard deviation over seeds. ECE: calibration error. Time: of one training, "
        "evaluations included.",
        f"Differences are to ft as the search tuned it ({against.trial_id}); the reference "
        f"{untuned}."
        if against
        else f"Differences are to ft, the reference, which {untuned}, while the methods were.",
    ]
    if dropped:
        lines.append(f"Left out for want of room: {', '.join(dropped)}.")
    return lines
