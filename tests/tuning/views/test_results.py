import pyarrow.parquet as pq
import pytest

from tests.tuning import fakes
from tests.waiting import wait_until
from tuning.runs.journal import Journal
from tuning.views.follower import Follower
from tuning.views.results import ResultsView


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path)
    yield opened
    opened.close()


def outcomes(folder):
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    return {row["trial_id"]: row["outcome"] for row in rows[1:]}


def follow(folder):
    follower = Follower([ResultsView(pause=0.01)], tick=0.01)
    follower.search_started(fakes.search_record(folder))
    return follower


def test_page_and_tables_follow_the_journal(tmp_path, journal):
    journal.session_started({})
    for number in (1, 2):
        journal.trial_started(fakes.trial(number, outcome="running", ended_at=None))
    follower = follow(tmp_path)  # the pause after its first write depends on the machine
    running = {"trial-001": "running", "trial-002": "running"}
    wait_until(lambda: (tmp_path / "trials.parquet").is_file() and outcomes(tmp_path) == running)
    wait_until((tmp_path / "report" / "index.html").is_file)
    journal.trial_reported(fakes.trial(1))
    journal.trial_ended(fakes.trial(2, outcome="stopped"))
    follower.search_ended([], "stopped")
    assert outcomes(tmp_path) == {"trial-001": "finished", "trial-002": "stopped"}
    page = (tmp_path / "report" / "index.html").read_text()
    assert 'http-equiv="refresh"' not in page


def test_a_page_that_cannot_be_written_ends_nothing(tmp_path, journal, caplog):
    (tmp_path / "report").write_text("in the way")
    follower = follow(tmp_path)
    journal.session_started({})
    wait_until(lambda: "the page cannot be written" in caplog.text)
    (tmp_path / "report").unlink()
    follower.search_ended([], "finished")
    assert (tmp_path / "report" / "index.html").is_file()
    assert caplog.records[0].exc_info is None
