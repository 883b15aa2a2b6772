"""What a configuration needs, against accounts of nodes."""

from __future__ import annotations

import pytest

from cluster.doctor.facts import Images
from cluster.doctor.needs import files, images, room, storage
from cluster.doctor.probes import Silence
from tests.cluster.doctor.accounts import node
from tuning.checkpoints.storage_check import NodeStorage
from tuning.config.schema import ResourcesConfig

ROOT = "/data/images"


def seen(size: int) -> dict[str, Images]:
    return {"real/train": {"files": 2, "bytes": size}, "real/val": {"files": 1, "bytes": 10}}


def test_equal_images_are_well_and_the_odd_one_out_is_named() -> None:
    found = list(images(ROOT, {"a": seen(90), "b": seen(90), "c": seen(50)}))
    assert [(f.status, f.nodes) for f in found] == [
        ("ok", ("a",)), ("ok", ("b",)), ("fault", ("c",)),
    ]  # fmt: skip
    assert "3 files" in found[2].found


def test_images_that_a_node_does_not_have_are_a_fault() -> None:
    missing = Silence("ConfigError: data.root = '/data/images': no such folder")
    found = {f.nodes[0]: f for f in images(ROOT, {"a": seen(90), "b": missing})}
    assert found["a"].status == "ok"
    assert found["b"].status == "fault"
    assert found["b"].found == "data.root = '/data/images': no such folder"
    assert f"mount {ROOT}" in found["b"].remedy


def test_storage_is_told_node_by_node() -> None:
    answers = [
        ("a", NodeStorage("10.0.0.4", sees=True, writes=True)),
        ("b", NodeStorage("10.0.0.5", sees=False, writes=False)),
        ("c", NodeStorage("10.0.0.6", sees=True, writes=False, error="cannot write there: full")),
    ]
    found = list(storage("search.storage", "/shared/runs", answers))
    assert [(f.status, f.nodes) for f in found] == [
        ("ok", ("a",)), ("fault", ("b",)), ("fault", ("c",)),
    ]  # fmt: skip
    assert "does not see this folder" in found[1].found
    assert "search.checkpoints.storage" in found[1].remedy
    (bucket,) = storage("search.checkpoints.storage", "s3://b/c", answers[2:])
    assert "credentials" in bucket.remedy


def test_files_that_a_node_lacks_are_listed() -> None:
    assert not list(files("a", []))
    (finding,) = files("a", ["/weights.pt", "/texts.txt"])
    assert finding.status == "fault"
    assert "/weights.pt, /texts.txt" in finding.found


@pytest.mark.parametrize(
    ("nodes", "resources", "at_once"),
    [
        ([(4, 0)], {"workers": 2}, 2),
        ([(3, 0), (3, 0)], {"workers": 2, "cpus_per_worker": 2}, 1),  # 2 workers, of 6 CPUs
        ([(4, 0), (4, 0)], {"cpus_per_worker": 6}, 0),  # 8 CPUs, but on two machines
        ([(16, 1), (16, 1)], {"gpus_per_worker": 2}, 0),
        ([(16, 2)], {"gpus_per_worker": 0.5}, 4),
        ([(2, 8)], {"gpus_per_worker": 1}, 2),
        ([(16, 0)], {"max_concurrent": 3}, 3),
        ([(2, 0), (1, 0)], {"workers": 4, "min_workers": 3}, 1),  # an elastic trial begins with 3
        ([(2, 0), (2, 0)], {"workers": 3, "placement_strategy": "STRICT_PACK"}, 0),
        ([(8, 0), (1, 0)], {"workers": 2, "placement_strategy": "STRICT_SPREAD"}, 1),
    ],
)
def test_room_is_what_a_search_would_have(
    nodes: list[tuple[float, float]], resources: dict[str, object], at_once: int
) -> None:
    there = [node(str(number), cpus, gpus) for number, (cpus, gpus) in enumerate(nodes)]
    finding = room(ResourcesConfig.model_validate(resources), there, grows=False)
    assert finding.status == ("ok" if at_once else "fault")
    if at_once:
        assert finding.found.endswith(f"; {at_once} at once")
    else:
        assert "search.resources.workers" in finding.remedy


def test_where_nodes_are_added_no_room_is_a_warning_and_little_room_is_well() -> None:
    head = node("head", cpus=0)
    none = room(ResourcesConfig(), [head], grows=True)
    assert none.status == "warning"
    assert none.found.startswith("one trial takes 1 CPU; the cluster has 0 CPU, 0 GPU; ")
    assert "autoscaler" in none.found
    some = room(ResourcesConfig(max_concurrent=12), [head, node("a", cpus=2)], grows=True)
    assert some.status == "ok"
    assert some.found.endswith("2 at once, and 12 once the autoscaler has added nodes")
