import dataclasses
import errno
import fcntl
import os
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.tuning import fakes
from tests.tuning.run_folders import edit_journal
from trainers.errors import ConfigError
from tuning.log.history import JournalReader, read_history
from tuning.log.journal import LOCK_FILE, Journal, append_synced, is_running
from tuning.log.paths import JOURNAL_FILE

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


def test_the_quiet_time_before_a_kill_counts_but_for_half_a_minute(tmp_path, monkeypatch):
    began = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: began)
    journal = Journal(tmp_path)
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


def test_a_signal_right_after_a_write_leaves_no_number_out(tmp_path, monkeypatch):
    def interrupted(file, content):
        append_synced(file, content)
        raise KeyboardInterrupt

    with closing(Journal(tmp_path)) as journal:
        journal.session_started({})
        with monkeypatch.context() as patch:
            patch.setattr("tuning.log.journal.append_synced", interrupted)
            with pytest.raises(KeyboardInterrupt):
                journal.zero_shot({"id_val/acc": 53.0})
        journal.session_ended("stopped")
    assert not read_history(tmp_path).damage
    assert [event["line"] for event in JournalReader(tmp_path).events()] == [1, 2, 3, 4]


def test_a_session_goes_on_after_the_one_before_whatever_the_clock_says(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.session_started({})
    write_trial(journal, ENDED)
    journal.close()
    ahead = [1e10, 1e10 + 1, 1e10 + 2, *(1e10 + 3 for _ in ENDED.curve), 1e10 + 4, 1e10 + 4]
    edit_times(tmp_path, ahead[: len((tmp_path / JOURNAL_FILE).read_bytes().splitlines())])
    with closing(Journal(tmp_path)) as again:
        again.session_started({})
    times = [event["time"] for event in JournalReader(tmp_path).events()]
    assert times == sorted(times)
    assert times[-1] < 1e10 + 60
