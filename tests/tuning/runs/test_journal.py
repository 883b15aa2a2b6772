import dataclasses
import errno
import fcntl
import os
import random
import re
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.tuning import fakes
from tests.tuning.run_folders import edit_journal
from trainers.errors import ConfigError
from tuning.runs.history import JOURNAL_FILE, JournalReader, line_of, read_history
from tuning.runs.journal import LOCK_FILE, Journal, append_synced, is_running

STARTED = fakes.trial(0, is_first_point=True, outcome="running", ended_at=None, curve=())
ENDED = fakes.trial(0, is_first_point=True)


def write_trial(journal, record, reports=None):
    """Start a trial and let it report as often as asked; by default let it end, too."""
    journal.trial_started(record)
    for number in range(len(record.curve) if reports is None else reports):
        so_far = dataclasses.replace(record, outcome="running", curve=record.curve[: number + 1])
        journal.trial_reported(so_far)
    if reports is None:
        journal.trial_ended(record)


def edit_times(folder, times):
    def at_times(events):
        return [event | {"time": at} for event, at in zip(events, times, strict=True)]

    edit_journal(folder, at_times)


def test_what_was_written_is_read_back(tmp_path):
    failed = fakes.trial(1, outcome="failed", error="OutOfMemoryError: too big", curve=())
    journal = Journal(tmp_path)
    journal.session_started({"trial": "abc"})
    journal.zero_shot({"id_val/acc": 53.0})
    for record in (fakes.reference(), ENDED, failed):
        write_trial(journal, record)
    journal.session_ended("finished")
    history = read_history(tmp_path)
    assert history.records == (fakes.reference(), ENDED, failed)
    assert history.zero_shot == {"id_val/acc": 53.0}
    assert history.outcome == "finished"
    assert history.fingerprints == {"trial": "abc"}
    assert all(record.is_final for record in history.records)


def test_the_quiet_time_before_a_kill_counts_but_for_half_a_minute(tmp_path, monkeypatch):
    journal, began = Journal(tmp_path), time.monotonic()
    journal.session_started({})
    journal.trial_started(dataclasses.replace(STARTED, started_at=journal.now(), gpus=1.0))
    for second in range(0, 1000, 7):
        monkeypatch.setattr("time.monotonic", lambda: began + second)  # noqa: B023
        journal.alive()
    journal.close()
    lines = (tmp_path / JOURNAL_FILE).read_text().splitlines()
    assert sum('"alive"' in line for line in lines) == 28  # one in 35 s
    history = read_history(tmp_path)
    (record,) = history.records
    for seconds in (history.seconds, record.gpu_seconds(0.0)):
        assert seconds == pytest.approx(28 * 35, abs=1)


def test_a_trial_cut_off_by_a_kill_is_stopped_and_its_attempts_add_up(tmp_path):
    journal = Journal(tmp_path)
    journal.session_started({})
    write_trial(journal, ENDED, reports=2)
    edit_times(tmp_path, [0, 0, 100, 110, 120])
    (cut_off,) = (r for r in read_history(tmp_path).records if not r.is_final)
    assert (cut_off.outcome, cut_off.seconds) == ("stopped", 20)
    assert cut_off.curve == ENDED.curve[:2]
    journal.close()

    journal = Journal(tmp_path)
    journal.session_started({})
    again = dataclasses.replace(ENDED, started_at=1000.0, ended_at=1030.0)
    journal.trial_started(again)
    # It goes on from the checkpoint of its first report, so the second comes again.
    for number in range(2, len(ENDED.curve) + 1):
        so_far = dataclasses.replace(again, outcome="running", curve=again.curve[:number])
        journal.trial_reported(so_far)
    journal.trial_ended(again)
    (record,) = read_history(tmp_path).records
    assert record.outcome == "finished"
    assert record.curve == ENDED.curve
    assert record.seconds == 20 + 30


