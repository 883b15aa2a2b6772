from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial

from tests.tuning import fakes
from tuning.runs.journal import Journal, read_history
from tuning.runs.recorder import Recorder
from tuning.runs.records import (
    REFERENCE_KEY,
    TRIAL_KEY,
    Callback,
    SearchOutcome,
    SearchRecord,
    TrialRecord,
)


class Notes:
    """A callback that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str]] = []

    def search_started(self, search: SearchRecord) -> None:
        self.heard.append(("search_started", search.name, ""))

    def trial_started(self, record: TrialRecord) -> None:
        self.heard.append(("started", record.trial_id, record.outcome))

    def trial_reported(self, record: TrialRecord) -> None:
        self.heard.append(("reported", record.trial_id, str(record.step)))

    def trial_ended(self, record: TrialRecord) -> None:
        self.heard.append(("ended", record.trial_id, record.outcome))

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        self.heard.append(("search_ended", str(len(records)), outcome))


class Deaf(Notes):
    def trial_reported(self, record: TrialRecord) -> None:
        raise OSError("the disk of the callback is full")


def tune_trial(name: str, **config: Any) -> Trial:
    return Trial("stub", stub=True, config={TRIAL_KEY: name, **config})


def recorder(folder: Path, *callbacks: Callback, earlier: Sequence[TrialRecord] = ()) -> Recorder:
    journal = Journal(folder)
    journal.session_started({})
    return Recorder(fakes.search_record(folder), journal, callbacks, earlier, gpus_per_trial=2.0)


def report(r: Recorder, trial: Trial, step: int, **more: Any) -> None:
    r.on_trial_result(0, [], trial, {**fakes.report(step, 84.0, 61.0), **more, "pid": 7})


def test_every_event_is_in_the_journal_and_heard_by_all_callbacks(tmp_path: Path) -> None:
    notes = Notes()
    r = recorder(tmp_path, notes)
    r.start()
    ft, trial = (
        tune_trial("ft", **{REFERENCE_KEY: "ft"}),
        tune_trial("trial-000", **{"optim.lr": 1}),
    )
    for each in (ft, trial):
        r.on_trial_start(0, [], each)
    report(r, ft, 120)
    report(r, ft, 240)
    r.on_trial_complete(0, [], ft)
    r.on_trial_complete(0, [], trial)
    r.finish("finished")
    assert notes.heard == [
        ("search_started", "domainnet-vit-b32", ""),
        ("started", "ft", "running"),
        ("started", "trial-000", "running"),
        ("reported", "ft", "120"),
        ("reported", "ft", "240"),
        ("ended", "ft", "finished"),
        ("ended", "trial-000", "failed"),
        ("search_ended", "2", "finished"),
    ]
    reference, failed = read_history(tmp_path).records
    assert [point["step"] for point in reference.curve] == [120, 240]
    assert "pid" not in reference.metrics
    assert (reference.kind, reference.params, reference.gpus) == ("reference", {}, 2.0)
    assert (failed.params, failed.error) == ({"optim.lr": 1}, "the trial ended without a report")


def test_a_trial_that_the_scheduler_stops_has_ended_with_its_report(tmp_path: Path) -> None:
    notes = Notes()
    r = recorder(tmp_path, notes)
    trial = tune_trial("trial-000")
    r.on_trial_start(0, [], trial)
    report(r, trial, 40, done=True)
    # The driver may be killed here, before Tune says that the trial is complete.
    (record,) = read_history(tmp_path).records
    assert (record.outcome, record.step) == ("pruned", 40)
    r.on_trial_complete(0, [], trial)
    assert notes.heard[-1] == ("ended", "trial-000", "pruned")
    assert read_history(tmp_path).records[0].outcome == "pruned"


@pytest.mark.parametrize(("steps", "outcome"), [((40,), "pruned"), ((), "failed")])
def test_a_trial_that_ends_early_by_itself(
    tmp_path: Path, steps: tuple[int, ...], outcome: str
) -> None:
    r = recorder(tmp_path)
    trial = tune_trial("trial-000")
    r.on_trial_start(0, [], trial)
    for step in steps:
        report(r, trial, step)
    r.on_trial_complete(0, [], trial)
    assert read_history(tmp_path).records[0].outcome == outcome


def test_what_still_runs_at_the_end_is_stopped(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    r.on_trial_start(0, [], tune_trial("trial-000"))
    (record,) = r.finish("stopped")
    assert record.outcome == "stopped"


def test_a_callback_that_raises_is_named_and_the_others_hear_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes()
    r = recorder(tmp_path, Deaf(), notes)
    trial = tune_trial("trial-000")
    r.on_trial_start(0, [], trial)
    with caplog.at_level(logging.ERROR):
        report(r, trial, 40)
    assert "Deaf failed at trial_reported" in caplog.text
    assert notes.heard[-1] == ("reported", "trial-000", "40")


def test_a_trial_taken_up_again_keeps_its_curve_and_what_it_has_cost(tmp_path: Path) -> None:
    whole = fakes.trial(0)
    cut_off = fakes.trial(
        0, outcome="stopped", curve=whole.curve[:2], started_at=0.0, ended_at=50.0, gpus=1.0
    )
    ended, notes = fakes.trial(1), Notes()
    r = recorder(tmp_path, notes, earlier=[cut_off, ended])
    r.start()
    assert ("ended", "trial-001", "finished") in notes.heard
    assert ("ended", "trial-000", "stopped") not in notes.heard
    r.on_trial_start(0, [], tune_trial("trial-000", **cut_off.params))
    again = r.records["trial-000"]
    assert (again.earlier_seconds, again.earlier_gpu_seconds, again.gpus) == (50.0, 50.0, 2.0)
    report(r, tune_trial("trial-000"), 80)  # the second report again, then the third
    report(r, tune_trial("trial-000"), 120)
    assert [point["step"] for point in r.records["trial-000"].curve] == [40, 80, 120]


def test_tunes_own_statistics_of_an_ended_trial_are_let_go(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    trial = tune_trial("trial-000")
    trial.update_last_result({"training_iteration": 1, "val/mean_acc": 50.0})
    assert trial.metric_analysis
    r.on_trial_start(0, [], trial)
    report(r, trial, 240)
    r.on_trial_complete(0, [], trial)
    assert not trial.metric_analysis
