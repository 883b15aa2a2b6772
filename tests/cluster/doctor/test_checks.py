"""Each check on facts about made-up nodes."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from cluster.doctor import checks
from cluster.doctor.checks import Finding
from cluster.doctor.cluster_facts import ClusterFacts, Storage
from cluster.doctor.node_facts import RAY_SESSION, TEMPORARY, Disk, Images
from tests.cluster.doctor.made_up import PACKAGES, SOFTWARE, cluster, facts, gpu
from tests.tuning.databases import with_database
from tuning.checkpoints.storage_check import NodeStorage
from tuning.config.schema import SearchFile
from tuning.mlflow_logging.client import default_tracking_uri

GIB, GB = 2**30, 10**9


def by_node(findings: Any) -> dict[str, Finding]:
    """Findings by node; each node must have one."""
    listed = list(findings)
    found = {finding.node: finding for finding in listed}
    assert len(found) == len(listed)
    return found


def search(**values: Any) -> SearchFile:
    return SearchFile.model_validate({"search": values})


def test_no_cluster_or_a_silent_node_is_a_fault_a_dead_one_a_warning() -> None:
    given = cluster(facts(), silent={"b": "no answer within 10 s"}, dead={"c": ""})
    found = by_node(checks.check_membership(given))
    assert [found[name].status for name in ("", "b", "c")] == ["ok", "fault", "warning"]
    (finding,) = checks.check_membership(cluster(ray_error="nothing answers"))
    assert finding.status == "fault"
    assert "ray start" in finding.remedy


@pytest.mark.parametrize(
    ("changes", "status", "remedy"),
    [
        ({"python": "3.12.1"}, "fault", "python 3.11"),
        ({"python": "3.11.9"}, "warning", "python 3.11"),
        ({"packages": PACKAGES | {"ray": "2.59.0"}}, "fault", "ray==2.60.0"),
        ({"packages": PACKAGES | {"torch": "2.12.0"}}, "fault", "torch==2.13.0"),
        ({"packages": PACKAGES | {"numpy": "2.3.0"}}, "warning", "numpy==2.4.6"),
        ({"packages": PACKAGES | {"numpy": None}}, "fault", "numpy==2.4.6"),
        ({"packages": PACKAGES | {"torch": "2.13.0+cpu"}}, "ok", None),
        ({"source": "ffff"}, "fault", "same commit"),
    ],
)
def test_different_versions_are_found(
    changes: dict[str, Any], status: str, remedy: str | None
) -> None:
    found = by_node(checks.check_versions(cluster(facts(), facts(**changes))))
    assert (found["a"].status, found["b"].status) == ("ok", status)
    assert found["a"].found.startswith("python 3.11.7, ")
    assert "torch 2.13.0+cu130" in found["a"].found
    if remedy is None:
        assert found["b"].remedy == ""
    else:
        assert remedy in found["b"].remedy


@pytest.mark.parametrize(
    ("changes", "offered", "status", "found"),
    [
        ({"torch_error": "OSError: no libcudart"}, 0, "fault", "no libcudart"),
        ({"cuda": "", "driver_gpus": 1}, 1, "fault", "a build for CPUs"),
        ({"gpus": [gpu()], "driver_gpus": 2}, 2, "fault", "sees 1"),
        ({}, 4, "fault", "Ray offers 4, nvidia-smi lists 0"),
        ({"gpus": [gpu(error="no kernel")], "driver_gpus": 1}, 1, "fault", "no kernel"),
        ({"gpus": [gpu(), gpu()], "driver_gpus": 2}, 1, "warning", "offers 1 of 2"),
        ({"driver_gpus": 1}, 0, "warning", "offers 0 of 1"),
        ({}, 0, "ok", "none"),
        ({"gpus": [gpu(), gpu()], "driver_gpus": 2}, 2, "ok", "2 x H100 (80 GiB, bf16); CUDA 13.0"),
        ({"gpus": [gpu((7, 5))], "driver_gpus": 1}, 1, "ok", "no bf16"),
    ],
)
def test_gpus_are_seen_by_ray_pytorch_and_the_driver(
    changes: dict[str, Any], offered: float, status: str, found: str
) -> None:
    (finding,) = checks.check_gpus(cluster(facts(**changes), gpus=offered))
    assert finding.status == status
    assert found in finding.found
    assert bool(finding.remedy) == (status != "ok")


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"memory_used_bytes": 60 * GIB}, "max_concurrent"),
        ({"shm_bytes": 64 * 2**20}, "--shm-size"),
        ({"cpus": 8}, "--num-cpus=8"),
        ({"open_files": 1024}, "ulimit -n"),
    ],
)
def test_a_small_machine_is_a_warning(changes: dict[str, Any], remedy: str) -> None:
    (finding,) = checks.check_machine(cluster(facts(**changes)))
    assert finding.status == "warning"
    assert remedy in finding.remedy


def test_a_large_machine_is_described() -> None:
    (finding,) = checks.check_machine(cluster(facts(shm_bytes=None)))
    assert (finding.status, finding.found) == ("ok", "16 of 16 CPUs, 64 GiB memory")


def disk(use: str, free: int, total: int = 1000 * GB) -> Disk:
    return {"use": use, "path": "/disk", "free_bytes": free, "total_bytes": total}


@pytest.mark.parametrize(
    ("use", "free", "total", "status"),
    [
        (TEMPORARY, 101 * GB, 1000 * GB, "ok"),
        (TEMPORARY, 99 * GB, 1000 * GB, "warning"),
        (TEMPORARY, 21 * GB, 1000 * GB, "warning"),
        (TEMPORARY, 19 * GB, 1000 * GB, "fault"),
        (TEMPORARY, 2 * GB, 4 * GB, "ok"),
        (TEMPORARY, GB - 1, 4 * GB, "fault"),
        (RAY_SESSION, 51 * GB, 1000 * GB, "warning"),
        (RAY_SESSION, 49 * GB, 1000 * GB, "fault"),
    ],
)
def test_a_disk_needs_free_space(use: str, free: int, total: int, status: str) -> None:
    (finding,) = checks.check_disks(cluster(facts(disks=[disk(use, free, total)])))
    assert finding.status == status
    assert bool(finding.remedy) == (status != "ok")


def test_missing_files_are_listed() -> None:
    found = list(checks.check_files(cluster(facts(), facts(missing_files=["/w.pt", "/t.txt"]))))
    assert [(finding.status, finding.node) for finding in found] == [("fault", "b")]
    assert "/w.pt, /t.txt" in found[0].found


@pytest.mark.parametrize(
    ("token", "address", "status"),
    [(True, "10.0.0.4", "ok"), (False, "127.0.0.1", "ok"), (False, "10.0.0.4", "warning")],
)
def test_ray_needs_a_token_on_a_network(token: bool, address: str, status: str) -> None:
    (finding,) = checks.check_token(cluster(facts(token=token), facts(), address=address))
    assert finding.status == status


def test_every_node_needs_the_storage() -> None:
    answers = {
        "a": NodeStorage("10.0.0.4"),
        "b": NodeStorage("10.0.0.5", "does not see this folder"),
        "c": NodeStorage("10.0.0.6", "cannot write there: full"),
    }
    storage = Storage("search.storage", "/runs", nodes=tuple(answers.items()))
    found = by_node(checks.check_storage(cluster(storage=(storage,))))
    assert [found[name].status for name in "abc"] == ["ok", "fault", "fault"]
    assert "search.checkpoints.storage" in found["b"].remedy
    unwritable = Storage("search.storage", "/runs", error="permission denied")
    (finding,) = checks.check_storage(cluster(storage=(unwritable,)))
    assert finding.status == "fault"


def images(size: int, error: str = "") -> Images:
    return {"files": 0 if error else 3, "bytes": size, "error": error}


def test_every_node_needs_the_same_images() -> None:
    file = SearchFile.model_validate({"trial": {"data": {"root": "/data"}}})
    seen = [images(90), images(90), images(50), images(0, "no such folder")]
    nodes = [facts(images=one) for one in seen]
    found = by_node(checks.check_images(cluster(*nodes, file=file)))
    assert [found[name].status for name in "abcd"] == ["ok", "ok", "fault", "fault"]
    assert "mount /data" in found["d"].remedy


@pytest.mark.parametrize(
    ("resources", "has_autoscaler", "status", "found"),
    [
        ({"workers": 2}, False, "ok", "a trial takes 2 x (1 CPU, 0 GPU); 2 at once"),
        ({"max_concurrent": 9}, True, "ok", "4 at once, 9 when the autoscaler"),
        ({"cpus_per_worker": 5}, False, "fault", "one trial takes 5 CPU; the cluster has 4 CPU"),
        ({"cpus_per_worker": 5}, True, "warning", "autoscaler"),
    ],
)
def test_a_trial_must_fit(
    resources: dict[str, Any], has_autoscaler: bool, status: str, found: str
) -> None:
    given = cluster(
        facts(), cpus=4, file=search(resources=resources), has_autoscaler=has_autoscaler
    )
    (finding,) = checks.check_room(given)
    assert finding.status == status
    assert found in finding.found


def test_the_memory_of_the_head_limits_the_trials_at_once() -> None:
    """The second node has room for trials, but drivers run on the head."""
    given = cluster(facts(), facts(), cpus=4, memory=2e9, file=search())
    (finding,) = checks.check_room(given)
    assert finding.status == "warning"
    assert "8 at once, but the head's memory of 2.0 GB has room for 2 driver(s)" in finding.found
    enough = cluster(facts(), facts(), cpus=4, memory=10e9, file=search())
    assert [finding.status for finding in checks.check_room(enough)] == ["ok"]


def driver(**values: Any) -> ClusterFacts:
    return ClusterFacts(SOFTWARE, search(**values))


@pytest.fixture
def unused() -> str:
    """Address of a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_an_mlflow_database_answers_and_a_missing_one_is_not_created(tmp_path: Path) -> None:
    (finding,) = checks.check_mlflow(driver(storage=str(tmp_path)))
    assert finding.status == "ok"
    assert list(tmp_path.iterdir()) == []
    uri = default_tracking_uri(with_database(tmp_path))
    (finding,) = checks.check_mlflow(driver(tracking={"uri": uri}))
    assert (finding.status, finding.found) == ("ok", f"{uri} answers")


