"""Facts about made-up nodes: one healthy machine, and changes to it."""

from typing import cast

from cluster.doctor.cluster_facts import ClusterFacts, Node
from cluster.doctor.node_facts import NodeFacts

PACKAGES = {
    "lipsum-tune": "0.1.0", "ray": "2.60.0", "torch": "2.13.0+cu130", "numpy": "2.4.6",
}  # fmt: skip
SOFTWARE = {"python": "3.11.7", "packages": PACKAGES, "source": "0123456789ab"}


def facts(**changes):
    """A healthy node without GPUs; keys of `software` may be changed too."""
    software = {key: changes.pop(key, value) for key, value in SOFTWARE.items()}
    healthy = {
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


def gpu(capability=(9, 0), error=""):
    return {"name": "H100", "memory_bytes": 80 * 2**30, "capability": capability, "error": error}


def cluster(*nodes, cpus=16, gpus=0, address="10.0.0.4", **more):
    """A cluster of nodes with these facts, named a, b, c, of which the first is the head."""
    names = "abcdefgh"[: len(nodes)]
    return ClusterFacts(
        driver=SOFTWARE,
        nodes=tuple(Node(name, address, name == "a", cpus, gpus) for name in names),
        facts=dict(zip(names, nodes, strict=True)),
        **more,
    )