def test_an_ended_trial_stays_ended(tmp_path):
    journal = Journal(tmp_path)
    journal.session_started({})
    journal.trial_started(STARTED)
    pruned = dataclasses.replace(ENDED, outcome="pruned", curve=ENDED.curve[:1])
    journal.trial_reported(pruned)  # with its end, or not at all
    # A driver of an earlier version could write these lines after a signal.
    journal.trial_ended(dataclasses.replace(pruned, outcome="stopped", ended_at=9e9))
    write_trial(journal, ENDED)
    assert read_history(tmp_path).records == (pruned,)


def test_wall_clock_is_that_of_the_sessions_not_of_the_time_between(tmp_path):
    journal = Journal(tmp_path)
    journal.session_started({})
    journal.zero_shot({})
    journal.session_started({})  # the first was killed
    journal.session_ended("stopped")
    journal.session_started({})
    journal.zero_shot({})
    edit_times(tmp_path, [0, 10, 25, 1000, 1007, 2000, 2003])
    assert read_history(tmp_path).seconds == read_history(tmp_path, live=True).seconds == 15 + 7 + 3


def test_a_clock_that_was_ahead_in_one_session_costs_the_next_nothing(tmp_path):
    ahead = 40 * 86400.0
    first = [ahead, ahead, ahead, ahead, ahead + 10]
    journal = Journal(tmp_path)
    journal.session_started({})
    journal.trial_started(STARTED)
    journal.trial_started(fakes.trial(1, outcome="running", ended_at=None, curve=()))
    journal.zero_shot({})
    edit_times(tmp_path, first)
    journal.session_started({})  # the first was killed
    journal.trial_started(STARTED)
    journal.used_ood()
    edit_times(tmp_path, [*first, 500, 502, 507])
    history = read_history(tmp_path)
    assert history.seconds == 10 + 7
    assert [record.seconds for record in history.records] == [10 + 5, 10]


def test_an_attempt_that_a_clock_puts_before_its_start_takes_no_time(tmp_path):
    journal = Journal(tmp_path)
    journal.session_started({})
    started = dataclasses.replace(STARTED, gpus=2.0)
    journal.trial_started(started)
    journal.trial_started(started)  # its driver was lost
    journal.trial_ended(ENDED)
    edit_times(tmp_path, [1000, 1000, 1000, 400, 430])
    (record,) = read_history(tmp_path).records
    assert (record.seconds, record.gpu_seconds(430)) == (30, 60)


def test_a_torn_last_line_is_left_out_and_cut_off_by_the_next_driver(tmp_path):
    journal = Journal(tmp_path)
    journal.session_started({})
    write_trial(journal, ENDED)
    journal.close()
    path = tmp_path / JOURNAL_FILE
    whole = path.read_bytes()
    for length in range(1, 40, 7):
        path.write_bytes(whole + whole.splitlines()[-1][:length])
        assert read_history(tmp_path).records == (ENDED,)
        Journal(tmp_path).close()
        assert path.read_bytes() == whole


def test_events_and_keys_of_later_versions_are_skipped(tmp_path):
    journal = Journal(tmp_path)
    journal.session_started({})
    write_trial(journal, ENDED)
    journal.session_ended("finished")
    journal.close()
    expected = read_history(tmp_path)

    def later(events):
        for event in events:
            yield event | {"later": {"a": [1]}}
            yield {"time": event["time"], "event": "news", "trial": "trial-000"}

    edit_journal(tmp_path, later)
    assert read_history(tmp_path) == expected
    Journal(tmp_path).close()


