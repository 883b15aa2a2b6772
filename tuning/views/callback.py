"""The files of a run that people read: tables and the page, written while a search runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.errors import StorageFailed
from tuning.runs.callbacks import Callback
from tuning.runs.journal import read_history
from tuning.runs.ranking import best_finished
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.views.tables import write_tables

if TYPE_CHECKING:
    from tuning.views.changed_images import Changed

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 30.0
"""Time between two writes while the search runs."""
PAUSE_PER_WRITE = 50
"""The pause after a write is at least this many times its duration, so it takes at most 2 %."""


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
) -> Path:
    """Write the tables, the page and, unless it is running, the main figure of a search.

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
    folder, best = search.run_folder / REPORT_FOLDER, best_finished(search, records)
    changed: Sequence[Changed] = ()
    if best is not None and checkpoints is not None:
        changed = changed_images(search, checkpoints, best.trial_id)
    page = write_page(search, records, folder, running=running, changed=changed)
    if search.ood_domains and not running:
        write_main_figure(search, records, folder)
    return page
