"""Each check on facts about made-up nodes."""

import socket

import pytest

from cluster.doctor import checks
from cluster.doctor.cluster_facts import ClusterFacts, Storage
from cluster.doctor.node_facts import RAY_SESSION, TEMPORARY
from tests.cluster.doctor.made_up import PACKAGES, SOFTWARE, cluster, facts, gpu
from tests.tuning.databases import with_database
from tuning.config.schema import SearchFile
from tuning.views.mlflow.client import default_tracking_uri

GIB, GB = 2**30, 10**9


def by_node(findings):
    """Findings by node; each node must have one."""
    listed = list(findings)
    found = {finding.node: finding for finding in listed}
    assert len(found) == len(listed)
    return found


def search(**values):
    return SearchFile.model_validate({"search": values})


def test_no_cluster_or_a_silent_node_is_a_fault_a_dead_one_a_warning():
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
def test_different_versions_are_found(changes, status, remedy):
    found = by_node(checks.check_versions(cluster(facts(), facts(**changes))))
    assert (found["a"].status, found["b"].status) == ("ok", status)
    assert found["a"].found.startswith("python 3.11.7, ")
    assert "torch 2.13.0+cu130" in found["a"].found
    if remedy is None:
        assert found["b"].remedy == ""
    else:
        assert remedy in found["b"].remedy


def disk(use, free, total=1000 * GB):
    return facts(disks=[{"use": use, "path": "/disk", "free_bytes": free, "total_bytes": total}])


def room(**resources):
    """Two nodes of 4 CPUs, and a search with these resources."""
    return cluster(facts(), facts(), cpus=4, file=search(resources=resources))


ONE_GPU = {"gpus": [gpu()], "driver_gpus": 1}
TWO_GPUS = {"gpus": [gpu(), gpu()], "driver_gpus": 2}


@pytest.mark.parametrize(
    ("check", "given", "status", "text"),
    [
        ("gpus", cluster(facts(torch_error="no libcudart")), "fault", "no libcudart"),
        ("gpus", cluster(facts(cuda="", driver_gpus=1), gpus=1), "fault", "a build for CPUs"),
        ("gpus", cluster(facts(**ONE_GPU | {"driver_gpus": 2}), gpus=2), "fault", "sees 1"),
        ("gpus", cluster(facts(), gpus=4), "fault", "Ray offers 4, nvidia-smi lists 0"),
        ("gpus", cluster(facts(**ONE_GPU | {"gpus": [gpu(error="bad")]}), gpus=1), "fault", "bad"),
        ("gpus", cluster(facts(**TWO_GPUS), gpus=1), "warning", "offers 1 of 2"),
        ("gpus", cluster(facts(driver_gpus=1)), "warning", "offers 0 of 1"),
        ("gpus", cluster(facts()), "ok", "none"),
        ("gpus", cluster(facts(**TWO_GPUS), gpus=2), "ok", "2 x H100 (80 GiB, bf16); CUDA 13.0"),
        ("gpus", cluster(facts(**ONE_GPU | {"gpus": [gpu((7, 5))]}), gpus=1), "ok", "no bf16"),
        ("machine", cluster(facts(memory_used_bytes=60 * GIB)), "warning", "max_concurrent"),
        ("machine", cluster(facts(shm_bytes=64 * 2**20)), "warning", "--shm-size"),
        ("machine", cluster(facts(cpus=8)), "warning", "--num-cpus=8"),
        ("machine", cluster(facts(open_files=1024)), "warning", "ulimit -n"),
        ("machine", cluster(facts(shm_bytes=None)), "ok", "16 of 16 CPUs, 64 GiB memory"),
        ("disks", cluster(disk(TEMPORARY, 101 * GB)), "ok", TEMPORARY),
        ("disks", cluster(disk(TEMPORARY, 99 * GB)), "warning", "99 of 1e+03 GB free"),
        ("disks", cluster(disk(TEMPORARY, 21 * GB)), "warning", "TMPDIR"),
        ("disks", cluster(disk(TEMPORARY, 19 * GB)), "fault", "TMPDIR"),
        ("disks", cluster(disk(TEMPORARY, 2 * GB, 4 * GB)), "ok", TEMPORARY),
        ("disks", cluster(disk(TEMPORARY, GB - 1, 4 * GB)), "fault", "1 of 4 GB free"),
        ("disks", cluster(disk(RAY_SESSION, 51 * GB)), "warning", "--temp-dir"),
        ("disks", cluster(disk(RAY_SESSION, 49 * GB)), "fault", "--temp-dir"),
        ("files", cluster(facts(), facts(missing_files=["/w", "/t"])), "fault", "/w, /t"),
        ("token", cluster(facts(token=True), facts()), "ok", "requires its token"),
        ("token", cluster(facts(token=False), address="127.0.0.1"), "ok", "loopback only"),
        ("token", cluster(facts(token=False), facts()), "warning", "everyone who reaches"),
        ("storage", cluster(storage=(Storage("k", "/runs", "denied"),)), "fault", "here, denied"),
        ("room", room(workers=2), "ok", "a trial takes 2 x (1 CPU, 0 GPU); 4 at once"),
        ("room", room(max_concurrent=9), "warning", "8 at once, 9 once it has room"),
        ("room", room(cpus_per_worker=9), "fault", "one trial takes 9 CPU; the cluster has 8 CPU"),
    ],
)
def test_what_is_wrong_has_a_remedy(check, given, status, text):
    (finding,) = getattr(checks, f"check_{check}")(given)
    assert finding.status == status
    assert text in f"{finding.found} -> {finding.remedy}"
    assert bool(finding.remedy) == (status != "ok")


