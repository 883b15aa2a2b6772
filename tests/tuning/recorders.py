"""Events of Ray Tune for a recorder, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.tune.experiment import Trial

from tests.tuning import fakes
from tuning.runs.callbacks import Callback
from tuning.runs.records import SearchOutcome, SearchRecord, TrialRecord
from tuning.runs.tune_callback import Recorder


class Notes(Callback):
    """Writes down every event."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def search_started(self, search: SearchRecord) -> None:
        self.events.append(("search_started", search.name, ""))

    def trial_started(self, record: TrialRecord) -> None:
        self.events.append(("started", record.trial_id, record.outcome))

    def trial_progressed(self, record: TrialRecord) -> None:
        self.events.append(("progressed", record.trial_id, str(record.trained_steps)))

    def trial_reported(self, record: TrialRecord) -> None:
        self.events.append(("reported", record.trial_id, str(record.step)))

    def trial_ended(self, record: TrialRecord) -> None:
        self.events.append(("ended", record.trial_id, record.outcome))

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        self.events.append(("search_ended", str(len(records)), outcome))


def tune_trial(name: str = "trial-000") -> Trial:
    return Trial("stub", stub=True, config={"trial_id": name})


def report(r: Recorder, trial: Trial, step: int, **more: Any) -> None:
    r.on_trial_result(0, [], trial, {**fakes.report(step, 84.0, 61.0), **more, "pid": 7})
