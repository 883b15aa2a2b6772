"""Ids, environments and requests of jobs; `test_jobs` submits real ones."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.submit import Job, JobRequest, job_environment, submission_base, submit_search
from tests.cluster.job_server import JobServer, job_server
from trainers.errors import ConfigError
from tuning.config.validation import load_config
from tuning.runs.resume import earlier_run
from tuning.runs.run_folder import write_config

NOWHERE = "http://127.0.0.1:9"


def test_only_named_variables_are_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "97")  # of this terminal
    environment = {
        "HF_HOME": "/shared/hf", "PATH": "/bin", "RAY_AUTH_MODE": "token",
        "MLFLOW_TRACKING_URI": "https://mlflow.example.org", "AWS_SECRET_ACCESS_KEY": "hunter2",
    }  # fmt: skip
    assert job_environment(("HF_HOME",), environment) == {
        "HF_HOME": "/shared/hf",
        "RAY_AUTH_MODE": "token",
        "MLFLOW_TRACKING_URI": "https://mlflow.example.org",
        "RAY_JOB_STOP_WAIT_TIME_S": "20",
        "COLUMNS": "97",
    }


SECRETS = (
    "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "API_KEY", "PGPASSWORD",
    "AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING",
)  # fmt: skip
URL = "https://me:hunter2@mlflow.example.org"


@pytest.mark.parametrize(
    ("names", "environment", "key"),
    [
        *(((name,), {name: "hunter2"}, f"--env {name}") for name in SECRETS),
        (("PROXY",), {"PROXY": URL}, "--env PROXY"),
        ((), {"MLFLOW_TRACKING_URI": URL}, "MLFLOW_TRACKING_URI"),
    ],
)
def test_a_secret_is_refused_and_not_repeated(
    names: tuple[str, ...], environment: dict[str, str], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        job_environment(names, environment)
    assert caught.value.key == key
    assert "hunter2" not in str(caught.value)


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        job_environment(("HF_HOME",), {})
    assert caught.value.key == "--env HF_HOME"


def test_a_password_of_the_environment_may_be_named_in_a_url() -> None:
    assert job_environment((), {"MLFLOW_TRACKING_URI": URL.replace("hunter2", "${PW}")})


@pytest.mark.parametrize(
    "other",
    [
        "search.sampler.name=random", "search.sampler.seed=1", "search.scheduler={name: none}",
        "search.references=[]", "search.warm_start.runs=[/runs/earlier]",
        "search.study_storage=sqlite:////study.db", "search.checkpoints.storage=s3://bucket/c",
        "search.objective.metric=val/acc", "search.space.parameters.optim.lr.low=2e-5",
        "trial.optim.lr=2e-4", "trial.steps=130", "trial.seed=1", "search.name=other",
        "search.storage=/shared",
    ],
)  # fmt: skip
def test_searches_have_one_id_only_if_one_resumes_the_other(other: str, tmp_path: Path) -> None:
    storage = f"search.storage={tmp_path}"
    first = load_config("quickstart", [storage], check=False)
    second = load_config("quickstart", [storage, other], check=False)
    folder = tmp_path / first.search.name
    folder.mkdir()
    write_config(folder, first)
    assert earlier_run(first) == folder
    assert earlier_run(second) is None
    assert submission_base(first) != submission_base(second)


@pytest.mark.parametrize(
    "same",
    [
        "search.budget.trials=40", "search.resources.workers=2", "search.tracking.uri=http://mlflow",
        "search.checkpoints.keep_top=3", "search.checkpoints.disk_gb=5", "trial.data.root=/shared",
        "trial.data.workers=3", "search.resources.max_concurrent=1",
    ],
)  # fmt: skip
def test_what_a_resume_may_change_does_not_change_the_id(same: str) -> None:
    first = submission_base(load_config("quickstart", check=False))
    assert first.startswith("quickstart-")
    assert submission_base(load_config("quickstart", [same], check=False)) == first


def test_mistakes_are_found_before_anything_is_sent(tmp_path: Path) -> None:
    for overrides, key in (
        (("trial.optim.lrr=1",), None),
        (("search.tracking.uri=https://a:b@c",), "--set search.tracking.uri"),
        (("trial.data.root=my/data",), "trial.data.root"),
        (("search.objective.metric=x/y",), None),
    ):
        with pytest.raises(ConfigError) as caught:
            submit_search(JobRequest("quickstart", overrides, tmp_path), NOWHERE)
        assert key is None or caught.value.key == key, overrides
        assert "Failed to connect" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        submit_search(JobRequest("quickstart", working_dir=tmp_path / "none"), NOWHERE)
    assert caught.value.key == "--working-dir"
    (tmp_path / "work").mkdir()
    (tmp_path / "base.yaml").write_text("{}")
    (tmp_path / "work" / "mine.yaml").write_text("extends: ../base.yaml")
    request = JobRequest(str(tmp_path / "work" / "mine.yaml"), working_dir=tmp_path / "work")
    with pytest.raises(ConfigError) as caught:
        submit_search(request, NOWHERE)
    assert caught.value.key == "extends"


def test_a_password_is_refused_before_it_is_in_the_jobs_command(tmp_path: Path) -> None:
    secret = "s3://AKIA0:hunter2@bucket/x"
    (tmp_path / "root.yaml").write_text(f"trial: {{data: {{root: '{secret}'}}}}")
    (tmp_path / "storage.yaml").write_text(f"search: {{storage: '{secret}'}}")
    requests = {
        "--set trial.data.root": JobRequest("quickstart", (f"trial.data.root={secret}",)),
        "--set trial.model.pretrained": JobRequest(
            "quickstart", ("trial.model.pretrained=https://x.org/w?token=hunter2",)
        ),
        "trial.data.root": JobRequest(str(tmp_path / "root.yaml")),
        "search.storage": JobRequest(str(tmp_path / "storage.yaml")),
    }
    with job_server() as server:
        for key, request in requests.items():
            with pytest.raises(ConfigError) as caught:
                submit_search(replace(request, working_dir=tmp_path), server.url)
            assert caught.value.key == key
            assert "hunter2" not in str(caught.value)
    assert server.submitted == []


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_environment_does_not_change_the_address(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://elsewhere.example:8265")
    before = dict(os.environ)
    with job_server() as server:
        job = submit_search(JobRequest("quickstart", working_dir=tmp_path), server.url + "/")
    assert [sent["submission_id"] for sent in server.submitted] == [job.submission_id]
    assert job.address == server.url
    assert dict(os.environ) == before


def test_a_running_job_is_found_and_an_ended_one_gets_a_successor(tmp_path: Path) -> None:
    def submit(server: JobServer) -> Job:
        return submit_search(JobRequest("quickstart", working_dir=tmp_path), server.url)

    base = submission_base(load_config("quickstart", check=False))
    with job_server() as server:
        assert submit(server).submission_id == base
        again = submit(server)
        assert (again.submission_id, again.is_new) == (base, False)
        # The first job was deleted; one is of another search.
        server.jobs = {f"{base}-2": "FAILED", f"{base}0-7": "RUNNING", f"{base}-10": "STOPPED"}
        assert submit(server).submission_id == f"{base}-11"
        assert submit(server).is_new is False


def test_a_server_that_refuses_or_hangs_up_is_one_line(tmp_path: Path) -> None:
    def refused(url: str) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            submit_search(JobRequest("quickstart", working_dir=tmp_path), url)
        assert "\n" not in str(caught.value)
        return caught.value

    with job_server() as server:
        server.hangs_up = Counter(list=1)
        assert refused(server.url).key == f"--address {server.url}"
        server.hangs_up = Counter(submit=1)
        assert "the same command finds it" in str(refused(server.url).hint)
        server.refuses = True
        assert refused(server.url).key == f"--address {server.url}"
    assert refused(NOWHERE).key == f"--address {NOWHERE}"


def test_a_job_is_described_with_the_commands_to_follow_and_stop_it() -> None:
    text = "\n".join(Job("http://127.0.0.1:8265", "quickstart-1", True, "runs").description())
    assert "ray job stop --address http://127.0.0.1:8265 quickstart-1" in text
    assert "~/lipsum-tune/runs" in text
    again = Job("http://127.0.0.1:8265", "quickstart-1", False, "/shared").description()
    assert "running already" in again[0]
