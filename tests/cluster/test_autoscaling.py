"""A search on a cluster that has no room for it yet. Slow: Ray's own autoscaler adds real nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray.util.state import list_nodes

from tests.cluster.heads import Head, running_head
from tests.tuning.nodes import driver, records, write

pytestmark = pytest.mark.slow

FAKE_NODES = {
    "cluster_name": "grows",
    "provider": {"type": "fake_multinode"},  # its nodes are processes on this machine
    "max_workers": 2,
    "idle_timeout_minutes": 60,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 2},
    },
    "auth": {},
    "file_mounts": {},
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


def node_cpus(head: Head) -> list[float]:
    """Of each node that lives."""
    nodes = list_nodes(head.dashboard, filters=[("state", "=", "ALIVE")], detail=True)
    return sorted(node.resources_total.get("CPU", 0) for node in nodes)


def test_trials_wait_for_the_nodes_that_an_autoscaler_adds_for_them(
    pictures_root: Path, tmp_path: Path
) -> None:
    described = tmp_path / "nodes.json"
    described.write_text(json.dumps(FAKE_NODES))
    config = write(tmp_path, pictures_root, "grows", search__budget={"trials": 1}, trial__steps=20)
    options = (f"--autoscaling-config={described}", "--num-cpus=0")
    variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with running_head(*options, **variables) as head:
        before = node_cpus(head)
        with driver(head.address, "search", config) as process:
            assert process.wait() == 0
        assert (before, node_cpus(head)) == ([0], [0, 1, 1])
    (record,) = records(tmp_path / "grows").values()
    assert (record.outcome, record.step) == ("finished", 20)
