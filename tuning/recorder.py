"""Ray Tune's events as records of our own, handed on to listeners that know no Ray."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from tuning.records import (
    REFERENCE_KEY,
    STEP,
    Listener,
    SearchOutcome,
    SearchRecord,
    TrialRecord,
)

logger = logging.getLogger(__name__)


class Recorder(Callback):
    """Keeps one record a trial, and tells the listeners of every event.

    A listener that raises is named in the log and the search goes on: no record is worth a search.
    """

    def __init__(self, search: SearchRecord, listeners: Sequence[Listener]) -> None:
        self.search = search
        self.records: dict[str, TrialRecord] = {}
        self._listeners = listeners

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; listeners hold connections and a terminal."""
        return {"search": self.search, "records": self.records, "_listeners": ()}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial starts, or starts again after a failure."""
        record = self.records.get(trial.trial_id) or self._new(trial)
        self._keep(dataclasses.replace(record, outcome="running", error=None))
        self._tell("trial_started", self.records[trial.trial_id])

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
        record = self.records[trial.trial_id]
        earlier = tuple(point for point in record.curve if point[STEP] < report[STEP])
        self._keep(dataclasses.replace(record, curve=(*earlier, report)))
        self._tell("trial_reported", self.records[trial.trial_id])

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial ended by itself, or was stopped by the scheduler before its last step."""
        record = self.records[trial.trial_id]
        finished = record.step >= self.search.total_steps
        self._end(dataclasses.replace(record, outcome="finished" if finished else "pruned"))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial raised."""
        record = self.records.get(trial.trial_id) or self._new(trial)
        self._end(dataclasses.replace(record, outcome="failed", error=explain(trial)))

    def start(self) -> None:
        """Tell the listeners that the search begins; what they raise is raised."""
        for listener in self._listeners:
            listener.search_started(self.search)

    def finish(self, outcome: SearchOutcome) -> list[TrialRecord]:
        """Close what still runs as stopped, tell the listeners, and return all records."""
        for record in list(self.records.values()):
            if record.outcome == "running":
                self._end(dataclasses.replace(record, outcome="stopped"))
        records = sorted(self.records.values(), key=lambda record: record.number)
        self._tell("search_ended", records, outcome)
        return records

    def _new(self, trial: Trial) -> TrialRecord:
        reference = trial.config.get(REFERENCE_KEY)
        number = sum(record.kind == "trial" for record in self.records.values())
        return TrialRecord(
            trial_id=trial.trial_id,
            number=-1 if reference else number,
            kind="reference" if reference else "trial",
            name=reference or f"trial-{number:03d}",
            params={} if reference else dict(trial.config),
            started_at=time.time(),
        )

    def _end(self, record: TrialRecord) -> None:
        self._keep(dataclasses.replace(record, ended_at=time.time()))
        self._tell("trial_ended", self.records[record.trial_id])

    def _keep(self, record: TrialRecord) -> None:
        self.records[record.trial_id] = record

    def _tell(self, event: str, *arguments: Any) -> None:
        for listener in self._listeners:
            try:
                getattr(listener, event)(*arguments)
            except Exception:
                logger.exception("%s failed at %s", type(listener).__name__, event)


def explain(trial: Trial) -> str:
    """What a failed trial raised on its worker, in one line: the kind of error and its message.

    Tune keeps an exception in which Ray's account of the trial's driver wraps Ray Train's account
    of its workers, which wraps what one of them raised; the last is what a person wants to read.
    """
    file = Path(trial.pickled_error_file or "")
    if not file.is_file():
        return "the trial ended without saying why"
    error = _innermost(pickle.loads(file.read_bytes()))
    return f"{type(error).__name__}: {error}"


def _innermost(error: BaseException) -> BaseException:
    while True:
        failures = getattr(error, "worker_failures", None)
        inner = next(iter(failures.values())) if failures else None
        inner = inner or getattr(error, "_base_exc", None) or getattr(error, "cause", None)
        if not isinstance(inner, BaseException) or inner is error:
            return error
        error = inner
