"""MLflow's server over a real PostgreSQL, and Optuna on the same, under several writers."""

import json
import multiprocessing
import urllib.error
import urllib.request

import pytest

from tests.cluster import writers
from tests.cluster.mlflow_process import running_server
from tests.cluster.postgres import running_postgres
from tests.tuning import fakes
from tests.tuning.run_folders import search_file, write_run
from trainers.errors import ConfigError
from tuning.runs.run_folder import load_run
from tuning.views.dashboard import open_storage
from tuning.views.mlflow.callback import backfill

pytestmark = pytest.mark.nightly
WRITERS = 8
NAMES = (
    "--allowed-hosts", "localhost:*,127.0.0.1:*,mlflow.test:*",
    "--cors-allowed-origins", "http://mlflow.test:*",
)  # fmt: skip
"""Options of a server that has a name, as in its README."""


@pytest.fixture(scope="module")
def postgres():
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with running_server(postgres, folder, *NAMES) as running:
        yield running
        assert running.stop() == 0
        assert not running.answers()


def request(server, **headers):
    """The status of a request that changes something, as a browser would send it."""
    body = json.dumps({"experiment_ids": ["0"]}).encode()
    asked = urllib.request.Request(
        f"{server.url}/api/2.0/mlflow/runs/search",
        body,
        {"Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def eight_searches(postgres, server, tmp_path_factory):
    """Eight processes that begin to write at the same moment, each as one search does."""
    folder = tmp_path_factory.mktemp("searches")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([writers.__name__])
    start = context.Barrier(WRITERS)
    urls = (server.url, postgres.url("optuna"))
    processes = [
        context.Process(target=writers.write_search, args=(number, *urls, folder, start))
        for number in range(WRITERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * WRITERS


@pytest.mark.usefixtures("eight_searches")
def test_eight_searches_write_at_once_and_nothing_is_lost(postgres, server):
    said = {
        (writers.search_name(number), f"trial-{index:03d}", name, int(point["step"]), value)
        for number in range(WRITERS)
        for index in range(writers.TRIALS)
        for point in writers.trial_record(number, index, 1e-4).curve
        for name, value in point.items()
        if name != "step"
    }
    said |= {  # orders the view
        (search, trial, "final/val/mean_acc", step, value)
        for search, trial, name, step, value in said
        if name == "val/mean_acc" and step == fakes.TOTAL_STEPS
    }
    written = postgres.query(
        "mlflow",
        """
        select search.value, trial.value, m.key, m.step, m.value from metrics m
        join tags search on search.run_uuid = m.run_uuid and search.key = 'search'
        join tags trial on trial.run_uuid = m.run_uuid and trial.key = 'trial_id'
        where trial.value != 'zero-shot'
        """,
    )
    assert len(written) == len(said)
    assert set(written) == said
    states = postgres.query(
        "mlflow",
        """
        select tags.value, runs.status, count(*) from runs
        join tags on tags.run_uuid = runs.run_uuid and tags.key = 'kind' group by 1, 2
        """,
    )
    assert sorted(states) == [
        ("search", "FINISHED", WRITERS),
        ("trial", "FINISHED", WRITERS * writers.TRIALS),
        ("zero_shot", "FINISHED", WRITERS),
    ]
    files = sorted(path.name for path in server.artifacts.rglob("*") if path.is_file())
    assert files.count("trials.parquet") == files.count("index.html") == WRITERS

    params = postgres.query(
        "mlflow",
        """
        select search.value, trial.value, p.value::float from params p
        join tags search on search.run_uuid = p.run_uuid and search.key = 'search'
        join tags trial on trial.run_uuid = p.run_uuid and trial.key = 'trial_id'
        """,
    )
    proposed = postgres.query(
        "optuna",
        """
        select substr(s.study_name, 1, 8), trim(both '"' from a.value_json), p.param_value
        from studies s join trials t using (study_id) join trial_params p using (trial_id)
        join trial_user_attributes a on a.trial_id = t.trial_id and a.key = 'trial_id'
        where t.state = 'COMPLETE'
        """,
    )
    assert len(params) == WRITERS * writers.TRIALS
    assert set(params) == set(proposed)


def test_what_is_sent_twice_is_there_once(postgres, server, images_root, tmp_path):
    limit = "id_val/acc >= best - 0.5"  # orders some trials by NaN
    file = search_file(images_root, search__tracking__uri=server.url, search__constraints=[limit])
    run = write_run(tmp_path / "twice", file, fakes.finished_search())
    tables = ("metrics", "latest_metrics", "params", "tags", "runs")
    found = []
    for _ in range(2):
        assert backfill(load_run(run)).endswith("has all of it")
        rows = [postgres.query("mlflow", f"select * from {table}") for table in tables]
        found.append([sorted(map(str, table)) for table in rows])
    assert found[0] == found[1]


@pytest.mark.usefixtures("eight_searches")
def test_eight_searches_share_a_study_and_each_trial_has_a_number_of_its_own(postgres):
    trials = postgres.query(
        "optuna",
        f"""
        select t.number, a.value_json::int, v.value, p.param_value
        from trials t join studies s using (study_id)
        join trial_user_attributes a using (trial_id) join trial_values v using (trial_id)
        join trial_params p using (trial_id)
        where s.study_name = '{writers.SHARED}' and t.state = 'COMPLETE' order by 1
        """,
    )
    assert [number for number, *_ in trials] == list(range(WRITERS * writers.TRIALS))
    counts = [sum(writer == number for _, writer, *_ in trials) for number in range(WRITERS)]
    assert counts == [writers.TRIALS] * WRITERS
    assert all(value == lr for *_, value, lr in trials)


def test_no_process_shows_the_password_and_none_but_the_server_is_there(postgres, server):
    lines = server.processes()
    assert sum("mlflow server" in line for line in lines) == 1
    assert not any(postgres.passwords["mlflow"] in line for line in lines)
    assert not any("huey" in line for line in lines)
    assert postgres.passwords["mlflow"] not in server.log.read_text()


def test_the_server_answers_to_its_own_names_and_to_no_other(server):
    own = f"mlflow.test:{server.port}"
    assert request(server) == 200
    assert request(server, Host=own, Origin=f"http://{own}") == 200
    assert request(server, Host="elsewhere.test") == 403
    assert request(server, Origin="http://elsewhere.test") == 403


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
