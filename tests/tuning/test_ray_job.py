"""A search as a Ray job. Slow: starts a real head of its own, and submits to it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.tuning.test_search import configuration

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[str]:
    """A head on this machine with its dashboard on loopback; only what was started is stopped."""
    port, dashboard_port = free_port(), free_port()
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    head = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", f"--port={port}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}",
            "--disable-usage-stats",
        ],
        env=environment | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{dashboard_port}"
        wait_for_dashboard(address)
        yield address
    finally:
        head.terminate()
        head.wait(timeout=60)


def wait_for_dashboard(address: str) -> None:
    for attempt in range(120):
        try:
            JobSubmissionClient(address).list_jobs()
            return
        except (ConnectionError, RuntimeError):
            if attempt == 119:
                raise
            subprocess.run(["sleep", "0.5"], check=True)


def test_ray_job_submit_runs_a_search_to_its_end(
    dashboard: str, pictures_root: Path, tmp_path: Path
) -> None:
    values = configuration(pictures_root, tmp_path / "runs")
    values["search"] |= {"budget": {"trials": 2}, "references": []}
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(values))
    submitted = subprocess.run(
        [
            BIN / "ray", "job", "submit", "--address", dashboard, "--working-dir", str(ROOT),
            "--submission-id", "a-search", "--",
            "python", "-m", "tuning", "search", str(config),
        ],
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "trial-001" in submitted.stdout
    assert JobSubmissionClient(dashboard).get_job_status("a-search") == JobStatus.SUCCEEDED
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "lipsum-tune"]
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'trial'")
    assert len(runs) == 2
    assert all("id_val/acc" in run.data.metrics for run in runs)
    assert json.loads((tmp_path / "runs/small/environment.json").read_text())["packages"]["ray"]
