import errno
import os
import threading
from contextlib import closing

import pytest

from tests.tuning import fakes
from tests.waiting import wait_until
from trainers.errors import ConfigError, StorageFailed
from tuning.log.journal import Journal
from tuning.log.paths import JOURNAL_FILE
from tuning.views import follower as module
from tuning.views.follower import Follower, View, complete


class Shown(View):
    """Remembers what it gets. While `error` is set, it fails; while it is held, it hangs."""

    def __init__(self, name="shown"):
        self.name, self.error, self.closed = name, None, 0
        self.outcomes, self.is_over = [], []
        self.free = threading.Event()
        self.free.set()

    def write(self, run):
        self.free.wait(60)
        if self.error:
            raise self.error
        self.outcomes.append([record.outcome for record in run.records])
        self.is_over.append(not run.is_live)

    def close(self):
        self.closed += 1


@pytest.fixture
def journal(tmp_path):
    with closing(Journal(tmp_path)) as opened:
        yield opened


def begin(folder, *views):
    follower = Follower(views, tick=0.01)
    follower.search_started(fakes.Search(folder).run())
    return follower


def train(journal, number, outcome="finished"):
    journal.trial_started(fakes.trial(number, outcome="running", ended_at=None))
    journal.trial_reported(fakes.trial(number, outcome=outcome))


def test_views_get_the_whole_history_in_turn(tmp_path, journal):
    first, second = Shown(), Shown()
    follower = begin(tmp_path, first, second)
    journal.session_started({})
    train(journal, 0)
    wait_until(lambda: ["finished"] in second.outcomes)
    train(journal, 1, "pruned")
    journal.trial_started(fakes.trial(2, outcome="running", ended_at=None))
    follower.search_ended([], "stopped")
    assert first.outcomes[-1] == second.outcomes[-1] == ["finished", "pruned", "stopped"]
    assert (first.is_over.count(True), second.is_over.count(True)) == (1, 1)
    assert (first.closed, second.closed) == (1, 1)
    assert not any(thread.name == "follower" for thread in threading.enumerate())


def test_a_view_is_due_after_its_pause_and_at_the_end(tmp_path, journal):
    seldom, often = Shown(), Shown()
    seldom.seconds = 3600.0
    follower = begin(tmp_path, seldom, often)
    train(journal, 0)
    wait_until(lambda: ["finished"] in often.outcomes)
    assert seldom.outcomes == []
    follower.search_ended([], "finished")
    assert seldom.outcomes == [["finished"]]


def test_a_view_that_fails_is_logged_once_for_each_reason_and_made_up_for(
    tmp_path, journal, caplog
):
    fails, other = Shown("the page"), Shown()
    follower = begin(tmp_path, fails, other)
    for number, reason in enumerate(("is full", "is full", "is read-only")):
        fails.error = OSError(f"https://ann:pa55@host {reason}")
        train(journal, number)
        wait_until(lambda number=number: ["finished"] * (number + 1) in other.outcomes)
    fails.error = None
    follower.search_ended([], "finished")
    said = "the page cannot be written now: OSError: https://***@host"
    assert [message.partition(";")[0] for message in caplog.messages] == [
        f"{said} is full", f"{said} is read-only",
    ]  # fmt: skip
    assert "pa55" not in caplog.text
    assert fails.outcomes[-1] == ["finished"] * 3


@pytest.mark.parametrize("hangs", [True, False])
def test_the_end_does_not_wait_for_a_view_that_gets_nowhere(
    tmp_path, journal, caplog, monkeypatch, hangs
):
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    monkeypatch.setattr(module, "LAST_WRITE_S", 0.1)
    lacks, whole = Shown("the server"), Shown("the page")
    follower = begin(tmp_path, whole, lacks)
    if hangs:
        lacks.free.clear()
    else:
        lacks.error = OSError("down")
    train(journal, 0)  # while the view hangs
    wait_until(lambda: hangs or ["finished"] in whole.outcomes)
    follower.search_ended([], "finished")
    (said,) = (text for text in caplog.messages if "Nothing is lost" in text)
    assert said.startswith("the server: not up to date. Nothing is lost: `lipsum-tune report`")
    lacks.free.set()
    wait_until(lambda: not follower._thread.is_alive())
    assert complete(fakes.Search(tmp_path).run(), [again := Shown()]) == {}
    assert again.outcomes == [["finished"]]


def test_no_view_is_closed_within_a_write(tmp_path, journal, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    view = Shown()
    written_at_close = []
    view.close = lambda: written_at_close.append(len(view.outcomes))
    follower = begin(tmp_path, view)
    view.free.clear()
    train(journal, 0)
    threading.Timer(0.5, view.free.set).start()
    follower.search_ended([], "finished")
    assert view.is_over[-1]
    assert written_at_close == [len(view.outcomes)]


def test_a_view_that_cannot_start_ends_the_search_and_closes_the_others(tmp_path, journal):
    def refuse(run):
        raise ConfigError("not reachable")

    first, second = Shown(), Shown("the server")
    second.start = refuse
    with pytest.raises(ConfigError, match="not reachable"):
        begin(tmp_path, first, second)
    assert first.closed == 1
    lacks = complete(fakes.Search(tmp_path).run(), [first, second])
    assert {view.name: reason for view, reason in lacks.items()} == {"the server": "not reachable"}
    assert first.is_over == [True]


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_journal_that_cannot_be_read_is_said_once(
    comes_back, tmp_path, journal, caplog, monkeypatch
):
    follower = begin(tmp_path, view := Shown("the page"))
    hidden = (tmp_path / JOURNAL_FILE).rename(tmp_path / "hidden")
    wait_until(lambda: caplog.messages)
    said = ["the views of the search cannot be written now"]
    if comes_back:
        hidden.rename(tmp_path / JOURNAL_FILE)
        train(journal, 0)
        wait_until(lambda: view.outcomes[-1:] == [["finished"]])
    else:
        monkeypatch.setattr(module, "PATIENCE_S", 0.3)
        said.append("the page: not up to date.")
    follower.search_ended([], "finished")
    assert [text[: len(found)] for text, found in zip(caplog.messages, said, strict=True)] == said


def test_views_see_no_line_that_the_disk_refuses(tmp_path, journal, monkeypatch):
    follower = Follower([view := Shown()], journal, tick=60)  # this test takes its turns
    follower.search_started(fakes.Search(tmp_path).run())
    journal.trial_started(fakes.trial(0, outcome="running", ended_at=None))
    follower.turn()

    def full(descriptor):
        follower.turn()  # while the line is in the file, before it is cut off again
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFailed):
        journal.trial_reported(fakes.trial(0, outcome="pruned"))
    follower.search_ended([], "stopped")
    assert view.outcomes[-1] == ["stopped"]
    assert {outcome for outcomes in view.outcomes for outcome in outcomes} == {"running", "stopped"}