def test_a_view_reads_on_where_it_stopped(tmp_path):
    seen, reader = [], JournalReader(tmp_path)
    for metrics in ({"a": 1.0}, {"b": 2.0}):
        journal = Journal(tmp_path)
        journal.zero_shot(metrics)
        journal.close()
        with (tmp_path / JOURNAL_FILE).open("ab") as file:
            file.write(b'{"torn')
        seen += [event.get("metrics") for event in reader.events()]
    assert seen == [None, {"a": 1.0}, {"b": 2.0}]
    assert not reader.damage


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_not_taken_for_another_driver(error, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(error, os.strerror(error))

    Journal(tmp_path).close()
    monkeypatch.setattr(fcntl, "flock", refused)
    for attempt in (Journal, is_running):
        with pytest.raises(ConfigError) as caught:
            attempt(tmp_path)
        assert caught.value.source == str(tmp_path / LOCK_FILE)
        assert os.strerror(error) in caught.value.problem
        assert "another process" not in str(caught.value)


def test_a_reader_that_looks_for_a_driver_does_not_stop_one(tmp_path, monkeypatch):
    Journal(tmp_path).close()
    with (tmp_path / LOCK_FILE).open("rb") as reader:  # `is_running` of another process
        fcntl.flock(reader, fcntl.LOCK_SH)
        monkeypatch.setattr("time.sleep", lambda seconds: reader.close())
        driver = Journal(tmp_path)
    assert reader.closed  # so the first attempt did not get the lock
    assert is_running(tmp_path)
    driver.close()


@contextmanager
def another_user():
    """Within the block, the rights of this process are not those of root."""
    own = os.geteuid()
    os.seteuid(65534 if own == 0 else own)
    try:
        yield
    finally:
        os.seteuid(own)


def test_whoever_reads_a_run_folder_sees_its_driver_and_cannot_keep_it_out():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        Journal(folder).close()
        with ExitStack() as stack:
            for path in folder.iterdir():
                if path.stat().st_mode & 0o004:
                    fcntl.flock(stack.enter_context(path.open("rb")), fcntl.LOCK_SH)
            driver = Journal(folder)
        driver.session_started({})
        (folder / LOCK_FILE).chmod(0)
        with another_user():
            assert is_running(folder)
        driver.session_ended("finished")
        driver.close()
        with another_user():
            assert not is_running(folder)


def test_a_journal_of_another_version_or_none_is_refused(tmp_path):
    path, later = tmp_path / JOURNAL_FILE, {"event": "created", "format": 99, "time": 1}
    for number, line in ((2, b'{"event": "created", "format": 2}\n'), (99, line_of(later, 1))):
        path.write_bytes(line)
        with pytest.raises(ConfigError, match=f"format {number}"):
            read_history(tmp_path)
    path.unlink()
    with pytest.raises(ConfigError, match="not a run folder"):
        read_history(tmp_path)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "started", "trial": "a", "number": "x"},
        {"event": "started", "trial": "a", "params": 7},
        {"event": "report", "trial": "trial-000", "report": {"step": 1, "id_val/acc": "abc"}},
        {"event": "ended", "trial": "trial-000", "outcome": "weird", "error": None},
        {"event": "zero_shot", "metrics": {"id_val/acc": None}},
    ],
)
def test_a_whole_line_with_a_value_of_another_type_is_refused(event, tmp_path):
    journal = Journal(tmp_path)
    journal.session_started({})
    journal.trial_started(STARTED)
    journal.close()
    started = {"number": 0, "kind": "trial", "params": {}, "gpus": 0}
    with (tmp_path / JOURNAL_FILE).open("ab") as file:
        file.write(line_of({"time": 1, **started, **event}, 4))
    with pytest.raises(ConfigError, match="line 4 is damaged"):
        read_history(tmp_path)


