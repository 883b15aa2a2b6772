"""Accounts of nodes, as real ones give them: a healthy machine, and what is said of others."""

from __future__ import annotations

from typing import Any, cast

from cluster.doctor.facts import Gpu, NodeFacts, SmiGpu
from cluster.doctor.probes import Node

VERSIONS = {"lipsum-tune": "0.1.0", "ray": "2.60.0", "torch": "2.13.0+cu130", "numpy": "2.4.6"}
H100 = "NVIDIA H100 80GB HBM3"


def facts(**changes: Any) -> NodeFacts:
    """A healthy node with no GPU."""
    healthy: dict[str, Any] = {
        "python": "3.11.7",
        "versions": VERSIONS,
        "code": "0123456789ab",
        "torch": {"error": "", "cuda": "13.0", "nccl": "2.29.1", "gpus": []},
        "smi": [],
        "cpus": 16,
        "memory_bytes": 64 * 2**30,
        "memory_used_bytes": 8 * 2**30,
        "shm_bytes": 32 * 2**30,
        "open_files": 65536,
        "disks": [],
        "missing_files": [],
        "token_mode": True,
        "interfaces": ["127.0.0.1", "10.0.0.4"],
        "listening": [],
    }
    return cast(NodeFacts, healthy | changes)


def gpu(capability: tuple[int, int] = (9, 0), error: str = "") -> Gpu:
    return {"name": H100, "memory_bytes": 80 * 2**30, "capability": capability, "error": error}


def smi_gpu() -> SmiGpu:
    return {"name": H100, "driver": "580.65.06", "memory_bytes": 80 * 2**30}


def torch(*gpus: Gpu, cuda: str = "13.0") -> dict[str, Any]:
    return {"error": "", "cuda": cuda, "nccl": "2.29.1" if cuda else "", "gpus": list(gpus)}


def node(name: str, cpus: float = 16, gpus: float = 0) -> Node:
    return Node(name, name, name, alive=True, is_head=False, cpus=cpus, gpus=gpus)
