"""What each rule of selection chooses, for people: rows for the terminal and for MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.markup import escape
from rich.table import Table

from tuning.reporting.formatting import format_gap, format_percent, natural_width
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.selection.rules import BY_METHOD, Choice, choices

HEADERS: Final = (
    "rule", "trials", "ID", "OOD\nmean", "worst\nOOD", "gap", "ID\ngap", "sees\nOOD", "chooses"
)  # fmt: skip
"""Of the rows that `cells` gives."""
_LEFT: Final = ("rule", "trials", "chooses")
# What a narrow terminal goes without, first to last; all of it is in selection.parquet.
_EXPENDABLE: Final = ("chooses", "ID\ngap", "worst\nOOD")
_NAMED = 2
"""Trials of a rule that are named in its row; of more, how many."""
_LISTED = 12
"""Trials of a set that are listed with their figures."""


def selection_table(
    search: SearchRecord, records: Sequence[TrialRecord], width: int | None = None
) -> Table:
    """What each rule of selection chooses, a row a rule, and what it may say of its choice.

    Args:
        search: What the trials were chosen by.
        records: Trials and references in any order.
        width: Characters of the terminal. Where the table is wider, columns are left out.
    """
    found = choices(search, records)
    rows = [dict(zip(HEADERS, cells(choice), strict=True)) for choice in found]
    for number in range(len(_EXPENDABLE) + 1):
        kept = [header for header in HEADERS if header not in _EXPENDABLE[:number]]
        table = Table(title="What each rule chooses", caption_justify="left", header_style="bold")
        for header in kept:
            table.add_column(header, justify="left" if header in _LEFT else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(escape(row[header]) for header in kept))
        if width is None or natural_width(table) <= width:
            break
    table.caption = escape("\n".join(notes(search, found)))
    return table


def cells(choice: Choice) -> tuple[str, ...]:
    """A rule's row, under `HEADERS`; of a rule that chose a set, its lowest and highest figures."""
    picks, trials = choice.picks, choice.trials
    return (
        choice.rule,
        ", ".join(map(_short, trials)) if len(trials) <= _NAMED else f"{len(trials)} trials",
        _figure(choice, choice.id_acc, [pick.id_acc for pick in picks]),
        _figure(choice, choice.ood_acc, [pick.ood_acc for pick in picks]),
        _figure(choice, choice.worst_acc, [pick.worst_acc for pick in picks]),
        format_gap(choice.gap),
        format_gap(choice.id_gap),
        "yes" if choice.looks_at_ood else "no",
        choice.description,
    )


def notes(search: SearchRecord, found: Sequence[Choice]) -> list[str]:
    """What the figures of the rules mean, and where they come from, in sentences."""
    if not any(choice.picks for choice in found):
        return ["There is no trial to choose yet."]
    lines = [
        "gap: mean OOD accuracy less that of ood_val, which saw the data it is judged on. "
        "ID gap: ID accuracy less that of id_val."
    ]
    for choice in found:
        if choice.by_domain:
            lines.append(f"{choice.rule}, chosen by the other domains: {_by_domain(choice)}.")
        if choice.rule == BY_METHOD:
            lines.append(f"{choice.rule}: see the best of each method.")
        elif choice.is_set:
            lines.append(f"{choice.rule} (ID, OOD mean): {_members(choice)}.")
    if search.sees_ood:
        lines.append("Whatever the rule, the search that proposed the trials looked at OOD data.")
    if any(trial.outcome != "finished" for choice in found for trial in choice.trials):
        lines.append("No trial finished: chosen among those that got furthest.")
    reasons: dict[str, list[str]] = {}
    for choice in found:
        if choice.reason:
            reasons.setdefault(choice.reason, []).append(choice.rule)
    return lines + [f"Without {', '.join(rules)}: {reason}." for reason, rules in reasons.items()]


def _figure(choice: Choice, own: float | None, members: Sequence[float | None]) -> str:
    known = [value for value in members if value is not None]
    if not choice.is_set or not known:
        return format_percent(own)
    return f"{min(known):.0f}-{max(known):.0f}"


def _by_domain(choice: Choice) -> str:
    """Which trial is judged on which domains."""
    judges: dict[str, list[str]] = {}
    for domain, trial in choice.by_domain.items():
        judges.setdefault(_short(trial), []).append(domain)
    if len(judges) == 1:
        return f"{next(iter(judges))} for each"
    return "; ".join(f"{name} for {', '.join(domains)}" for name, domains in judges.items())


def _members(choice: Choice) -> str:
    """The trials of a set with their figures."""
    members = [
        f"{_short(pick.trial)} ({format_percent(pick.id_acc)}, {format_percent(pick.ood_acc)})"
        for pick in choice.picks[:_LISTED]
    ]
    more = len(choice.picks) - len(members)
    return ", ".join(members) + (f" and {more} more" if more else "")


def _short(trial: TrialRecord) -> str:
    return trial.trial_id.removeprefix("trial-")
