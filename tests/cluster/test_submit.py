"""What a job is told, and how it is called; `test_jobs` submits real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.submit import Job, JobRequest, carried, submission_base, submit_search
from trainers.errors import ConfigError
from tuning.config_file import load_config

NOWHERE = "http://127.0.0.1:9"


def test_only_the_variables_that_were_named_go_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "97")  # of this terminal
    environment = {
        "HF_HOME": "/shared/hf", "PATH": "/bin", "RAY_AUTH_MODE": "token",
        "MLFLOW_TRACKING_URI": "https://mlflow.example.org", "AWS_SECRET_ACCESS_KEY": "hunter2",
    }  # fmt: skip
    assert carried(("HF_HOME",), environment) == {
        "HF_HOME": "/shared/hf",
        "RAY_AUTH_MODE": "token",
        "MLFLOW_TRACKING_URI": "https://mlflow.example.org",
        "RAY_JOB_STOP_WAIT_TIME_S": "20",
        "COLUMNS": "97",
    }


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "API_KEY", "PGPASSWORD"],
)
def test_a_secret_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"--env {name}: it looks like a secret") as caught:
        carried((name,), {name: "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_secret_within_an_address_is_refused_too() -> None:
    uri = "https://me:hunter2@mlflow.example.org"
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI: there is a password in it"):
        carried((), {"MLFLOW_TRACKING_URI": uri})
    with pytest.raises(ConfigError, match="--env PROXY: it looks like a secret"):
        carried(("PROXY",), {"PROXY": uri})
    assert carried((), {"MLFLOW_TRACKING_URI": "https://me:${PW}@mlflow.example.org"})


def test_a_variable_that_is_not_set_is_said() -> None:
    with pytest.raises(ConfigError, match="--env HF_HOME: not set"):
        carried(("HF_HOME",), {})


def test_the_same_search_is_called_the_same_whatever_its_budget() -> None:
    base = submission_base(load_config("quickstart"))
    assert base.startswith("quickstart-")
    more = ["search.budget.trials=40", "search.resources.max_concurrent=1"]
    assert submission_base(load_config("quickstart", more)) == base
    others = ["trial.steps=130", "search.storage=/shared", "search.name=other", "trial.seed=1"]
    names = {submission_base(load_config("quickstart", [other])) for other in others}
    assert len(names) == 4
    assert base not in names


def test_mistakes_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    def refused(*overrides: str, config: str = "quickstart") -> str:
        with pytest.raises(ConfigError) as caught:
            submit_search(JobRequest(config, overrides, tmp_path), NOWHERE)
        return str(caught.value)

    assert "did you mean 'lr'" in refused("trial.optim.lrr=1")
    assert "no such folder" in refused(config="no-such") or "no such file" in refused(config="x")
    assert "a password does not belong" in refused("search.tracking.uri=https://a:b@c")
    assert "trial.data.root = 'my/data'" in refused("trial.data.root=my/data")
    assert "never reported" in refused("search.objective.metric=x/y")
    with pytest.raises(ConfigError, match=r"--working-dir .*: no such folder"):
        submit_search(JobRequest("quickstart", working_dir=tmp_path / "none"), NOWHERE)


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--address {NOWHERE}: Failed to connect") as caught:
        submit_search(JobRequest("quickstart", working_dir=tmp_path), NOWHERE)
    assert "\n" not in str(caught.value)


def test_people_are_told_where_it_is_and_how_to_stop_it() -> None:
    lines = Job("http://127.0.0.1:8265", "quickstart-1", True, "runs").description()
    text = "\n".join(lines)
    assert "ray job stop --address http://127.0.0.1:8265 quickstart-1" in text
    assert "~/lipsum-tune/runs" in text
    again = Job("http://127.0.0.1:8265", "quickstart-1", False, "/shared").description()
    assert "running already" in again[0]
