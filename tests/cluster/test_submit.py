"""What `submit` checks, and what it hands to Ray; `test_jobs` submits real jobs."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import ray

from cluster.submit import check_address, job_environment, submit_search
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


class Head:
    """An HTTP server that answers Ray's client as the dashboard of a head does."""

    def __init__(self, refusal=None):
        self.jobs = []
        answer = (
            (200, {"job_id": "job-1", "submission_id": "job-1"})
            if refusal is None
            else (500, refusal)
        )
        jobs = self.jobs

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {"ray_version": ray.__version__})

            def do_POST(self):
                jobs.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.reply(*answer)

            def reply(self, status, body):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(
                    body.encode() if isinstance(body, str) else json.dumps(body).encode()
                )

            def log_message(self, *words):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Each test has an empty folder, and variables that name another cluster."""
    monkeypatch.chdir(tmp_path)
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(variable, NOWHERE)


@pytest.fixture
def head():
    with Head() as running:
        yield running


def submit(*overrides, config="quickstart", to, **options):
    return submit_search(str(config), overrides, to.address, wait=False, **options)


def test_a_search_is_submitted_as_a_job(head, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("extends: quickstart")
    assert submit("search.name=x", config=tmp_path / "mine.yaml", to=head) == 0
    assert f"Job 'job-1' submitted to {head.address}" in capsys.readouterr().out
    (job,) = head.jobs
    command = "python -m tuning search mine.yaml --resume --set search.name=x"
    assert job["entrypoint"] == command
    runtime_env = job["runtime_env"]
    assert runtime_env["working_dir"].startswith("gcs://")  # uploaded
    assert {".git/", ".env", ".ssh/", "*.pem"} <= {*runtime_env["excludes"]}
    assert runtime_env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "20"


NO_AGENT = "No available agent to submit job, please try again later."


def test_an_address_without_a_ray_is_one_line():
    with pytest.raises(ConfigError, match="Failed to connect to Ray") as caught:
        submit(to=SimpleNamespace(address=NOWHERE))
    assert (caught.value.key, caught.value.value) == ("--address", NOWHERE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("refusal", [NO_AGENT, f"Traceback:\n  File\nRuntimeError: {NO_AGENT}\n"])
def test_a_head_without_a_job_agent_is_one_line(refusal):
    with Head(refusal) as head, pytest.raises(ConfigError, match=NO_AGENT) as caught:
        submit(to=head)
    assert (caught.value.key, caught.value.value) == ("--address", head.address)
    assert "\n" not in str(caught.value)


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
def test_mistakes_are_found_before_anything_is_sent(override, key, head, tmp_path):
    (tmp_path / "mine.py").touch()
    with pytest.raises(ConfigError) as caught:
        submit(override, to=head)
    assert caught.value.key == key
    assert head.jobs == []


def test_files_that_are_not_uploaded_are_refused(head, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "base.yaml").write_text("extends: quickstart")
    (work / "mine.yaml").write_text("extends: ../base.yaml")
    monkeypatch.chdir(work)
    for config in ("../base.yaml", "mine.yaml"):
        with pytest.raises(ConfigError, match=r"base.yaml: .*not below the current directory"):
            submit(config=config, to=head)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(ConfigError, match="temporary copy") as caught:
        submit(to=head)
    assert caught.value.key == "search.tracking.uri"
    assert head.jobs == []


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
def test_places_that_every_node_may_reach_are_sent(override, head):
    assert submit(override, to=head) == 0
    assert len(head.jobs) == 1


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
def test_an_address_that_is_not_safe_is_refused(address, said):
    with pytest.raises(ConfigError, match=said) as caught:
        submit(to=SimpleNamespace(address=address))
    assert "hunter2" not in str(caught.value)
    if "unencrypted" in said:
        check_address(address, allow_remote=True)
