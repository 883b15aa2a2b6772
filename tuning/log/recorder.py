"""Turns the events of trials into records for the journal, the deciders and the callbacks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainers.errors import StorageFailed
from trainers.redact import traceback_of
from tuning.log.callbacks import Callback
from tuning.log.errors import storage_failure
from tuning.log.history import History, Replay
from tuning.log.journal import Journal
from tuning.log.messages import Ended, Failed, Message, Progressed, Reported, SteppedBack
from tuning.log.records import SearchOutcome, TrialRecord

if TYPE_CHECKING:
    from tuning.run import Run

logger = logging.getLogger(__name__)


class Recorder:
    """Keeps the record of every trial. Events go to the journal, the deciders and the callbacks.

    What is written to the journal is replayed here, so the records are those that a reader finds.

    The order matters. An exception of the journal or of a decider ends the search, because a
    resume, the sampler or the budget would miss the event. An exception of a callback is logged.

    Curves stay in memory only while a trial may continue, so memory does not grow with their sum.

    Args:
        run: with the trials of earlier sessions; the callbacks get their ends again.
        callbacks: called in this order.
        deciders: studies and budget, which get starts and ends of trials before the callbacks do.
    """

    def __init__(
        self,
        run: Run,
        journal: Journal,
        callbacks: Sequence[Callback],
        gpus_per_trial: float = 0.0,
        deciders: Sequence[Callback] = (),
    ) -> None:
        self._run = run
        self._replay = Replay(map(_kept, run.records))
        self._proposed: dict[str, TrialRecord] = {}  # and not started
        self._journal = journal
        self._deciders = deciders
        self._callbacks = callbacks
        self._gpus = gpus_per_trial
        self._earlier = [record for record in run.records if record.is_final]

    def start(self) -> None:
        """Tell the callbacks that the search starts. Their exceptions are raised.

        After an exception, only the callbacks that have started get events, such as the end.
        """
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            callback.search_started(self._run)
            self._callbacks = (*self._callbacks, callback)
        for record in self._earlier:
            self._notify("trial_ended", record)
        self._earlier = []

    @property
    def records(self) -> Mapping[str, TrialRecord]:
        """Trial ID -> record: of the journal, and proposals that have not started."""
        return {**self._replay.records, **self._proposed}

    @property
    def is_complete(self) -> bool:
        """Whether every trial has ended for good. One whose process never started has not."""
        return all(record.is_final for record in self.records.values())

    def proposed(self, record: TrialRecord) -> None:
        """Keep a proposal. It is written to the journal when its trial starts."""
        self._proposed[record.trial_id] = record

    def rejected(self, record: TrialRecord, error: str) -> None:
        """Record a proposal that cannot run as a failed trial."""
        self.proposed(record)
        self._fail(record, error)

    def started(self, trial_id: str) -> None:
        """Record that a trial starts or continues."""
        self._start(self._record(trial_id), self._gpus)

    def answered(self, trial_id: str, message: Message, reason: str = "") -> bool:
        """Record a message, and return whether others may follow.

        Args:
            reason: why the trial is stopped, unless it is done; empty if it goes on.
        """
        record = self._record(trial_id)
        if record.is_final:
            return False
        match message:
            case SteppedBack():
                what = f"{trial_id} is repeated from its newest checkpoint"
                logger.warning("%s: %s", what, message.error.partition("\n")[0])
                self._progress(record, Progressed())  # it goes back to its last checkpoint
            case Progressed() if reason:
                self._end(record.with_end("pruned", self._journal.now(), reason=reason))
            case Progressed():
                self._progress(self._placed(record, message.waits), message)
            case Reported():
                self._report(self._placed(record), message, reason)
            case Failed():
                self._fail(record, message.error)
            case Ended():
                self._fail(record, "the trial ended without its last report")
        return not self._record(trial_id).is_final

    def finish(self, outcome: SearchOutcome, reason: str = "") -> History:
        """End the session: trials that still run are `stopped`. Returns what is on the disk.

        The journal decides which trials still run. A signal may have interrupted an event after its
        line was written and before this object was updated. If the journal cannot be written any
        more, a reader comes to the same result without these lines. A session that was refused
        writes none.
        """
        if self._journal.in_session:
            with suppress(StorageFailed):
                for record in self._journal.history(live=True).records:
                    if record.outcome == "running":
                        stopped = record.with_end("stopped", self._journal.now(), reason=reason)
                        self._journal.trial_ended(stopped)
                        self._close(stopped)
                self._journal.session_ended(outcome, reason)
        history = self._journal.history()
        self._notify("search_ended", list(history.records), outcome)
        return history

    def _record(self, trial_id: str) -> TrialRecord:
        return self._proposed.get(trial_id) or self._replay.records[trial_id]

    def _start(self, record: TrialRecord, gpus: float) -> TrialRecord:
        started = record.with_attempt(self._journal.now(), gpus)
        self._replay.add(*self._journal.trial_started(started))
        self._proposed.pop(started.trial_id, None)
        started = self._record(started.trial_id)
        for decider in self._deciders:
            decider.trial_started(started)
        self._notify("trial_started", started)
        return started

    def _placed(self, record: TrialRecord, waits: bool = False) -> TrialRecord:
        """The record of a trial that has its GPUs, or waits for them.

        In the journal, time without GPUs is an attempt of its own.
        """
        gpus = 0.0 if waits else self._gpus
        if record.gpus == gpus:
            return record
        if waits:
            logger.warning("%s waits for GPUs of the cluster", record.trial_id)
        return self._start(record, gpus)

    def _progress(self, record: TrialRecord, message: Progressed) -> None:
        if message.train_curve or record.progress:
            record = replace(record, progress=message.train_curve)
            self._replay.records[record.trial_id] = record
            self._notify("trial_progressed", record)

    def _report(self, record: TrialRecord, message: Reported, reason: str) -> None:
        report = {name: float(value) for name, value in message.metrics.items()}
        record = record.with_report(report)
        if message.is_last:
            record = record.with_end("finished", self._journal.now())
        elif reason:
            record = record.with_end("pruned", self._journal.now(), reason=reason)
        self._replay.add(*self._journal.trial_reported(record, message.train_curve))
        reported = self._record(record.trial_id)
        self._notify("trial_reported", replace(reported, progress=message.train_curve))
        if record.is_final:
            self._ended(record.trial_id)

    def _fail(self, record: TrialRecord, error: str) -> None:
        if record.trial_id in self._proposed:  # its process could not be started
            record = self._start(record, gpus=0.0)
        self._end(record.with_end("failed", self._journal.now(), error))

    def _end(self, record: TrialRecord) -> None:
        self._replay.add(*self._journal.trial_ended(record))
        self._ended(record.trial_id)

    def _ended(self, trial_id: str) -> None:
        record = self._record(trial_id)
        for decider in self._deciders:
            decider.trial_ended(record)
        self._close(record)

    def _close(self, ended: TrialRecord) -> None:
        self._replay.records[ended.trial_id] = _kept(ended)
        self._notify("trial_ended", ended)

    def _notify(self, event: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            try:
                getattr(callback, event)(*arguments)
            except Exception as error:
                name = type(callback).__name__
                if failure := storage_failure(error):
                    logger.error("%s failed at %s: %s", name, event, failure)
                else:
                    logger.error("%s failed at %s\n%s", name, event, traceback_of(error))


def _kept(record: TrialRecord) -> TrialRecord:
    """What stays in memory of a trial: of one that has ended for good, its last report only."""
    return record.compact if record.is_final else record
