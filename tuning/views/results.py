"""The files of a run that people read: tables and the page, written while a search runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.errors import ConfigError
from tuning.runs.history import History
from tuning.runs.ranking import best_finished
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.views.follower import View
from tuning.views.tables import write_tables

if TYPE_CHECKING:
    from tuning.views.changed_images import Changed

PAUSE_SECONDS = 30.0
"""Time between two writes while the search runs."""
PAUSE_PER_WRITE = 50
"""The pause after a write is at least this many times its duration, so it takes at most 2 %."""


class ResultsView(View):
    """Tables and page, written every 30 s while the search runs.

    Args:
        checkpoints: folder or URL of the checkpoints of all trials, with predictions.
    """

    name = "the page"

    def __init__(self, checkpoints: str | None = None, pause: float = PAUSE_SECONDS) -> None:
        self._checkpoints = checkpoints
        self.seconds = self._pause = pause

    def write(self, history: History, is_over: bool) -> None:
        """Write everything; images that became right or wrong at the end.

        Raises:
            StorageFailed: the disk is full or fails.
        """
        began = time.monotonic()
        checkpoints = self._checkpoints if is_over else None
        search = replace(self._search, ended_by=history.ended_by)
        write_results(search, history.records, checkpoints, running=not is_over)
        self.seconds = max(self._pause, PAUSE_PER_WRITE * (time.monotonic() - began))


def write_results(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    checkpoints: str | None = None,
    *,
    running: bool = False,
) -> Path:
    """Write the tables and the page of a search.

    Returns:
        The path of the page.

    Raises:
        StorageFailed: the disk is full or fails.
    """
    # Plotly takes a second to import.
    from tuning.views.changed_images import changed_images
    from tuning.views.page import REPORT_FOLDER, write_page

    write_tables(search.run_folder, search, records)
    best = best_finished(search, records)
    changed: Sequence[Changed] | str = ()
    if best is not None and checkpoints is not None:
        try:
            changed = changed_images(search, checkpoints, best.trial_id)
        except ConfigError as error:
            changed = str(error)
    folder = search.run_folder / REPORT_FOLDER
    return write_page(search, records, folder, running=running, changed=changed)
