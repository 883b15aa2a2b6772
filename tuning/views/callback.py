"""The results in the run folder: tables while a search runs, and its report at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tuning.runs.callbacks import Callback
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.views.html_report import REPORT_FOLDER, write_report
from tuning.views.tables.trials import write_tables

MIN_PAUSE_SECONDS = 10.0
"""Minimum time between two writes of the tables while the search runs."""
PAUSE_PER_WRITE = 50
"""The pause after a write is at least this many times the duration of the write."""


class ResultsCallback(Callback):
    """Writes the run folder's tables when a trial ends, and tables and report at the end.

    At least 10 s, and 50 times the duration of the last write, lie between two writes, so that
    writing takes at most 2 % of the time. The tables may lag behind by that much.
    """

    def __init__(
        self,
        run_folder: Path,
        earlier: Sequence[TrialRecord] = (),
        clock: Callable[[], float] = time.monotonic,
        checkpoints: str | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self._folder, self._clock = run_folder, clock
        self._records = {record.trial_id: record for record in earlier}
        self._search: SearchRecord | None = None
        self._next_write = -math.inf

    def search_started(self, search: SearchRecord) -> None:
        """Nothing is written yet, so that a resume keeps the tables of the earlier session."""
        self._search = search

    def trial_started(self, record: TrialRecord) -> None:
        """Keep the record for the next write."""
        self._records[record.trial_id] = record

    trial_reported = trial_started

    def trial_ended(self, record: TrialRecord) -> None:
        """Write the tables, unless that was done a short while ago."""
        self._records[record.trial_id] = record
        started = self._clock()
        if self._search is None or started < self._next_write:
            return
        write_tables(self._folder, self._search, list(self._records.values()))
        ended = self._clock()
        self._next_write = ended + max(MIN_PAUSE_SECONDS, PAUSE_PER_WRITE * (ended - started))

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Write tables and report with all trials."""
        if self._search is not None:
            write_results(self._folder, self._search, records, self._checkpoints)


def write_results(
    run_folder: Path,
    search: SearchRecord,
    records: Sequence[TrialRecord],
    checkpoints: str | None = None,
) -> None:
    """Write the tables and the report of a search into its run folder.

    Raises:
        StorageFailed: the disk is full or fails.
    """
    write_tables(run_folder, search, records)
    write_report(search, records, run_folder / REPORT_FOLDER, checkpoints)
