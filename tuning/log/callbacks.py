"""Callbacks: the events of a search, for the display, the follower and users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuning.log.records import SearchOutcome, TrialRecord

if TYPE_CHECKING:
    from tuning.run import Run


class Callback:
    """Base class of everything that follows a search. Override the events that matter.

    Events come from one thread, in the order of the methods below. Each brings the complete record
    of the trial, so a callback may ignore earlier events. A callback that raises is logged by name
    and the search continues. After a resume, `search_started` comes again and so may `trial_ended`
    of trials that earlier sessions ran: a callback must not count an event twice.
    """

    def search_started(self, run: Run) -> None:
        """The search begins, or continues after a resume, with this run. An exception ends it."""

    def trial_started(self, record: TrialRecord) -> None:
        """A trial starts, or continues after a resume, a lost process or a wait for GPUs."""

    def trial_progressed(self, record: TrialRecord) -> None:
        """A trial has trained on; `record.progress` is its training curve since the last report.

        Every few seconds, without an evaluation.
        """

    def trial_reported(self, record: TrialRecord) -> None:
        """A trial has evaluated its model; `record.metrics` is the new report, and
        `record.progress` the training curve from the report before to this one."""

    def trial_ended(self, record: TrialRecord) -> None:
        """A trial has ended; `record.outcome` tells how."""

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """The search has ended; `records` are all its trials with whole curves."""