def test_every_node_needs_the_storage():
    answers = {"a": "", "b": "does not see this folder", "c": "full"}
    storage = Storage("search.storage", "/runs", nodes=answers)
    found = by_node(checks.check_storage(cluster(storage=(storage,))))
    assert [found[name].status for name in "abc"] == ["ok", "fault", "fault"]
    assert "search.checkpoints.storage" in found["b"].remedy


def images(size, error=""):
    return {"files": 0 if error else 3, "bytes": size, "error": error}


def test_every_node_needs_the_same_images():
    file = SearchFile.model_validate({"trial": {"data": {"root": "/data"}}})
    seen = [images(90), images(90), images(50), images(0, "no such folder")]
    nodes = [facts(images=one) for one in seen]
    found = by_node(checks.check_images(cluster(*nodes, file=file)))
    assert [found[name].status for name in "abcd"] == ["ok", "ok", "fault", "fault"]
    assert "mount /data" in found["d"].remedy


def driver(**values):
    return ClusterFacts(SOFTWARE, search(**values))


@pytest.fixture
def unused():
    """Address of a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_an_mlflow_database_answers_and_a_missing_one_is_not_created(tmp_path):
    (finding,) = checks.check_mlflow(driver(storage=str(tmp_path)))
    assert finding.status == "ok"
    assert list(tmp_path.iterdir()) == []
    uri = default_tracking_uri(with_database(tmp_path))
    (finding,) = checks.check_mlflow(driver(tracking={"uri": uri}))
    assert (finding.status, finding.found) == ("ok", f"{uri} answers")


def test_a_silent_mlflow_server_is_a_fault_without_its_password(unused, monkeypatch):
    monkeypatch.setenv("THE_PASSWORD", "correct-horse")
    uri = f"http://me:${{THE_PASSWORD}}@{unused}"
    (finding,) = checks.check_mlflow(driver(tracking={"uri": uri}))
    assert finding.status == "fault"
    assert "Connection refused" in finding.found
    assert "correct-horse" not in finding.found


def test_the_database_of_the_study_is_opened(tmp_path):
    for url, status in (
        (None, "ok"),
        (f"sqlite:///{tmp_path / 'study.db'}", "ok"),
        (f"sqlite:///{tmp_path / 'no' / 'study.db'}", "fault"),
    ):
        (finding,) = checks.check_optuna(driver(study_storage=url))
        assert finding.status == status, url


@pytest.mark.parametrize("scheme", ["mysql+pymysql", "nosuch", "postgresql+psycopg"])
def test_a_study_that_cannot_be_opened_is_a_fault_without_its_password(scheme, unused, monkeypatch):
    monkeypatch.setenv("THE_PASSWORD", "correct-horse")
    url = f"{scheme}://me:${{THE_PASSWORD}}@{unused}/studies"
    (finding,) = checks.check_optuna(driver(study_storage=url))
    assert finding.status == "fault"
    assert "correct-horse" not in finding.found
