"""The connection to MLflow: what is refused, hidden, split and locked."""

import itertools
import multiprocessing
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from alembic.runtime.migration import HeadMaintainer
from filelock import FileLock

from tests.tuning.databases import with_database
from tests.waiting import wait_until
from tuning.views.mlflow import client as mlf
from tuning.views.mlflow.client import TrackingError, connect, default_tracking_uri, sqlite_path


@pytest.mark.parametrize("name", ["c#", "100%", "x y"])
def test_a_runs_folder_may_have_any_name(name, tmp_path):
    folder = with_database(tmp_path / name / "runs")
    assert sqlite_path(default_tracking_uri(folder)) == folder / "mlflow.db"
    client, experiment_id = connect(default_tracking_uri(folder), "mine")
    run = client.create_run(experiment_id)
    client.log_text(run.info.run_id, "x", "a.txt")
    assert [*tmp_path.rglob("mlflow.db")] == [folder / "mlflow.db"]
    assert [file.parents[3] for file in tmp_path.rglob("a.txt")] == [folder]


def test_a_copied_runs_folder_writes_into_its_own_artifacts(tmp_path, caplog):
    original = with_database(tmp_path / "a" / "runs")
    client, experiment_id = connect(default_tracking_uri(original), "mine")
    run = client.create_run(experiment_id).info.run_id
    client.log_text(run, "of the original", "a.txt")
    copy = Path(shutil.copytree(original, tmp_path / "b" / "runs"))
    client, experiment_id = connect(default_tracking_uri(copy), "mine")
    (text,) = copy.rglob("a.txt")
    assert f"{client.get_run(run).info.artifact_uri}/a.txt" == text.as_uri()
    client.log_text(client.create_run(experiment_id).info.run_id, "new", "b.txt")
    assert [file.is_relative_to(copy) for file in tmp_path.rglob("b.txt")] == [True]
    assert sum("moved or copied" in message for message in caplog.messages) == 1
    connect(default_tracking_uri(copy), "mine")
    assert sum("moved or copied" in message for message in caplog.messages) == 1


def test_a_reader_cannot_lock_the_database_and_a_wait_says_for_what(tmp_path, caplog):
    folder = with_database(tmp_path / "runs")
    lock = folder / "mlflow.db.lock"
    lock.touch()
    lock.chmod(0o644)
    connect(default_tracking_uri(folder), "mine")
    assert lock.stat().st_mode & 0o777 == 0o600
    with FileLock(lock):
        waiting = threading.Thread(target=connect, args=(default_tracking_uri(folder), "mine"))
        waiting.start()
        wait_until(lambda: f"waiting for {lock}, which another process" in caplog.text)
    waiting.join()


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def connect_at_once(uri, start):
    start.wait()
    client, experiment_id = connect(uri, "lipsum-tune")
    client.create_run(experiment_id)


def test_processes_that_connect_at_once_create_one_whole_database(tmp_path):
    start, uri = CONTEXT.Barrier(2), default_tracking_uri(tmp_path / "new" / "runs")
    processes = [CONTEXT.Process(target=connect_at_once, args=(uri, start)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    client, experiment_id = connect(uri, "lipsum-tune")
    assert len(client.search_runs([experiment_id])) == 2


def connect_and_be_killed(uri):
    steps = itertools.count()
    step = HeadMaintainer.update_to_step

    def killed(*arguments):
        if next(steps) == 5:
            os._exit(9)
        step(*arguments)

    HeadMaintainer.update_to_step = killed
    connect(uri, "lipsum-tune")


def test_a_kill_while_the_database_is_created_leaves_none(tmp_path):
    uri = default_tracking_uri(tmp_path)
    process = CONTEXT.Process(target=connect_and_be_killed, args=(uri,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not (tmp_path / "mlflow.db").exists()
    connect(uri, "lipsum-tune")
    assert {path.name for path in tmp_path.iterdir()} - {"mlflow.db.lock"} == {"mlflow.db"}


@pytest.mark.parametrize(
    "uri",
    [
        "http://ann:pa55@127.0.0.1:9/mlflow",
        "sqlite:////proc/nowhere/mlflow.db",
        "sqlite:////proc/x.db",  # the folder is there, and no file can be created in it
    ],
)
def test_an_unreachable_server_is_named_at_once_without_its_password(uri):
    began = time.monotonic()
    with pytest.raises(TrackingError) as raised:
        connect(uri, "lipsum-tune")
    assert time.monotonic() - began < 60  # MLflow's own retries take minutes
    assert "pa55" not in str(raised.value)
    assert mlf.redact(uri) in str(raised.value)


def test_a_file_that_is_no_database_is_refused_at_once(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database, but long enough to be looked at" * 20)
    with pytest.raises(TrackingError, match="file is not a database"):
        connect(default_tracking_uri(tmp_path), "lipsum-tune")


def test_secrets_of_the_configuration_do_not_reach_the_params():
    config = {
        "tracking": {"uri": "https://ann:p@ss@host:5000/a", "api_key": "k", "Password": "p"},
        "env": {"HF_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "s"},
        "method": {"text_tokens": 8, "long": "y" * 9000},
    }
    params = {param.key: param.value for param in mlf.params_of(config)}
    assert params["tracking.uri"] == "https://***@host:5000/a"
    assert {v for k, v in params.items() if k.startswith("env") or "key" in k.lower()} == {"***"}
    assert params["tracking.Password"] == "***"
    assert params["method.text_tokens"] == "8"
    assert len(params["method.long"]) == mlf.MAX_CHARS
