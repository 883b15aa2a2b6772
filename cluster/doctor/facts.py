"""What nodes say of themselves, as plain values: the code at their end may be another.

Judged by the pure functions of `software`, `machines`, `network` and `needs`.
"""

from __future__ import annotations

from typing import TypedDict

RAY_SESSION, TEMPORARY, PICTURE_CACHE = "Ray's sessions", "temporary files", "cache of images"
"""What disks are used for, on every node."""
RUN_STORAGE = "run storage"
"""The same, where a configuration says where that is."""


class Gpu(TypedDict):
    """A GPU as PyTorch sees it."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    error: str
    """Of a first small computation on it; empty where that went well."""


class Torch(TypedDict):
    """PyTorch's own account of itself."""

    error: str
    """Of its import; the rest is empty then."""
    cuda: str
    """The CUDA (or ROCm) version that it was built for; empty for a build for CPUs."""
    nccl: str
    gpus: list[Gpu]


class SmiGpu(TypedDict):
    """A GPU as its driver sees it."""

    name: str
    driver: str
    memory_bytes: int


class Disk(TypedDict):
    """Room where a folder lies or would be made."""

    use: str
    path: str
    device: int
    free_bytes: int
    total_bytes: int


class NodeFacts(TypedDict):
    """All of a node that is judged elsewhere."""

    python: str
    versions: dict[str, str | None]
    """Of packages, None for those that are not installed."""
    code: str
    """A digest of Lipsum-Tune's source files; empty where there are none."""
    torch: Torch
    smi: list[SmiGpu]
    cpus: int
    memory_bytes: int
    memory_used_bytes: int
    shm_bytes: int | None
    """Size of /dev/shm; None where there is none."""
    open_files: int
    disks: list[Disk]
    missing_files: list[str]
    """Of those that were asked for."""
    token_mode: bool
    """Whether Ray asks for its token here."""
    interfaces: list[str]
    """IP addresses of this machine."""
    listening: list[tuple[str, int]]
    """Addresses and ports of TCP on which somebody listens; empty where the system does not say."""


class Images(TypedDict):
    """What a domain's split holds, seen from a node."""

    files: int
    bytes: int
