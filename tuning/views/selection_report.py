"""The choice of each selection rule as a table, for the terminal and for MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tuning.runs.records import SearchRecord, TrialRecord
from tuning.selection.rules import BY_METHOD, PROPOSED_WITH_OOD, RULES, Choice, choices
from tuning.views.formatting import format_gap, format_percent
from tuning.views.result_table import Column, ResultTable, Row

_COLUMNS: Final = (
    Column("rule", "rule", left=True),
    Column("trials", "trials", left=True),
    Column("id_acc", "ID"),
    Column("ood_acc", "OOD\nmean"),
    Column("worst_acc", "worst\nOOD", drop=3),
    Column("gap", "gap", format_gap, drop=4),
    Column("id_gap", "ID\ngap", format_gap, drop=2),
    Column("sees_ood", "sees\nOOD"),
    Column("chooses", "chooses", drop=1, left=True),
)
_MAX_NAMED = 2
"""Trials of a rule that are named in its row; if there are more, their number is given."""
_MAX_LISTED = 12
"""Members of a set of trials that are listed with their accuracies below the table."""


def selection_table(search: SearchRecord, records: Sequence[TrialRecord]) -> ResultTable | None:
    """One row per selection rule: its choice, the accuracies, and whether it used OOD data.

    None while there is no trial to choose.
    """
    found = choices(search, records)
    if not any(choice.picks for choice in found):
        return None
    rows = []
    for choice in found:
        trials = [_number(trial) for trial in choice.trials]
        several = f"{len(trials)} trials"
        values = {
            "rule": choice.rule,
            "trials": ", ".join(trials) if len(trials) <= _MAX_NAMED else several,
            "id_acc": _accuracy(choice, choice.id_acc, [pick.id_acc for pick in choice.picks]),
            "ood_acc": _accuracy(choice, choice.ood_acc, [p.ood_acc for p in choice.picks]),
            "worst_acc": _accuracy(choice, choice.worst_acc, [p.worst_acc for p in choice.picks]),
            "gap": choice.gap,
            "id_gap": choice.id_gap,
            "sees_ood": "yes" if choice.looks_at_ood else "no",
            "chooses": RULES[choice.rule],
        }
        rows.append(Row(values))
    notes = _notes(search, found)
    return ResultTable("What each rule chooses", _COLUMNS, rows, notes, "selection.parquet")


def _notes(search: SearchRecord, found: Sequence[Choice]) -> list[str]:
    """Sentences about the meaning of the accuracies and the trials that they belong to."""
    lines = [
        "gap: mean OOD accuracy minus that of ood_val, which chooses on the OOD data that it "
        "reports. ID gap: ID accuracy minus that of id_val."
    ]
    if search.constraints:
        texts = " and ".join(constraint.text for constraint in search.constraints)
        lines.append(f"All rules choose among the trials with {texts}, if there are any.")
    for choice in found:
        if choice.by_domain:
            judged: dict[str, list[str]] = {}
            for domain, trial in choice.by_domain.items():
                judged.setdefault(_number(trial), []).append(domain)
            parts = [f"{trial} for {', '.join(domains)}" for trial, domains in judged.items()]
            text = "; ".join(parts) if len(parts) > 1 else f"{next(iter(judged))} for each"
            lines.append(f"{choice.rule}, chosen by the other domains: {text}.")
        if choice.rule == BY_METHOD:
            lines.append(f"{choice.rule}: see the table of methods.")
        elif choice.is_set:
            members = [
                f"{_number(p.trial)} ({format_percent(p.id_acc)}, {format_percent(p.ood_acc)})"
                for p in choice.picks[:_MAX_LISTED]
            ]
            more = len(choice.picks) - len(members)
            text = ", ".join(members) + (f" and {more} more" if more else "")
            lines.append(f"{choice.rule} (ID, OOD mean): {text}.")
    if search.sees_ood:
        lines.append(PROPOSED_WITH_OOD)
    if any(trial.outcome != "finished" for choice in found for trial in choice.trials):
        lines.append("No trial finished: the rules choose among the trials that got furthest.")
    reasons: dict[str, list[str]] = {}
    for choice in found:
        if choice.reason:
            reasons.setdefault(choice.reason, []).append(choice.rule)
    return lines + [f"No choice by {', '.join(r)}: {reason}." for reason, r in reasons.items()]


def _accuracy(choice: Choice, value: float | None, members: Sequence[float | None]) -> str:
    """The rule's accuracy, or the range over the members if the rule chose a set of trials."""
    known = [member for member in members if member is not None]
    if not choice.is_set or not known:
        return format_percent(value)
    return f"{min(known):.0f}-{max(known):.0f}"


def _number(trial: TrialRecord) -> str:
    return trial.trial_id.removeprefix("trial-")
