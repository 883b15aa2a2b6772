"""Searches as jobs of a real Ray head."""

import json
import re
import secrets
import shlex
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_actors, list_placement_groups

from tests.ray_head import BIN, running_head
from tests.tuning.agreement import disagreements
from tests.waiting import wait_until
from tuning.log.paths import JOURNAL_FILE

ROOT = Path(__file__).parent.parent.parent
SECRETS = {
    name: secrets.token_hex(12)
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "MY_PASSWORD")
}
"""Environment of the cluster's nodes and of the commands that submit."""
STOPPED_S = 30.0


@pytest.fixture(scope="module")
def head():
    with running_head(**SECRETS) as running:
        yield running


def quickstart(root, runs, name, steps=9, every=3):
    """Arguments for the quickstart with two short trials on few images."""
    settings = {
        "trial.data.root": root, "trial.steps": steps, "trial.eval.every": every,
        "trial.optim.batch_size": 8, "trial.method.text_count": 16,
        "search.scheduler": "{name: none}", "search.references": "[]",
        "search.budget.trials": 2, "search.name": name, "search.storage": runs,
    }  # fmt: skip
    return [
        "quickstart",
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    ]


def submit(head, arguments, *options):
    return subprocess.run(
        [
            BIN / "lipsum-tune", "submit", *arguments,
            "--address", head.dashboard, *options,
        ],
        cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=800,
    )  # fmt: skip


def statuses(runs):
    """Number of runs in MLflow by status."""
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, "tags.kind != 'zero_shot'")
    return Counter(run.info.status for run in found)


@pytest.mark.cluster
def test_a_submitted_search_ends_and_no_file_has_a_secret(head, images_root, tmp_path):
    submitted = submit(head, quickstart(images_root, tmp_path, "plain"))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "trial-001" in submitted.stdout
    assert disagreements(tmp_path / "plain") == []
    assert statuses(tmp_path) == {"FINISHED": 3}
    mistaken = submit(head, quickstart(tmp_path / "no-data", tmp_path, "mistaken"))
    assert mistaken.returncode == 1  # Ray's, of a job that failed
    assert f"data.root = '{tmp_path}/no-data': no such folder" in mistaken.stdout
    assert not (tmp_path / "mistaken").exists()
    assert files_with_secrets(head, tmp_path) == []


@pytest.mark.nightly
def test_a_stopped_job_frees_everything_and_is_resumed(head, images_root, tmp_path):
    search = quickstart(images_root, tmp_path, "stopped", steps=600, every=100)
    journal = tmp_path / "stopped" / JOURNAL_FILE
    first = submit(head, search, "--no-wait")
    assert first.returncode == 0, first.stderr
    job_id = re.search(r"Job '(\S+)' submitted", first.stdout)[1]
    wait_until(lambda: journal.exists() and '"report"' in journal.read_text())
    client = JobSubmissionClient(head.dashboard)
    assert client.stop_job(job_id)
    stopped = time.monotonic()
    wait_until(lambda: client.get_job_status(job_id) == JobStatus.STOPPED, STOPPED_S)
    assert set(statuses(tmp_path)) == {"KILLED"}
    wait_until(lambda: alive(head) == [], stopped + STOPPED_S - time.monotonic())

    resumed = submit(head, search)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "trial-001" in resumed.stdout
    assert disagreements(tmp_path / "stopped") == []
    assert statuses(tmp_path) == {"FINISHED": 3}
    assert not (tmp_path / "stopped-2").exists()
    assert files_with_secrets(head, tmp_path) == []


@pytest.mark.nightly
def test_a_job_without_a_storage_keeps_its_run(images_root, tmp_path):
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work):
        folder.mkdir()
    search = quickstart(images_root, Path("runs"), "kept")
    run = home / "lipsum-tune" / "runs" / "kept"
    ended = f"all 2 trials have ended (--trials +8 adds eight)\nReport      {run}"
    token = Path.home() / ".ray" / "auth_token"
    environment = {"HOME": str(home), "RAY_AUTH_TOKEN_PATH": str(token)}

    def lipsum_tune(*words):
        command = [BIN / "lipsum-tune", *words]
        done = subprocess.run(
            command, cwd=work, env=new.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    with running_head(**environment) as new:
        said = lipsum_tune("submit", *search, "--address", new.dashboard)
        assert f"Run folder  {run}\n" in said
        (work / "note.txt").write_text("another working directory is another copy")
        assert ended in lipsum_tune("submit", *search, "--address", new.dashboard)
    with running_head(**environment) as new:
        command = f"python -m tuning search {shlex.join(search)} --resume"
        ray = [str(BIN / "ray"), "job", "submit", "--address", new.dashboard, "--working-dir", "."]
        submitted = subprocess.run(
            [*ray, "--", *shlex.split(command)],
            cwd=work, env=new.environment, capture_output=True, text=True,
        )  # fmt: skip
        assert ended in submitted.stdout
        assert "trial-001" in lipsum_tune("report", "kept", "--json")
        assert "kept" in lipsum_tune("report")
    assert [*run.parent.glob("*/search.yaml")] == [run / "search.yaml"]
    events = [json.loads(line)["event"] for line in (run / JOURNAL_FILE).read_text().splitlines()]
    assert (events.count("session"), events.count("started")) == (1, 2)


def alive(head):
    """Actors and placement groups of jobs; the cluster's own actors are detached."""
    actors = list_actors(head.dashboard, filters=[("state", "=", "ALIVE")], detail=True)
    groups = list_placement_groups(head.dashboard, filters=[("state", "!=", "REMOVED")])
    return [*(actor.class_name for actor in actors if not actor.is_detached), *map(str, groups)]


def files_with_secrets(head, runs):
    """Files of the head, its jobs and their searches that hold a secret."""
    written = [path for place in (head.folder, runs) for path in place.rglob("*")]
    files = [path for path in written if path.is_file() and not path.is_symlink()]
    assert any(path.name.startswith("job-driver-") for path in files)
    assert any(path.name == "mlflow.db" for path in files)
    contents = {path: path.read_bytes() for path in files}
    return [p for p, text in contents.items() if any(s.encode() in text for s in SECRETS.values())]