def test_a_silent_mlflow_server_is_a_fault_without_its_password(
    unused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_PASSWORD", "correct-horse")
    uri = f"http://me:${{THE_PASSWORD}}@{unused}"
    (finding,) = checks.check_mlflow(driver(tracking={"uri": uri}))
    assert finding.status == "fault"
    assert "Connection refused" in finding.found
    assert "correct-horse" not in finding.found


def test_the_database_of_the_study_is_opened(tmp_path: Path) -> None:
    for url, status in (
        (None, "ok"),
        (f"sqlite:///{tmp_path / 'study.db'}", "ok"),
        (f"sqlite:///{tmp_path / 'no' / 'study.db'}", "fault"),
    ):
        (finding,) = checks.check_optuna(driver(study_storage=url))
        assert finding.status == status, url


@pytest.mark.parametrize("scheme", ["mysql+pymysql", "nosuch", "postgresql+psycopg"])
def test_a_study_that_cannot_be_opened_is_a_fault_without_its_password(
    scheme: str, unused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_PASSWORD", "correct-horse")
    url = f"{scheme}://me:${{THE_PASSWORD}}@{unused}/studies"
    (finding,) = checks.check_optuna(driver(study_storage=url))
    assert finding.status == "fault"
    assert "correct-horse" not in finding.found
