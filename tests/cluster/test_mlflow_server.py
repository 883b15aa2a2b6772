"""MLflow's server over a real PostgreSQL, and Optuna on the same."""

from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_context

import optuna
import pytest

from tests.cluster.mlflow_process import running_server
from tests.cluster.postgres import running_postgres
from tests.tuning import fakes
from tests.tuning.run_folders import search_file, write_run
from tests.waiting import wait_until
from trainers.errors import ConfigError
from tuning.log.journal import Journal
from tuning.run import load_run
from tuning.views.completion import complete_mlflow
from tuning.views.dashboard import DashboardView, open_storage
from tuning.views.follower import Follower, complete
from tuning.views.mlflow.client import connect
from tuning.views.mlflow.writer import MlflowView

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def postgres():
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with running_server(postgres, folder) as running:
        yield running


def test_what_is_sent_twice_is_there_once(postgres, server, images_root, tmp_path):
    limit = "id_val/acc >= best - 0.5"  # orders some trials by NaN
    file = search_file(images_root, search__tracking__uri=server.url, search__constraints=[limit])
    run = write_run(tmp_path / "twice", file, fakes.finished_search())
    tables = ("metrics", "latest_metrics", "params", "tags", "runs")
    found = []
    for _ in range(2):
        assert complete_mlflow(load_run(run)).endswith("has the whole run")
        rows = [postgres.query("mlflow", f"select * from {table}") for table in tables]
        found.append([sorted(map(str, table)) for table in rows])
    assert found[0] == found[1]
    states = postgres.query("mlflow", "select status, count(*) from runs group by 1 order by 1")
    assert states == [("FAILED", 1), ("FINISHED", 16)]
    files = {path.name for path in server.artifacts.rglob("*") if path.is_file()}
    assert files == {"search.yaml", "environment.json"}
    loaded, storage = load_run(run), open_storage(run, postgres.url("optuna"))
    assert not complete(loaded, [DashboardView(storage)])
    study = optuna.load_study(study_name=None, storage=postgres.url("optuna"))
    assert len(study.trials) == 14


def test_searches_that_begin_at_once_share_an_experiment(server):
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        found = list(pool.map(experiment, [server.url] * 4))
    assert len(set(found)) == 1


def experiment(url):
    return connect(url, "at once")[1]


def test_a_server_that_hangs_and_is_killed_gets_everything_later(
    server, images_root, tmp_path, monkeypatch, caplog
):
    """Meanwhile nothing waits for it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    file = search_file(images_root, search__tracking__uri=server.url)
    run = write_run(tmp_path / "outage", file, outcome=None)
    search, record = load_run(run), fakes.trial(0)
    follower = Follower([MlflowView(server.url, seconds=0.1)], tick=0.05)
    follower.search_started(search)
    running = replace(record, outcome="running", curve=(), ended_at=None)
    with closing(Journal(run)) as journal:
        journal.session_started({})
        journal.trial_started(running)
        for length, happens in enumerate((server.hang, server.kill, server.start), 1):
            happens()
            journal.trial_reported(replace(running, curve=record.curve[:length]))
            wait_until(lambda: "cannot be written now" in caplog.text)
        journal.trial_reported(record)  # and its end
        journal.session_ended("finished")
        follower.search_ended([record], "finished")
    assert "Nothing is lost" not in caplog.text
    client, experiment = connect(server.url, "lipsum-tune")
    of_run = f"tags.search_id = '{search.history.run_id}'"
    found = {run.data.tags.get("trial_id"): run for run in client.search_runs([experiment], of_run)}
    assert {name: one.info.status for name, one in found.items()} == {
        None: "FINISHED", "zero-shot": "FINISHED", "trial-000": "FINISHED",
    }  # fmt: skip
    history = client.get_metric_history(found["trial-000"].info.run_id, "id_val/acc")
    reported = [point for point in record.curve if int(point["step"]) not in (160, 200)]
    assert [(p.step, p.value) for p in history] == [
        (point["step"], pytest.approx(point["id_val/acc"])) for point in reported
    ]


def test_optuna_refuses_the_database_of_mlflow(postgres, server, tmp_path):
    with pytest.raises(ConfigError, match="a database of its own"):
        open_storage(tmp_path, postgres.url("mlflow"))


def test_a_database_out_of_reach_is_one_line_without_its_password(postgres, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "pa55word")
    wrong = postgres.url("optuna", password="${SECRET}")
    away = wrong.replace(f":{postgres.port}/", ":9/")
    for url, why in ((wrong, "password authentication failed"), (away, "onnection refused")):
        with pytest.raises(ConfigError, match=why) as caught:
            open_storage(tmp_path, url)
        assert "pa55word" not in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
