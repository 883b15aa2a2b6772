"""The choice of each selection rule as a table, for `confirm` and the page."""

from __future__ import annotations

from collections.abc import Sequence

from tuning.runs.records import SearchRecord, TrialRecord
from tuning.selection.rules import PROPOSED_WITH_OOD, RULES, choices
from tuning.views.formatting import format_percent
from tuning.views.result_table import PlainTable

MAX_NAMED = 3
"""Trials of a rule that are named in its row; if there are more, their number is given."""


def selection_table(search: SearchRecord, records: Sequence[TrialRecord]) -> PlainTable | None:
    """One row per selection rule: its choice, the accuracies, and whether it used OOD data.

    None while there is no trial to choose.
    """
    found = choices(search, records)
    if not any(choice.picks for choice in found):
        return None
    rows = []
    for choice in found:
        names = [trial.trial_id for trial in choice.trials]
        trials = ", ".join(names) if len(names) <= MAX_NAMED else f"{len(names)} trials"
        accuracies = [choice.id_acc, choice.ood_acc, choice.worst_acc]
        cells = [format_percent(value) for value in accuracies]
        gap = "" if choice.gap is None else f"{choice.gap:+z.1f}"
        sees = "yes" if choice.looks_at_ood else "no"
        rows.append([choice.rule, trials, *cells, gap, sees, RULES[choice.rule]])
    columns = ["rule", "trials", "ID", "OOD", "worst OOD", "gap", "sees OOD", "chooses"]
    notes = ["gap: mean OOD accuracy minus that of the choice of `ood_val`."]
    notes += [PROPOSED_WITH_OOD] if search.sees_ood else []
    return PlainTable(columns, rows, notes)
