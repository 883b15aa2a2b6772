"""Tables that keep up with a running search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tuning.reporting.tables.trials import write_tables
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord

MIN_PAUSE_SECONDS = 10.0
"""Between two writings of the tables while the search runs."""
PAUSE_PER_WRITE = 50
"""The pause after a writing is at least so many times what it took."""


class TablesCallback:
    """Keeps the tables of the run folder up to date, at a price that no search feels.

    It holds no trial itself. At a trial's end it writes anew only when at least 10 s, and 50 times
    what the last writing took, went by since then, so it takes at most 2% of the time; the tables
    may lag so far behind. At the end of the search they are complete.

    Args:
        run_folder: where the tables go.
        read: gives all trials with their whole curves, as from the journal.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        run_folder: Path,
        read: Callable[[], Sequence[TrialRecord]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._read, self._clock = run_folder, read, clock
        self._search: SearchRecord | None = None
        self._not_before = -math.inf

    def search_started(self, search: SearchRecord) -> None:
        """Remembers the search; nothing is written yet, so a resume keeps the tables it finds."""
        self._search = search

    def trial_started(self, record: TrialRecord) -> None:
        """Not in the tables before the next writing."""

    def trial_reported(self, record: TrialRecord) -> None:
        """Not in the tables before the next writing."""

    def trial_ended(self, record: TrialRecord) -> None:
        """Writes the tables, unless that was done a short while ago."""
        started = self._clock()
        if self._search is None or started < self._not_before:
            return
        write_tables(self._folder, self._search, self._read())
        ended = self._clock()
        self._not_before = ended + max(MIN_PAUSE_SECONDS, PAUSE_PER_WRITE * (ended - started))

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Writes the tables from the search's own list of records."""
        if self._search is not None:
            write_tables(self._folder, self._search, records)
