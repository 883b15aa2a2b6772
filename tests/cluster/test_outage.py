"""MLflow's server hangs, and then is down for a minute, while a real search trains."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.cluster.mlflow_process import running_server
from tests.cluster.postgres import running_postgres
from tests.tuning.agreement import train_points
from tests.waiting import wait_until
from tuning.runs.journal import JOURNAL_FILE, read_history

pytestmark = pytest.mark.nightly
REQUEST_S = 10.0
"""Timeout of a request to MLflow: a search that waited for one would pause for so long."""
HUNG_S, AWAY_S = 15.0, 60.0


@pytest.fixture(scope="module")
def postgres():
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    with running_server(postgres, tmp_path_factory.mktemp("server")) as running:
        yield running


def written(postgres, search):
    """Metrics of a search's trials in the database."""
    return postgres.query(
        "mlflow",
        f"""
        select trial.value, m.key, m.step, m.value from metrics m
        join runs on runs.run_uuid = m.run_uuid and runs.lifecycle_stage = 'active'
        join tags search on search.run_uuid = m.run_uuid and search.key = 'search'
        join tags trial on trial.run_uuid = m.run_uuid and trial.key = 'trial_id'
        where search.value = '{search}' and trial.value != 'zero-shot'
        """,
    )


def statuses(postgres, search):
    """Kinds and statuses of the runs of a search in the database."""
    return postgres.query(
        "mlflow",
        f"""
        select kind.value, status from runs
        join tags search on search.run_uuid = runs.run_uuid and search.key = 'search'
        join tags kind on kind.run_uuid = runs.run_uuid and kind.key = 'kind'
        where search.value = '{search}' and lifecycle_stage = 'active' order by 1
        """,
    )


def reported(records):
    """Metrics in the records, in the form of `written`; of one step, the training curve counts."""
    found = {
        (record.trial_id, name, int(point["step"])): value
        for record in records
        for point in (*record.curve, *train_points(record))
        for name, value in point.items()
        if name != "step" and math.isfinite(value)
    }
    return {(*key, value) for key, value in found.items()}


def test_a_search_does_not_wait_for_mlflow_and_loses_no_metric(
    postgres, server, images_root, tmp_path
):
    run = tmp_path / "outage"
    driver = start_search(images_root, run, server.url)
    try:
        wait_until(lambda: len(times(run)) > 3)
        began = time.time()
        server.hang()
        time.sleep(HUNG_S)
        server.kill()
        time.sleep(AWAY_S)
        back = time.time()
        server.start()
        known = len(reported(read_history(run, live=True).records))
        wait_until(lambda: len(written(postgres, "outage")) > known)
        driver.send_signal(signal.SIGINT)
        output = driver.communicate(timeout=120)[0]
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
    assert driver.returncode == 130, output
    assert output.count("does not answer") == output.count("answers again") == 1

    during = [at for at in times(run) if began - 1 <= at <= back]
    gaps = [late - early for early, late in itertools.pairwise([*during, back])]
    assert len(during) > 10
    assert max(gaps) < REQUEST_S, gaps  # it did not wait for any request
    found = written(postgres, "outage")
    assert len(found) == len(set(found))
    assert set(found) == reported(read_history(run).records)
    expected = [("search", "KILLED"), ("trial", "KILLED"), ("zero_shot", "FINISHED")]
    assert statuses(postgres, "outage") == expected


def start_search(root, run, uri):
    """Start a driver with one endless trial, which reports about every second."""
    values = {
        "trial": {
            "data": {"root": str(root)},
            "method": {"name": "ft"},
            "optim": {"lr": 1e-4, "batch_size": 8},
            "eval": {"every": 4},
            "steps": 100_000,
        },
        "search": {
            "name": run.name,
            "storage": str(run.parent),
            "space": {
                "name": None,
                "parameters": {
                    "optim.lr": {"type": "float", "low": 1e-6, "high": 1e-3, "log": True}
                },
            },
            "references": [],
            "budget": {"trials": 1},
            "tracking": {"uri": uri, "metrics": "all"},
        },
    }
    path = run.parent / "outage.yaml"
    path.write_text(yaml.safe_dump(values))
    return subprocess.Popen(
        [sys.executable, "-m", "tuning", "search", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def times(run):
    """Times of the trial's reports in the journal, in seconds."""
    journal = run / JOURNAL_FILE
    lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event["time"] for event in events if event["event"] == "report"]
