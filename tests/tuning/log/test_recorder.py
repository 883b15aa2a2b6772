import logging
import time
from dataclasses import replace

import pytest

from tests.tuning import fakes
from trainers.errors import StorageFailed
from tuning.log.callbacks import Callback
from tuning.log.history import JournalReader, read_history
from tuning.log.journal import Journal
from tuning.log.messages import Ended, Failed, Progressed, Reported, SteppedBack
from tuning.log.recorder import Recorder
from tuning.log.records import TrialRecord

NEW = TrialRecord("trial-000", 0, "trial", {"optim.lr": 1.0})


class Notes(Callback):
    def __init__(self):
        self.events = []
        self.curves = []  # of training

    def search_started(self, run):
        self.events.append(("search_started", run.name, ""))

    def trial_started(self, record):
        self.events.append(("started", record.trial_id, record.outcome))

    def trial_progressed(self, record):
        self.events.append(("progressed", record.trial_id, str(record.trained_steps)))
        self.curves.append(record.progress)

    def trial_reported(self, record):
        self.events.append(("reported", record.trial_id, str(record.step)))
        self.curves.append(record.progress)

    def trial_ended(self, record):
        self.events.append(("ended", record.trial_id, record.outcome))

    def search_ended(self, records, outcome):
        self.events.append(("search_ended", str(len(records)), outcome))


def report(r, step, trial_id="trial-000", **more):
    is_last = step == fakes.TOTAL_STEPS
    r.answered(trial_id, Reported(fakes.report(step, 84.0, 61.0), is_last=is_last), **more)


class FailingAtStart(Callback):
    def search_started(self, run):
        raise OSError("no disk for the callback")


class Failing(Callback):
    def trial_reported(self, record):
        raise OSError("the disk of the callback is full")

    def search_ended(self, records, outcome):
        raise StorageFailed("no space left")


def recorder(folder, *callbacks, earlier=()):
    """With a proposal, `NEW`."""
    journal = Journal(folder)
    journal.session_started({})
    run = fakes.Search(folder).run(earlier)
    created = Recorder(run, journal, callbacks, gpus_per_trial=2.0)
    if not earlier:
        created.proposed(NEW)
    return created


def test_every_event_is_in_the_journal_and_reaches_all_callbacks(tmp_path):
    notes = Notes()
    r = recorder(tmp_path, notes)
    r.proposed(TrialRecord("ft", -1, "reference", {}))
    r.start()
    for trial_id in ("ft", "trial-000"):
        r.started(trial_id)
    report(r, 120, "ft")
    r.answered("ft", Progressed({"step": [130.0, 140.0], "train/loss": [0.5, 0.4]}))
    r.answered("ft", SteppedBack("its machine was lost"))
    r.answered("ft", Progressed())  # its workers have only started
    report(r, 240, "ft")
    for trial_id in ("ft", "trial-000"):
        r.answered(trial_id, Ended())
    r.finish("finished")
    assert notes.events == [
        ("search_started", tmp_path.name, ""),
        ("started", "ft", "running"),
        ("started", "trial-000", "running"),
        ("reported", "ft", "120"),
        ("progressed", "ft", "140"),
        ("progressed", "ft", "120"),
        ("reported", "ft", "240"),
        ("ended", "ft", "finished"),
        ("ended", "trial-000", "failed"),
        ("search_ended", "2", "finished"),
    ]
    reference, failed = read_history(tmp_path).records
    assert [point["step"] for point in reference.curve] == [120, 240]
    assert (reference.kind, reference.params, reference.gpus) == ("reference", {}, 2.0)
    assert (failed.params, failed.error) == (
        {"optim.lr": 1},
        "the trial ended without its last report",
    )


def test_the_records_are_those_that_a_reader_finds(tmp_path):
    r = recorder(tmp_path)
    curve = {"step": [130.0, 140.0], "train/loss": [0.5, 0.4]}

    def check():
        (found,) = read_history(tmp_path, live=True).records
        assert r.records["trial-000"] == (found.compact if found.is_final else found)

    r.started("trial-000")
    check()
    r.answered("trial-000", Reported(fakes.report(140, 84.0, 61.0), curve))
    check()
    *_, event = JournalReader(tmp_path).events()
    assert event["train_curve"] == curve
    r.answered("trial-000", Progressed(waits=True))
    check()
    report(r, 180, reason="pruned by asha")
    check()


def test_callbacks_get_the_training_curve_up_to_each_report(tmp_path):
    notes = Notes()
    r = recorder(tmp_path, notes)
    r.start()
    r.started("trial-000")
    polled = {"step": [10.0], "train/loss": [0.9]}
    whole = {"step": [10.0, 20.0], "train/loss": [0.9, 0.8]}
    r.answered("trial-000", Progressed(polled))
    r.answered("trial-000", Reported(fakes.report(20, 84.0, 61.0), whole))
    assert notes.curves == [polled, whole]
    assert r.records["trial-000"].progress == {}


