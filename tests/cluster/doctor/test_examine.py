"""Doctor on a real cluster of this machine. Slow: starts three nodes."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from cluster.cli import app
from cluster.doctor.examine import examine
from tuning.execution.ray_session import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    nodes = Cluster()
    nodes.add_node(
        num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=free_port()
    )
    nodes.add_node(num_cpus=2)
    yield nodes
    nodes.shutdown()


@pytest.fixture
def config(images_root: Path, tmp_path: Path) -> Path:
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


def doctor(*arguments: object) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["doctor", *map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout)


def of(values: dict[str, Any], check: str) -> list[dict[str, Any]]:
    return [finding for finding in values["findings"] if finding["check"] == check]


def test_a_healthy_cluster_is_ready_and_nothing_is_left_behind(
    cluster: Cluster, config: Path
) -> None:
    status, values = doctor(config, "--address", cluster.address)
    wrong = [finding for finding in values["findings"] if finding["status"] == "fault"]
    assert (status, wrong) == (0, [])
    assert len(values["nodes"]) == 2
    assert {finding["check"] for finding in values["findings"] if finding["status"] == "ok"} >= {
        "Ray", "versions", "GPUs", "disk", "clock", "state API", "security", "network", "storage",
        "images", "room", "configuration", "MLflow", "Optuna",
    }  # fmt: skip
    for check in ("versions", "clock", "images", "storage"):
        assert of(values, check)[0]["nodes"] == values["nodes"]
    port = cluster.webui_url.rpartition(":")[2]
    assert any(f"dashboard (port {port})" in found["found"] for found in of(values, "security"))
    assert "2 at once" in of(values, "room")[0]["found"]
    runs = config.parent / "runs"
    assert not runs.exists()
    assert list(config.parent.glob("**/.lipsum*")) == []


def test_each_fault_has_its_row_and_the_status_is_1(
    cluster: Cluster, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TRACKING_PASSWORD", "correct-horse")
    uri = f"http://me:${{TRACKING_PASSWORD}}@127.0.0.1:{free_port()}"
    status, values = doctor(
        config, "--address", cluster.address,
        "--set", f"search.checkpoints.storage={tmp_path / 'file' / 'below'}",
        "--set", f"search.tracking.uri={uri}",
        "--set", "search.resources.cpus_per_worker=3",
        "--set", f"trial.data.root={tmp_path / 'nowhere'}",
    )  # fmt: skip
    faults = {finding["check"] for finding in values["findings"] if finding["status"] == "fault"}
    assert status == 1
    assert faults == {"storage", "MLflow", "room", "images", "configuration"}
    assert all(found["remedy"] for found in values["findings"] if found["status"] == "fault")
    assert of(values, "images")[0]["nodes"] == values["nodes"]
    assert "correct-horse" not in json.dumps(values)


def test_a_node_that_does_not_answer_is_a_fault_of_its_own(cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=1)
    (raylet,) = (info.process for info in node.all_processes["raylet"])
    raylet.send_signal(signal.SIGSTOP)
    try:
        found = examine(address=cluster.address, answer_s=10)
    finally:
        raylet.send_signal(signal.SIGCONT)
        cluster.remove_node(node)
    faults = [finding for finding in found.findings if finding.status == "fault"]
    assert [(fault.check, len(fault.nodes)) for fault in faults] == [("Ray", 1)]
    assert node.node_id[:6] in faults[0].nodes[0]
    clocks = next(finding for finding in found.findings if finding.check == "clock")
    assert set(clocks.nodes) == set(found.nodes) - set(faults[0].nodes)


def test_a_cluster_that_is_not_there_is_a_fault_and_the_rest_is_looked_at_all_the_same(
    config: Path,
) -> None:
    status, values = doctor(config, "--address", f"127.0.0.1:{free_port()}")
    assert status == 1
    assert [finding["check"] for finding in values["findings"]] == [
        "Ray", "configuration", "MLflow", "Optuna",
    ]  # fmt: skip
    assert "ray start" in values["findings"][0]["remedy"]