@pytest.fixture
def recorded(tmp_path):
    """The folder of a journal with each kind of event, and what it contains."""
    journal = Journal(tmp_path)
    journal.session_started({"trial": "abc"})
    journal.zero_shot({"id_val/acc": 53.0})
    curve = {"step": [1, 2], "train/loss": [2.0, 1.5]}
    first = dataclasses.replace(ENDED, curve=ENDED.curve[:1], train_curves=(curve,))
    repeat = fakes.trial(2, kind="repeat", repeats="trial-000", params={"seed": 7})
    for record in (fakes.reference(), first, fakes.trial(1, outcome="pruned"), repeat):
        write_trial(journal, record)
    journal.controlled({"stop": "trial-001"}, 20)
    journal.used_ood()
    journal.session_ended("finished")
    journal.close()
    return tmp_path, read_history(tmp_path)


def test_no_flipped_bit_changes_what_is_shown_without_a_word(recorded):
    folder, expected = recorded
    path, flip = folder / JOURNAL_FILE, random.Random(0)
    whole = path.read_bytes()
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for at in [*ends, *flip.choices(range(len(whole)), k=600)]:
        content, line = bytearray(whole), whole[:at].count(b"\n") + 1
        content[at] ^= 1 << flip.randrange(8)
        path.write_bytes(content)
        if line == 1:
            with pytest.raises(ConfigError, match="line 1 is damaged"):
                read_history(folder)
            continue
        found = read_history(folder)
        assert re.match(rf"journal\.jsonl: lines? {line}\b", found.damage)
        rest = {record.trial_id: record.curve for record in found.records}
        for record in expected.records:
            assert all(report in record.curve for report in rest.get(record.trial_id, ()))
        with pytest.raises(ConfigError, match=rf"lines? {line}\b"):
            Journal(folder)
        assert path.read_bytes() == content


def test_lines_that_are_missing_are_named(recorded):
    folder, expected = recorded
    path = folder / JOURNAL_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(2, len(lines)):
        path.write_bytes(b"".join(lines[: number - 1] + lines[number:]))
        assert f"line {number} is missing" in read_history(folder).damage
    path.write_bytes(b"".join([lines[0], *lines[3:7], *lines[5:8], *lines[9:]]))
    damage = "lines 2, 3, 6, 7, 9 are missing or repeated"
    assert damage in read_history(folder).damage
    with pytest.raises(ConfigError, match=f"{damage}.*not continued"):
        Journal(folder)
    path.write_bytes(b"".join(lines))
    assert read_history(folder) == expected
    Journal(folder).close()


def test_a_damaged_line_says_what_may_be_missing(recorded, caplog):
    folder, _ = recorded
    path = folder / JOURNAL_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    kinds = [(event["event"], event.get("trial")) for event in JournalReader(folder).events()]
    for what, text in {
        ("report", "trial-001"): ": a report of trial-001 may be missing",
        ("started", "trial-001"): ": trial-001 may be missing",
        ("started", "trial-000"): ": trial-000, trial-002 may be missing",  # which repeats it
        ("ended", "trial-001"): ": the end of trial-001 may be missing",
        ("zero_shot", None): ": the zero-shot metrics may be missing",
        ("session", None): "",
    }.items():
        at = kinds.index(what)
        path.write_bytes(b"".join([*lines[:at], b"?" + lines[at][1:], *lines[at + 1 :]]))
        caplog.clear()
        for _ in range(2):
            damage = read_history(folder).damage
        assert damage == f"journal.jsonl: line {at + 1} is damaged{text}"
        assert caplog.messages == [f"{folder}: {damage}"]


def test_a_signal_right_after_a_write_leaves_no_number_out(tmp_path, monkeypatch):
    def interrupted(file, content):
        append_synced(file, content)
        raise KeyboardInterrupt

    with closing(Journal(tmp_path)) as journal:
        journal.session_started({})
        with monkeypatch.context() as patch:
            patch.setattr("tuning.runs.journal.append_synced", interrupted)
            with pytest.raises(KeyboardInterrupt):
                journal.zero_shot({"id_val/acc": 53.0})
        journal.session_ended("stopped")
    assert not read_history(tmp_path).damage
    assert [event["line"] for event in JournalReader(tmp_path).events()] == [1, 2, 3, 4]