def test_the_time_of_a_wait_for_gpus_is_not_that_of_gpus(tmp_path, monkeypatch, caplog):
    began = time.monotonic()

    def at(seconds, message):
        monkeypatch.setattr("time.monotonic", lambda: began + seconds)
        r.answered("trial-000", message)

    monkeypatch.setattr("time.monotonic", lambda: began)
    r = recorder(tmp_path)
    r.started("trial-000")
    at(120, Progressed(waits=True))
    at(3000, Progressed(waits=True))
    at(3720, Progressed())
    at(3750, SteppedBack("its machine was lost"))
    at(3780, Reported(fakes.report(fakes.TOTAL_STEPS, 84.0, 61.0), is_last=True))
    for record in (*r.finish("finished").records, r.records["trial-000"]):
        assert record.gpu_seconds(0.0) == pytest.approx(2 * 180, abs=2)
        assert record.seconds == pytest.approx(3780, abs=2)
    assert caplog.messages == [
        "trial-000 waits for GPUs of the cluster",
        "trial-000 is repeated from its newest checkpoint: its machine was lost",
    ]


def test_a_signal_while_a_pruned_trial_is_written_does_not_make_it_stopped(tmp_path, monkeypatch):
    r = recorder(tmp_path)
    r.started("trial-000")
    write = Journal.trial_reported

    def interrupted(journal, *arguments):
        write(journal, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "trial_reported", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report(r, 40, reason="pruned by asha")
    (record,) = r.finish("stopped").records
    assert (record.outcome, record.reason) == ("pruned", "pruned by asha")
    ended = [event for event in JournalReader(tmp_path).events() if "outcome" in event]
    assert [event["outcome"] for event in ended] == ["pruned", "stopped"]  # trial and session


@pytest.mark.parametrize(
    ("earlier", "cost"), [([], 0), ([fakes.trial(0, outcome="stopped", gpus=2.0)], 360)]
)
def test_a_trial_whose_process_cannot_start_has_failed(tmp_path, earlier, cost):
    r = recorder(tmp_path, earlier=earlier)
    r.proposed(r.records["trial-000"])
    assert not r.answered("trial-000", Failed("RuntimeError: no process"))
    assert r.is_complete
    record = r.records["trial-000"]
    for one in (record, *read_history(tmp_path).records):
        assert (one.outcome, one.error) == ("failed", "RuntimeError: no process")
    # Neither the attempt takes time, nor what lies between two sessions.
    assert record.seconds == pytest.approx(cost, abs=2)
    assert record.gpu_seconds(0.0) == pytest.approx(2 * cost, abs=2)


def test_a_callback_that_raises_is_logged_and_others_go_on(tmp_path, caplog):
    notes = Notes()
    r = recorder(tmp_path, Failing(), notes)
    r.started("trial-000")
    with caplog.at_level(logging.ERROR):
        report(r, 40)
    assert "Failing failed at trial_reported" in caplog.text
    assert notes.events[-1] == ("reported", "trial-000", "40")


def test_the_end_is_told_though_the_journal_cannot_be_written(tmp_path, caplog):
    notes, journal = Notes(), Journal(tmp_path)
    journal.session_started({})
    r = Recorder(fakes.Search(tmp_path).run(), journal, [Failing(), notes])
    r.proposed(NEW)
    r.started("trial-000")
    journal.failure = StorageFailed("no space left")
    with pytest.raises(StorageFailed, match="no space left"):
        report(r, 40)
    with caplog.at_level(logging.ERROR):
        (record,) = r.finish("stopped").records
    assert record.outcome == "stopped"
    assert notes.events[-1] == ("search_ended", "1", "stopped")
    assert "Failing failed at search_ended: no space left" in caplog.text
    assert "Traceback" not in caplog.text


def test_after_a_failed_start_only_started_callbacks_end(tmp_path):
    started, later, failing = Notes(), Notes(), FailingAtStart()
    r = recorder(tmp_path, started, failing, later)
    with pytest.raises(OSError, match="no disk"):
        r.start()
    assert r.finish("failed").records == ()
    assert [event for event, *_ in started.events] == ["search_started", "search_ended"]
    assert later.events == []
    assert read_history(tmp_path).outcome == "failed"


def test_a_resumed_trial_keeps_its_curve_and_its_cost(tmp_path):
    whole = fakes.trial(0)
    cut_off = replace(whole, outcome="stopped", curve=whole.curve[:2], started_at=0.0)
    cut_off = replace(cut_off, ended_at=50.0, gpus=1.0)
    notes = Notes()
    r = recorder(tmp_path, notes, earlier=[cut_off, fakes.trial(1)])
    r.start()
    assert ("ended", "trial-001", "finished") in notes.events
    assert ("ended", "trial-000", "stopped") not in notes.events
    r.started("trial-000")
    again = r.records["trial-000"]
    assert (again.earlier_seconds, again.earlier_gpu_seconds, again.gpus) == (50.0, 50.0, 2.0)
    report(r, 80)  # the second report again, then the third
    report(r, 120)
    assert [point["step"] for point in r.records["trial-000"].curve] == [40, 80, 120]


@pytest.mark.parametrize("earlier", [[], [fakes.trial(0, outcome="stopped")]])
def test_a_trial_whose_process_never_started_has_not_ended(tmp_path, earlier):
    r = recorder(tmp_path, earlier=earlier)
    r.proposed(r.records["trial-000"])
    assert not r.is_complete
    r.started("trial-000")
    assert not r.is_complete
    report(r, fakes.TOTAL_STEPS)
    assert r.is_complete
