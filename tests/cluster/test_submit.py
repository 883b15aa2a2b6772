"""What `submit` checks, and what it hands to Ray; `test_jobs` submits real jobs."""

import json
import shlex
from types import SimpleNamespace

import pytest

from cluster.submit import job_environment, submit_search
from trainers.errors import ConfigError

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


def submit(*overrides, config="quickstart", address=NOWHERE, **options):
    return submit_search(str(config), overrides, address, **options)


@pytest.fixture
def sent(monkeypatch):
    """Commands and environments that would be run."""
    calls = []

    def run(command, env, check):
        calls.append((command, env))
        return SimpleNamespace(returncode=7)

    monkeypatch.setattr("cluster.submit.subprocess.run", run)
    return calls


def test_a_search_is_handed_to_rays_own_command(sent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("extends: quickstart")
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(variable, "http://elsewhere.example:8265")
    given = submit("search.name=x", config=tmp_path / "mine.yaml", options=["--no-wait"])
    assert given == 7
    ((command, environment),) = sent
    words, search = command[: command.index("--")], command[command.index("--") + 1 :]
    assert shlex.join(search) == "python -m tuning search mine.yaml --resume --set search.name=x"
    ray = f"-m ray.scripts.scripts job submit --address {NOWHERE} --working-dir ."
    assert shlex.join(words[1:9]) == ray
    assert "--no-wait" in words
    runtime_env = json.loads(words[words.index("--runtime-env-json") + 1])
    assert {".git/", ".env", ".ssh/", "*.pem"} <= {*runtime_env["excludes"]}
    assert runtime_env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "20"
    assert environment["RAY_API_SERVER_ADDRESS"] == NOWHERE
    assert "RAY_ADDRESS" not in environment


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("trial.optim.lrr=1", "trial.optim.lrr"),
        ("search.tracking.uri=https://a:b@c", "search.tracking.uri"),
        ("search.objective.metric=x/y", "search.objective.metric"),
        ("trial.data.root=my/data", "trial.data.root"),
        ("trial.plugins=[mine.py]", "trial.plugins"),
        ("trial.model.name=local-dir:model", "trial.model.name"),
        ("trial.model={name: ViT-B-32, pretrained: mine.pt}", "trial.model.pretrained"),
        ("search.tracking.uri=sqlite:///mlflow.db", "search.tracking.uri"),
        ("search.study_storage=sqlite:///study.db", "search.study_storage"),
        ("search.warm_start.runs=[/shared/one, runs/other]", "search.warm_start.runs"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(override, key, sent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    with pytest.raises(ConfigError) as caught:
        submit(override)
    assert caught.value.key == key
    assert sent == []


def test_files_that_are_not_uploaded_are_refused(sent, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "base.yaml").write_text("extends: quickstart")
    (work / "mine.yaml").write_text("extends: ../base.yaml")
    monkeypatch.chdir(work)
    for config in ("../base.yaml", "mine.yaml"):
        with pytest.raises(ConfigError, match=r"base.yaml: .*not below the current directory"):
            submit(config=config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(ConfigError, match="temporary copy") as caught:
        submit()
    assert caught.value.key == "search.tracking.uri"
    assert sent == []


@pytest.mark.parametrize(
    "override",
    [
        "trial.data.root=s3://bucket/data",
        "trial.data.root=~/data",
        "trial.plugins=[json]",
        "trial.model.name=ViT-B-32",
        "trial.model={name: ViT-B-32, pretrained: /shared/mine.pt}",
        "search.tracking.uri=sqlite:////shared/mlflow.db",
        "search.tracking.uri=${TRACKING}",
        "search.study_storage=postgresql+psycopg://db/study",
        "search.warm_start.runs=[/shared/one]",
    ],
)
def test_places_that_every_node_may_reach_are_sent(override, sent):
    assert submit(override) == 7
    assert len(sent) == 1


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
def test_an_address_that_is_not_safe_is_refused(address, said, sent):
    with pytest.raises(ConfigError, match=said) as caught:
        submit(address=address)
    assert "hunter2" not in str(caught.value)
    assert sent == []
    if "unencrypted" in said:
        assert submit(address=address, allow_remote=True) == 7
