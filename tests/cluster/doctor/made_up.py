"""Facts about made-up nodes: one healthy machine, and changes to it."""

from __future__ import annotations

from typing import Any, cast

from cluster.doctor.cluster_facts import ClusterFacts, Node
from cluster.doctor.node_facts import Gpu, NodeFacts, Software

PACKAGES: dict[str, str | None] = {
    "lipsum-tune": "0.1.0", "ray": "2.60.0", "torch": "2.13.0+cu130", "numpy": "2.4.6",
}  # fmt: skip
SOFTWARE: Software = {"python": "3.11.7", "packages": PACKAGES, "source": "0123456789ab"}


def facts(**changes: Any) -> NodeFacts:
    """A healthy node without GPUs; keys of `software` may be changed too."""
    software = {key: changes.pop(key, value) for key, value in SOFTWARE.items()}
    healthy: dict[str, Any] = {
        "software": software,
        "torch_error": "",
        "cuda": "13.0",
        "gpus": [],
        "driver_gpus": 0,
        "cpus": 16,
        "memory_bytes": 64 * 2**30,
        "memory_used_bytes": 8 * 2**30,
        "shm_bytes": 32 * 2**30,
        "open_files": 65536,
        "disks": [],
        "missing_files": [],
        "images": None,
        "token": True,
    }
    return cast(NodeFacts, healthy | changes)


def gpu(capability: tuple[int, int] = (9, 0), error: str = "") -> Gpu:
    return {"name": "H100", "memory_bytes": 80 * 2**30, "capability": capability, "error": error}


def cluster(
    *nodes: NodeFacts,
    cpus: float = 16,
    gpus: float = 0,
    memory: float = 64e9,
    address: str = "10.0.0.4",
    **more: Any,
) -> ClusterFacts:
    """A cluster of nodes with these facts, named a, b, c, of which the first is the head."""
    names = "abcdefgh"[: len(nodes)]
    return ClusterFacts(
        driver=SOFTWARE,
        nodes=tuple(Node(name, address, name == "a", cpus, gpus, memory) for name in names),
        facts=dict(zip(names, nodes, strict=True)),
        **more,
    )
