"""MLflow that is away until a search ends."""

import threading
from contextlib import closing

import pytest
from mlflow.tracking import MlflowClient

from tests.tuning import fakes
from tests.tuning.run_folders import search_file, write_run
from tests.tuning.views.mlflow.content import found_runs
from tests.waiting import wait_until
from tuning.runs.journal import Journal
from tuning.runs.run_folder import load_run
from tuning.views.completion import complete_mlflow
from tuning.views.follower import Follower
from tuning.views.mlflow.client import default_tracking_uri
from tuning.views.mlflow.writer import MlflowView


@pytest.fixture
def begun(images_root, runs):
    return write_run(runs / "search", search_file(images_root), outcome=None)


@pytest.fixture
def follower(begun):
    made = Follower([MlflowView(default_tracking_uri(begun.parent), seconds=0.05)], tick=0.05)
    made.search_started(load_run(begun).search)
    return made


def test_an_outage_of_the_whole_search_is_one_warning_and_made_up_for(
    begun, follower, monkeypatch, caplog
):
    # The thread has written all that there is. On a busy machine, that takes seconds.
    wait_until(lambda: "zero-shot" in found_runs(begun.parent))
    wait_until(lambda: "outcome" in found_runs(begun.parent)[None].data.tags)
    with monkeypatch.context() as patch:
        patch.setattr("tuning.views.follower.PATIENCE_S", 0.2)
        is_asked, answers = threading.Event(), threading.Event()

        def hang(*args, **kwargs):
            is_asked.set()
            answers.wait(60)
            raise ConnectionError("http://a:b@c refused")

        patch.setattr(MlflowClient, "create_run", hang)
        trial = fakes.trial(0)
        with closing(Journal(begun)) as journal:
            journal.session_started({})
            journal.trial_started(trial)
            journal.trial_reported(trial)
            journal.session_ended("finished")
            follower.search_ended([trial], "finished")
        assert is_asked.wait(60)
        answers.set()
        wait_until(lambda: len(caplog.records) > 1)
    said = " ".join(caplog.messages)
    assert "mlflow.db cannot be written now: http://***@c refused; " in said
    assert "mlflow.db: not up to date. Nothing is lost" in said
    # Nor is it tried, loudly, for ever.
    wait_until(lambda: not any(t.name == "follower" for t in threading.enumerate()))
    assert "trial-000" not in found_runs(begun.parent)
    complete_mlflow(load_run(begun))
    assert found_runs(begun.parent)["trial-000"].info.status == "FINISHED"
