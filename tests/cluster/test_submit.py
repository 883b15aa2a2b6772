"""Ids, environments and addresses of jobs; `test_jobs` submits real ones."""

import os
import subprocess
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from cluster import submit as module
from cluster.submit import (
    MAX_UPLOAD_MB,
    Job,
    follow,
    job_environment,
    submission_base,
    submit_search,
)
from trainers.errors import ConfigError
from tuning.config.validation import load_config

NOWHERE = "http://127.0.0.1:9"


def test_only_named_variables_are_passed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "97")  # of this terminal
    environment = {
        "HF_HOME": "/shared/hf", "PATH": "/bin", "RAY_AUTH_MODE": "token",
        "MLFLOW_TRACKING_URI": "https://me:${PW}@example.org", "AWS_SECRET_ACCESS_KEY": "hunter2",
    }  # fmt: skip
    assert job_environment(("HF_HOME",), environment) == {
        "HF_HOME": "/shared/hf",
        "RAY_AUTH_MODE": "token",
        "MLFLOW_TRACKING_URI": "https://me:${PW}@example.org",
        "RAY_JOB_STOP_WAIT_TIME_S": "20",
        "COLUMNS": "97",
    }


URL = "https://me:hunter2@mlflow.example.org"


@pytest.mark.parametrize(
    ("names", "environment", "key"),
    [
        (("HF_HOME",), {}, "--env HF_HOME"),
        (("HF_TOKEN",), {"HF_TOKEN": "hunter2"}, "--env HF_TOKEN"),
        (("GITHUB_PAT",), {"GITHUB_PAT": "hunter2"}, "--env GITHUB_PAT"),
        (("LIBPQ",), {"LIBPQ": "host=h password=hunter2"}, "--env LIBPQ"),
        (("PROXY",), {"PROXY": URL}, "--env PROXY"),
        ((), {"MLFLOW_TRACKING_URI": URL}, "MLFLOW_TRACKING_URI"),
    ],
)
def test_a_missing_variable_or_a_secret_is_refused_and_not_repeated(names, environment, key):
    with pytest.raises(ConfigError) as caught:
        job_environment(names, environment)
    assert caught.value.key == key
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "is_same"), [("search.budget.trials=40", True), ("trial.optim.lr=2e-4", False)]
)
def test_searches_have_one_id_only_if_one_resumes_the_other(override, is_same):
    first = submission_base(load_config("quickstart", check=False))
    assert first.startswith("quickstart-")
    second = submission_base(load_config("quickstart", [override], check=False))
    assert (first == second) is is_same


def test_mistakes_are_found_before_anything_is_sent(tmp_path):
    for overrides, key in (
        (("trial.optim.lrr=1",), None),
        (("search.tracking.uri=https://a:b@c",), "search.tracking.uri"),
        (("search.objective.metric=x/y",), None),
    ):
        with pytest.raises(ConfigError) as caught:
            submit_search("quickstart", overrides, tmp_path, NOWHERE)
        assert key is None or caught.value.key == key, overrides
        assert "Failed to connect" not in str(caught.value)
    (tmp_path / "work").mkdir()
    (tmp_path / "mine.yaml").write_text("extends: quickstart")
    with pytest.raises(ConfigError, match="not in the job's working directory"):
        submit_search(str(tmp_path / "mine.yaml"), (), tmp_path / "work", NOWHERE)


