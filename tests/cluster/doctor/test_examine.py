"""Doctor as a command: its output, its exit status, and a real cluster."""

import json
import signal

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from cluster.doctor.examine import (
    Diagnosis,
    Row,
    _request,
    diagnose,
    examine,
    hide_secrets,
    render,
)
from cluster.doctor.node_facts import RUN_STORAGE
from tests.cluster.doctor.made_up import PACKAGES, cluster, facts
from tests.tuning.execution.nodes import cluster as cluster_of
from tests.tuning.result_tables import text_of
from trainers.errors import ConfigError
from tuning.config.schema import SearchFile
from tuning.execution.ray_session import free_port

NODES = ("a", "b", "c", "d", "e")
DIAGNOSIS = Diagnosis(
    (
        Row("fault", "MLflow", (), "no answer [/bold] at all", "start it"),
        Row("warning", "versions", NODES[:4], "numpy 1 there", "pip install"),
        Row("ok", "disk", NODES, "enough free space", ""),
    ),
    NODES,
)


def shown(diagnosis, width=100):
    return text_of(render(diagnosis), width).splitlines()


def test_equal_findings_of_several_nodes_are_one_row_and_faults_come_first():
    old = facts(packages=PACKAGES | {"ray": "2.59.0"})
    found = diagnose(cluster(facts(), old, facts(), old))
    versions = [row for row in found.findings if row.check == "versions"]
    assert [(row.status, row.nodes) for row in versions] == [
        ("fault", ("b", "d")),
        ("ok", ("a", "c")),
    ]
    assert found.findings[0] == versions[0]


def test_a_row_shows_nodes_finding_and_remedy():
    lines = shown(DIAGNOSIS)
    assert [line.split()[0] for line in lines if line.strip()] == [
        "fault", "->", "warning", "->", "ok", "1",
    ]  # fmt: skip
    assert "no answer [/bold] at all" in lines[0]
    assert "a, b, c and 1 more: numpy 1 there" in lines[2]
    assert "all 5 nodes: enough" in lines[4]
    assert lines[-1] == "1 fault, 1 warning"
    assert shown(Diagnosis((), ()))[-1] == "ready: no faults, no warnings"


def test_secrets_of_the_environment_are_hidden(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    monkeypatch.setenv("WHERE_TO", "battery-staple")
    monkeypatch.setenv("PWD", "/home/me")
    text = "/home/me: http://me:correct-horse@host refused correct-horse and battery-staple"
    hidden = hide_secrets(text, ["http://${WHERE_TO}@host"])
    assert hidden == "/home/me: http://***@host refused *** and ***"


@pytest.mark.parametrize(
    "arguments", [["--set", "trial.steps=1"], ["--address", "http://127.0.0.1:8265"]]
)
def test_options_that_do_not_fit_are_refused(arguments):
    done = CliRunner().invoke(app, ["doctor", *arguments])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.key == arguments[0]


@pytest.fixture
def config(images_root, tmp_path):
    """A configuration that this cluster can run."""
    search = {
        "storage": str(tmp_path / "runs"),
        "checkpoints": {"storage": str(tmp_path / "checkpoints")},
        "resources": {"workers": 2},
    }
    trial = {"data": {"root": str(images_root)}, "optim": {"batch_size": 8}, "steps": 6}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"trial": trial, "search": search}))
    return path


def doctor(*arguments):
    done = CliRunner().invoke(app, ["doctor", *map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout)


def named(values, check):
    return [finding for finding in values["findings"] if finding["check"] == check]


@pytest.mark.ray
def test_a_healthy_cluster_is_ready_and_nothing_is_left_behind(ray_head, config):
    status, values = doctor(config, "--address", ray_head.address)
    wrong = [finding for finding in values["findings"] if finding["status"] == "fault"]
    assert (status, wrong) == (0, [])
    assert len(values["nodes"]) == 1
    assert {finding["check"] for finding in values["findings"] if finding["status"] == "ok"} >= {
        "Ray", "versions", "GPUs", "security", "storage", "images", "room",
        "configuration", "MLflow", "Optuna",
    }  # fmt: skip
    for check in ("versions", "images", "storage"):
        assert named(values, check)[0]["nodes"] == values["nodes"]
    assert "1 at once" in named(values, "room")[0]["found"]
    assert not (config.parent / "runs").exists()
    assert list(config.parent.glob("**/.lipsum*")) == []


def test_the_folder_of_runs_may_be_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = SearchFile.model_validate({"search": {"storage": "~/runs"}})
    assert _request(file)["folders"] == {RUN_STORAGE: str(tmp_path / "runs")}


@pytest.mark.ray
def test_faults_have_remedies_and_the_status_is_1(ray_head, config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TRACKING_PASSWORD", "correct-horse")
    uri = f"http://me:${{TRACKING_PASSWORD}}@127.0.0.1:{free_port()}"
    status, values = doctor(
        config, "--address", ray_head.address,
        "--set", f"search.checkpoints.storage={tmp_path / 'file' / 'below'}",
        "--set", f"search.tracking.uri={uri}",
        "--set", "search.resources.cpus_per_worker=3",
        "--set", f"trial.data.root={tmp_path / 'nowhere'}",
    )  # fmt: skip
    faults = [finding for finding in values["findings"] if finding["status"] == "fault"]
    assert (status, values["faults"]) == (1, len(faults))
    assert {fault["check"] for fault in faults} == {
        "storage", "MLflow", "room", "images", "configuration",
    }  # fmt: skip
    assert all(fault["remedy"] for fault in faults)
    assert named(values, "images")[0]["nodes"] == values["nodes"]
    assert "correct-horse" not in json.dumps(values)


def test_without_a_cluster_the_configuration_is_checked_all_the_same(config):
    status, values = doctor(config, "--address", f"127.0.0.1:{free_port()}")
    assert status == 1
    assert [finding["check"] for finding in values["findings"]] == [
        "Ray", "configuration", "MLflow", "Optuna",
    ]  # fmt: skip


@pytest.mark.nightly
def test_a_node_that_does_not_answer_is_a_fault():
    with cluster_of(head_cpus=1, nodes=1) as nodes:
        node = nodes.list_all_nodes()[-1]
        (raylet,) = (info.process for info in node.all_processes["raylet"])
        raylet.send_signal(signal.SIGSTOP)
        try:
            found = examine(address=nodes.address, answer_s=10)
        finally:
            raylet.send_signal(signal.SIGCONT)
    (fault,) = [row for row in found.findings if row.status == "fault"]
    assert fault.check == "Ray"
    assert node.node_id[:6] in " ".join(fault.nodes)
    assert "no answer" in fault.found
