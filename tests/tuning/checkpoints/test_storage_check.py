"""A cluster of two nodes, of which one does not see a folder of the driver.

Slow: starts Ray. The second node has file systems of its own (`unshare --mount`, as root).
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
import ray
import yaml
from rich.console import Console

from tests.s3 import s3_server
from tests.tuning.execution.nodes import drain
from tests.tuning.execution.real_searches import configuration, outcomes
from trainers.errors import ConfigError
from trainers.overrides import nest
from trainers.ray_trainer import WORKER_ENVIRONMENT
from tuning.checkpoints.storage_check import alive_nodes, check_nodes, storage_on_nodes
from tuning.config.validation import load_config
from tuning.execution.ray_session import LOCALHOST, free_port
from tuning.search import run_search

pytestmark = pytest.mark.nightly

BLIND = "127.0.0.2"
"""The address of the node that does not see."""


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """A folder that is another, empty one on the second node."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module", autouse=True)
def cluster(hidden):
    """A head without CPUs, so that trials run on the second node."""
    port = free_port()
    address = f"{LOCALHOST}:{port}"
    with s3_server(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_GCS_SERVER_PORT", str(port))
        ray.init(
            address="local",
            num_cpus=0,
            include_dashboard=True,
            _node_ip_address=LOCALHOST,
            log_to_driver=False,
            runtime_env={"env_vars": {**WORKER_ENVIRONMENT, "RAY_ADDRESS": address}},
        )
        patch.delenv("RAY_GCS_SERVER_PORT")
        start = [
            Path(sys.executable).parent / "ray", "start", f"--address={address}",
            f"--node-ip-address={BLIND}", "--num-cpus=2", "--block",
        ]  # fmt: skip
        command = shlex.join(str(part) for part in start)
        script = f"mount -t tmpfs tmpfs {shlex.quote(str(hidden))} && exec {command}"
        node = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script],
            stdout=subprocess.DEVNULL,
            env=os.environ | {"RAY_ADDRESS": address},
        )
        try:
            deadline = time.monotonic() + 120
            while len(alive_nodes()) < 2:
                assert node.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield
        finally:
            node.terminate()
            node.wait()
            ray.shutdown()


def by_node(found):
    assert len(found) == 2
    return {node.node: node for node in found}


def search_file(root, runs, **changes):
    settings = {key.replace("__", "."): value for key, value in changes.items()}
    values = nest(settings, configuration(root, runs))
    path = runs.parent / f"{runs.name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_config(path)


def test_a_local_folder_is_seen_by_one_node_only(hidden, tmp_path):
    shared = by_node(storage_on_nodes(str(tmp_path / "runs")))
    assert all(node.fault is None for node in shared.values())
    alone = by_node(storage_on_nodes(str(hidden)))
    (head,) = alone.keys() - {BLIND}
    assert alone[head].fault is None
    assert alone[BLIND].fault == "does not see this folder"
    assert not [*tmp_path.rglob("*probe*"), *hidden.rglob("*")]


def test_a_node_that_does_not_answer_in_time_is_named(tmp_path):
    found = by_node(storage_on_nodes(str(tmp_path), deadline_s=0))
    assert found[BLIND].fault == "does not answer within 0 s"


def test_a_local_run_folder_is_refused_and_leaves_nothing(images_root, hidden, tmp_path):
    runs = hidden / "runs"
    with pytest.raises(ConfigError) as error:
        run_search(search_file(images_root, runs), console=Console(quiet=True))
    assert (error.value.key, error.value.value) == ("search.storage", str(runs))
    assert error.value.problem == f"node {BLIND} does not see this folder"
    assert "search.checkpoints.storage = s3://" in str(error.value.hint)
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize(
    ("storage", "problem"), [("", f"node {BLIND} does not see"), ("s3://missing/x", "not found")]
)
def test_a_storage_of_checkpoints_is_refused(images_root, hidden, tmp_path, storage, problem):
    storage = storage or str(hidden)
    file = search_file(images_root, tmp_path / "runs", search__checkpoints__storage=storage)
    with pytest.raises(ConfigError) as error:
        check_nodes(file, f"{storage}/small-1")
    assert (error.value.key, error.value.value) == ("search.checkpoints.storage", storage)
    assert problem in error.value.problem


def test_local_images_are_refused_if_a_node_does_not_see_them(images_root, hidden, tmp_path):
    root = hidden / "images"
    root.symlink_to(images_root)
    check_nodes(search_file(images_root, tmp_path / "runs"), str(tmp_path))
    with pytest.raises(ConfigError) as error:
        check_nodes(search_file(root, tmp_path / "runs"), str(tmp_path))
    assert (error.value.key, error.value.value) == ("trial.data.root", str(root))
    assert f"node {BLIND} does not see" in error.value.problem


def test_a_run_folder_may_be_local_if_checkpoints_are_in_a_bucket(images_root, hidden):
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="mine")
    settings = {"search__references": [], "search__budget__trials": 1, "trial__steps": 3}
    runs = hidden / "alone"
    file = search_file(images_root, runs, search__checkpoints__storage="s3://mine/x", **settings)
    found = run_search(file, console=Console(quiet=True))
    assert outcomes(found) == {"trial-000": "finished"}
    assert found.checkpoints.url.startswith("s3://mine/x/small-")
    assert not (found.folder / "train").exists()
    listed = s3.list_objects_v2(Bucket="mine")["Contents"]
    assert not [entry["Key"] for entry in listed if "probe" in entry["Key"]]


def test_a_node_that_announced_its_end_is_not_asked(images_root, hidden):
    """The last test here, as the node takes no more tasks."""
    (leaving,) = [name for name, address in alive_nodes().items() if address == BLIND]
    drain(ray.get_runtime_context().gcs_address, leaving, seconds=600)
    assert leaving not in alive_nodes()
    check_nodes(search_file(images_root, hidden / "runs"), str(hidden))