@pytest.mark.parametrize(
    "override",
    [
        "trial.data.root=my/data",
        "search.study_storage=sqlite:///study.db",
        "search.tracking.uri=sqlite:///runs/mlflow.db",
        "search.warm_start.runs=[runs/earlier]",
        "trial.plugins=[mine.py]",
        "trial.model.name=local-dir:model",
        "trial.model.pretrained=weights.pt",
    ],
)
def test_a_path_in_the_temporary_copy_is_refused(override, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    with pytest.raises(ConfigError) as caught:
        submit_search("quickstart", [override], tmp_path, NOWHERE)
    assert caught.value.key.startswith(override.partition("=")[0])
    assert "copy of the working directory" in caught.value.problem


def test_a_large_upload_is_refused_with_its_largest_files(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for name, size in (("weights.bin", MAX_UPLOAD_MB), ("video.mp4", 1), ("ignored.bin", 500)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size * 2**20 + 1)
    (tmp_path / ".gitignore").write_text("ignored.bin\n")
    with pytest.raises(ConfigError) as caught:
        submit_search("quickstart", (), tmp_path, NOWHERE)
    assert caught.value.key == "--working-dir"
    assert caught.value.hint.endswith("the largest: weights.bin, video.mp4, .gitignore")
    (tmp_path / ".gitignore").write_text("*.bin\n")
    with pytest.raises(ConfigError) as caught:
        submit_search("quickstart", (), tmp_path, NOWHERE)
    assert caught.value.key == f"--address {NOWHERE}"
    assert "`ray start --head`" in caught.value.hint


@pytest.fixture
def jobs(monkeypatch):
    """The states of jobs by id, in place of those of a server."""
    states = {}
    client = SimpleNamespace(
        list_jobs=lambda: [
            SimpleNamespace(submission_id=name, status=JobStatus(state))
            for name, state in states.items()
        ],
        submit_job=lambda submission_id, **_: states.update({submission_id: "PENDING"}),
        get_job_info=lambda name: SimpleNamespace(status=JobStatus(states[name])),
    )
    monkeypatch.setattr(module, "job_client", lambda address: client)
    return states


def test_a_running_job_is_found_and_an_ended_one_gets_a_successor(jobs, tmp_path):
    def submit():
        return submit_search("quickstart", (), tmp_path, f"{NOWHERE}/")

    base = submission_base(load_config("quickstart", check=False))
    first, again = submit(), submit()
    assert (first.submission_id, first.address, first.is_new) == (base, NOWHERE, True)
    assert (again.submission_id, again.is_new) == (base, False)
    # The first job was deleted; one is of another search.
    jobs.clear()
    jobs |= {f"{base}-2": "FAILED", f"{base}0-7": "RUNNING", f"{base}-10": "STOPPED"}
    assert submit().submission_id == f"{base}-11"
    assert submit().is_new is False


def test_ctrl_c_does_not_reach_the_process_that_prints_the_log(jobs, tmp_path, monkeypatch):
    shown = tmp_path / "ray"
    shown.write_text(f"#!/bin/sh\ncut -d' ' -f5 /proc/$$/stat > {tmp_path}/group\n")
    shown.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(shown))
    jobs["mine"] = "SUCCEEDED"
    assert follow(Job(NOWHERE, "mine", is_new=True, storage="runs")) == 0
    assert int((tmp_path / "group").read_text()) != os.getpgrp()


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_environment_does_not_change_the_address(variable, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, "http://elsewhere.example:8265")
    with pytest.raises(ConfigError, match=f"Failed to connect to Ray at address: {NOWHERE}"):
        submit_search("quickstart", (), tmp_path, NOWHERE)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://10.0.0.5:8265", "token would be sent to 10.0.0.5 unencrypted"),
        ("http://127.evil.org", "unencrypted"),
        ("ray://127.0.0.1:10001", "not of the form http://HOST:PORT"),
        ("auto", "not of the form"),
        ("https://me:hunter2@head.org", "must not contain a password"),
    ],
)
def test_an_address_that_is_not_safe_is_refused(address, said, jobs, tmp_path):
    with pytest.raises(ConfigError, match=said) as caught:
        submit_search("quickstart", (), tmp_path, address)
    assert "hunter2" not in str(caught.value)
    assert jobs == {}
    if "unencrypted" in said:
        assert "unencrypted" in submit_search("quickstart", (), tmp_path, address, (), True).warning
