"""The files of a run that people read: tables and the page, written while a search runs."""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.errors import StorageFailed
from tuning.runs.callbacks import Callback
from tuning.runs.journal import read_history
from tuning.runs.ranking import best_finished, stronger_reference
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.selection.rules import PROPOSED_WITH_OOD, RULES, choices
from tuning.views.answer import answer, commands_after
from tuning.views.formatting import format_percent
from tuning.views.result_table import ResultTable
from tuning.views.tables import write_tables

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 30.0
"""Time between two writes while the search runs."""
PAUSE_PER_WRITE = 50
"""The pause after a write is at least this many times its duration, so it takes at most 2 %."""
MAX_NAMED = 3
"""Trials of a rule that are named in its row; if there are more, their number is given."""


class ResultsCallback(Callback):
    """Writes tables and page from the journal, every 30 s in a thread of its own and at the end.

    Args:
        checkpoints: folder or URL of the checkpoints of all trials, with predictions.
    """

    def __init__(self, checkpoints: str | None = None, pause: float = PAUSE_SECONDS) -> None:
        self._checkpoints, self._pause = checkpoints, pause
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def search_started(self, search: SearchRecord) -> None:
        """Follow the journal from now on."""
        self._search = search
        self._thread.start()

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Write everything with all trials."""
        self._ended.set()
        self._thread.join()
        write_results(self._search, records, self._checkpoints)

    def _follow(self) -> None:
        pause, written = self._pause, -1.0
        journal = self._search.run_folder / "journal.jsonl"
        while not self._ended.wait(pause):
            began = time.monotonic()
            try:
                changed = journal.stat().st_mtime
                if changed != written:
                    records = read_history(self._search.run_folder, live=True).records
                    write_results(self._search, records, None, running=True)
                    written = changed
            except Exception as error:  # a page less is no reason to end a search
                traced = not isinstance(error, StorageFailed)
                logger.warning("the report cannot be written: %s", error, exc_info=traced)
            pause = max(self._pause, PAUSE_PER_WRITE * (time.monotonic() - began))


def write_results(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    checkpoints: str | None = None,
    *,
    running: bool = False,
    **content: Any,
) -> Path:
    """Write the tables, the page and, unless it is running, the main figure of a search.

    Args:
        content: of `write_page`, in place of what the search itself has found.

    Returns:
        The path of the page.

    Raises:
        StorageFailed: the disk is full or fails.
    """
    # Plotly and Matplotlib take a second to import.
    from tuning.views.changed_images import changed_images
    from tuning.views.page import REPORT_FOLDER, write_page
    from tuning.views.static import write_main_figure

    write_tables(search.run_folder, search, records)
    found: dict[str, Any] = {"lines": answer(search, records)}
    best, rules = best_finished(search, records), selection_table(search, records)
    if best is not None:
        won, name = stronger_reference(search, records) or best, shlex.quote(search.name)
        found["commands"] = commands_after(won, name)
        if checkpoints is not None:
            found["changed"] = changed_images(search, checkpoints, best.trial_id)
    if rules is not None:
        found["folded"] = {"Selection rules": rules}
    folder = search.run_folder / REPORT_FOLDER
    page = write_page(search, records, folder, running=running, **{**found, **content})
    if search.ood_domains and not running:
        write_main_figure(search, records, folder)
    return page


def selection_table(search: SearchRecord, records: Sequence[TrialRecord]) -> ResultTable | None:
    """One row per selection rule: its choice, the accuracies, and whether it used OOD data.

    None while there is no trial to choose.
    """
    found = choices(search, records)
    if not any(choice.trials for choice in found):
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
    return ResultTable(columns, rows, notes)
