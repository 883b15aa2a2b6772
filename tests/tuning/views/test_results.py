import pyarrow.parquet as pq

from tests.tuning import fakes
from tests.waiting import wait_until
from tuning.runs.journal import Journal
from tuning.views.follower import Follower
from tuning.views.results import ResultsView


def outcomes(folder):
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    return {row["trial_id"]: row["outcome"] for row in rows[1:]}


def test_page_and_tables_follow_the_journal(tmp_path):
    journal = Journal(tmp_path)
    journal.session_started({})
    for number in (1, 2):
        journal.trial_started(fakes.trial(number, outcome="running", ended_at=None))
    # The pause after its first write depends on the machine.
    follower = Follower([ResultsView(str(tmp_path), pause=0.01)], tick=0.01)
    follower.search_started(fakes.search_record(tmp_path))
    running = {"trial-001": "running", "trial-002": "running"}
    wait_until(lambda: (tmp_path / "trials.parquet").is_file() and outcomes(tmp_path) == running)
    wait_until((tmp_path / "report" / "index.html").is_file)
    journal.trial_reported(fakes.trial(1))
    journal.trial_ended(fakes.trial(2, outcome="stopped"))
    follower.search_ended([], "stopped")
    assert outcomes(tmp_path) == {"trial-001": "finished", "trial-002": "stopped"}
    page = (tmp_path / "report" / "index.html").read_text()
    assert 'http-equiv="refresh"' not in page
