"""The driver of a search: what is trained next, and what follows from each message of a trial.

It knows no Ray. `tuning.execution.tune_adapter` calls it from the loop of Ray Tune, in one thread.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tuning.algorithms.studies import Studies
from tuning.log.callbacks import Callback
from tuning.log.errors import error_text, storage_failure
from tuning.log.folder import config_of
from tuning.log.history import History
from tuning.log.journal import Journal
from tuning.log.messages import Failed, Message, Reported, SteppedBack
from tuning.log.orders import Orders
from tuning.log.recorder import Recorder
from tuning.log.records import STEP, SearchOutcome, TrialRecord, trial_name
from tuning.results.budget import Budget
from tuning.run import Run


@dataclass
class _Attempts:
    """The errors of a trial since its last new step."""

    count: int = 0
    last: str = ""
    """First line of the last one, if the training itself raised it."""


class Wait:
    """The sampler has no more points, but a user may enqueue one while trials run: ask again."""


class End:
    """There is nothing more to start."""


class Driver:
    """Decides what a search does. An error of one of its parts ends the search.

    It starts unfinished trials, then fixed ones, then what studies propose.

    Args:
        run: whose unfinished trials continue, and which counts towards the budgets.
        callbacks: see `Recorder`.
        studies: with the trials of the history; by default nothing is proposed.
        fixed: trials to run in any case, such as references; those of the history have run.
        orders_before: `orders_in` the run folder when the session began, before its preparation.
        check_ray: raises if Ray is gone. A trial is not to blame for an error that comes from that.
    """

    def __init__(
        self,
        run: Run,
        journal: Journal,
        callbacks: Sequence[Callback] = (),
        *,
        studies: Studies | None = None,
        fixed: Sequence[TrialRecord] = (),
        orders_before: Collection[str] = (),
        check_ray: Callable[[], None] = lambda: None,
    ) -> None:
        self.run = run
        file = self._file = run.file
        history = run.history
        self._journal = journal
        self._check_ray = check_ray
        self.studies = studies or Studies(())
        self.budget = Budget(file.search.budget, history, journal.now)
        gpus = file.search.resources.gpus_per_trial
        deciders = (self.studies, self.budget)
        self.recorder = Recorder(run, journal, callbacks, gpus, deciders)
        # A kill may have lost a proposal whose process had not started, but not a later one.
        used = {record.number for record in history.records}
        self._unused = (number for number in itertools.count() if number not in used)
        self._number = next(self._unused)
        # Unfinished trials keep their names, by which their checkpoints are found.
        self._waiting = deque(record for record in history.records if record.outcome == "stopped")
        started = {record.trial_id for record in history.records}
        self._waiting.extend(record for record in fixed if record.trial_id not in started)
        self._attempts = defaultdict[str, _Attempts](_Attempts)
        self.orders = Orders(run.folder, journal, history, orders_before)
        self._is_exhausted = False

    def next(self) -> dict[str, Any] | Wait | End:
        """The trial to start next, or to continue from its checkpoints, as its slot needs it:
        `trial_id`, `params`, and `trial`, the `TrialConfig` as JSON.

        The driver may be asked again after each message of a trial.
        """
        while (record := self._next_record()) is not None:
            try:
                config = config_of(self._file, record)
            except Exception as error:  # of a combination of parameters, or a plug-in's own check
                if storage_failure(error):
                    raise
                self.recorder.rejected(record, error_text(error))
                continue
            self.recorder.proposed(record)
            return {
                "trial_id": record.trial_id,
                "params": dict(record.params),
                "trial": config.model_dump_json(),
            }
        is_running = any(not record.is_final for record in self.recorder.records.values())
        if is_running and self.budget.allows(self._number):
            return Wait()
        self._is_exhausted = True
        return End()

    def _next_record(self) -> TrialRecord | None:
        """An unfinished trial, then a fixed one, then what the studies propose."""
        if self._waiting:
            return self._waiting.popleft()
        if not self.budget.allows(self._number):
            return None
        record = self.studies.propose(self._number, trial_name(self._number))
        if record is not None:
            self._number = next(self._unused)
        return record

    def started(self, trial_id: str) -> None:
        """Record that a trial starts or continues."""
        self.recorder.started(trial_id)

    def answered(self, trial_id: str, message: Message) -> bool:
        """Record a message of a trial, and decide whether the trial goes on.

        A trial that has done all its steps ends in any case, see `Recorder.answered`.
        """
        reason = "stopped by the user" if trial_id in self.orders.stopped else ""
        if isinstance(message, SteppedBack):
            message = self._judged(trial_id, message)
        match message:
            case Reported():
                # A trial that goes on repeats its last report, which is no progress.
                if message.metrics[STEP] > self.recorder.records[trial_id].step:
                    self._attempts.pop(trial_id, None)
                if not self.studies.goes_on(trial_id, message.metrics):
                    reason = f"pruned by {self.studies.pruner}"
            case Failed():
                self._check_ray()
        return self.recorder.answered(trial_id, message, reason)

    def lost(self, trial_id: str, error: BaseException) -> None:
        """Count the loss of a trial's process as one of its errors.

        Raises:
            StorageFailed: the storage failed, so every trial would fail. This ends the search.
        """
        if failure := storage_failure(error):
            raise failure
        self._attempts[trial_id].count += 1

    def attempts_left(self, trial_id: str) -> int:
        """Number of errors without a new step after which the trial still goes on."""
        most = self._file.search.resources.max_failures
        return max(0, most - self._attempts[trial_id].count)

    def _judged(self, trial_id: str, message: SteppedBack) -> SteppedBack | Failed:
        """Whether a trial goes on after an error of its workers.

        It has failed if they raise more often than `max_failures` without a new step in between,
        and if the training raises the same twice: then it is at fault, and no machine.
        """
        attempts = self._attempts[trial_id]
        line = message.error.partition("\n")[0]
        is_repeated = message.is_own and line == attempts.last
        is_last = message.is_counted and not self.attempts_left(trial_id)
        if is_repeated or is_last:
            return Failed(message.error)
        attempts.count += message.is_counted
        attempts.last = line if message.is_own else ""
        return message

    def turn(self) -> bool:
        """Write a heartbeat and follow new orders; whether the search goes on.

        The loop that calls this turns several times a second.
        """
        self._journal.alive()
        for order in self.orders.new():
            match order:
                case {"enqueue": params}:
                    self.studies.enqueue(params)
                case {"end": True}:
                    self.budget.is_ended = True
        return self.budget.over() is None

    @property
    def outcome(self) -> SearchOutcome:
        """How the search has ended, once nothing runs any more.

        It is `stopped` after too many failures in a row.
        """
        if self.budget.is_broken:
            return "stopped"
        complete = self._is_exhausted and self.recorder.is_complete
        return "finished" if complete or self.budget.over() is not None else "stopped"

    def finish(self, outcome: SearchOutcome) -> History:
        """End the session, see `Recorder.finish`."""
        return self.recorder.finish(outcome, self.budget.over() or "")
