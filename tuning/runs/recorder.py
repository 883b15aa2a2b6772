"""Ray Tune's events as records of our own, handed on to callbacks that know no Ray."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ray.tune import Callback as TuneCallback
from ray.tune.experiment import Trial

from trainers.errors import StorageFailed
from tuning.execution.ray_errors import error_of, in_one_line, storage_failure
from tuning.runs.journal import Journal, read_history
from tuning.runs.records import (
    REFERENCE_KEY,
    STEP,
    TRIAL_KEY,
    Callback,
    SearchOutcome,
    SearchRecord,
    TrialRecord,
    trial_number,
)

logger = logging.getLogger(__name__)


class Recorder(TuneCallback):
    """Keeps one record a trial, writes the journal, and tells the callbacks of every event.

    The journal comes first, and what it raises ends the search: nothing may happen that a resume
    would not know of. A callback that raises is named in the log and the search goes on.

    Args:
        search: what the search is after.
        journal: of the run folder, open.
        callbacks: told in this order.
        earlier: trials of earlier sessions; the callbacks hear of their ends again at the start.
        gpus_per_trial: that a trial reserves while it runs.
    """

    def __init__(
        self,
        search: SearchRecord,
        journal: Journal,
        callbacks: Sequence[Callback],
        earlier: Sequence[TrialRecord] = (),
        gpus_per_trial: float = 0.0,
    ) -> None:
        self.search = search
        self.records = {record.trial_id: _kept(record) for record in earlier}
        self._journal = journal
        self._callbacks = callbacks
        self._gpus = gpus_per_trial
        self._earlier = [record for record in earlier if record.outcome != "stopped"]

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks beside its own state, from which nothing is restored here."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Time goes by."""
        self._journal.alive()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial starts, or is taken up again."""
        record = self._record(trial)
        self._keep(
            dataclasses.replace(
                record,
                outcome="running",
                error=None,
                started_at=time.time(),
                ended_at=None,
                gpus=self._gpus,
                earlier_seconds=0.0 if record.started_at is None else record.seconds or 0.0,
                earlier_gpu_seconds=record.gpu_seconds(time.time()),
            )
        )
        self._journal.trial_started(self.records[record.trial_id])
        self._tell("trial_started", self.records[record.trial_id])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reports; Tune's own bookkeeping stays behind."""
        if STEP not in result:
            return
        report = {
            name: float(value)
            for name, value in result.items()
            if name == STEP or ("/" in name and not name.startswith("config/"))
            if isinstance(value, int | float)
        }
        record = self._record(trial)
        earlier = tuple(point for point in record.curve if point[STEP] < report[STEP])
        record = dataclasses.replace(record, curve=(*earlier, report))
        # Tune marks so the report at which the scheduler stopped the trial.
        if result.get("done") and record.step < self.search.total_steps:
            record = dataclasses.replace(record, outcome="pruned", ended_at=time.time())
        self._journal.trial_reported(record)
        self._keep(record)
        self._tell("trial_reported", record)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial ended by itself, or was stopped by the scheduler before its last step."""
        record = self._record(trial)
        if record.outcome == "pruned":  # as its last report said
            self._close(record)
        elif record.step >= self.search.total_steps:
            self._end(dataclasses.replace(record, outcome="finished"))
        elif record.curve:
            self._end(dataclasses.replace(record, outcome="pruned"))
        else:
            error = "the trial ended without a report"
            self._end(dataclasses.replace(record, outcome="failed", error=error))
        _let_go(trial)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial raised."""
        record = self._record(trial)
        self._end(dataclasses.replace(record, outcome="failed", error=explain(trial)))
        _let_go(trial)

    def start(self) -> None:
        """Tell the callbacks that the search begins or goes on; what they raise is raised."""
        for callback in self._callbacks:
            callback.search_started(self.search)
        for record in self._earlier:
            self._tell("trial_ended", record)
        self._earlier = []

    def finish(self, outcome: SearchOutcome) -> list[TrialRecord]:
        """Close what still runs as stopped, tell the callbacks, and return all records, whole.

        Where the journal cannot be written any more, it says the same without these lines: what
        seems to run has been stopped.
        """
        with suppress(StorageFailed):
            for record in list(self.records.values()):
                if record.outcome == "running":
                    self._end(dataclasses.replace(record, outcome="stopped"))
            self._journal.session_ended(outcome)
        records = list(read_history(self.search.run_folder).records)
        self._tell("search_ended", records, outcome)
        return records

    def _record(self, trial: Trial) -> TrialRecord:
        """The record of Tune's trial, found by our own name for it, or a new one."""
        proposal = dict(trial.config)
        trial_id, reference = proposal.pop(TRIAL_KEY), proposal.pop(REFERENCE_KEY, None)
        if trial_id in self.records:
            return self.records[trial_id]
        number = -1 if reference else trial_number(trial_id)
        return TrialRecord(trial_id, number, "reference" if reference else "trial", proposal)

    def _end(self, record: TrialRecord) -> None:
        ended = dataclasses.replace(record, ended_at=time.time())
        self._journal.trial_ended(ended)
        self._close(ended)

    def _close(self, ended: TrialRecord) -> None:
        self._keep(_kept(ended))
        self._tell("trial_ended", ended)

    def _keep(self, record: TrialRecord) -> None:
        self.records[record.trial_id] = record

    def _tell(self, event: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            try:
                getattr(callback, event)(*arguments)
            except Exception as error:
                name = type(callback).__name__
                if failure := storage_failure(error):
                    logger.error("%s failed at %s: %s", name, event, failure)
                else:
                    logger.exception("%s failed at %s", name, event)


def _kept(record: TrialRecord) -> TrialRecord:
    """What stays in memory: of trials that ended for good, the last report alone."""
    return record if record.outcome in ("running", "stopped") else record.compact


def _let_go(trial: Trial) -> None:
    """Free Tune's running statistics of a trial that ended, which nobody here reads.

    Tune keeps them to the end of the search, at 2 kB a metric: 0.15 MB a trial.
    """
    trial.metric_analysis.clear()
    trial.metric_n_steps.clear()


def explain(trial: Trial) -> str:
    """What a failed trial raised on its worker, in one line; Tune keeps it in a file."""
    error = error_of(trial)
    return "the trial ended without saying why" if error is None else in_one_line(error)
