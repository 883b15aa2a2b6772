"""Facts about one node of a Ray cluster, gathered by a task on that node.

The software of the node may be what is broken. So this module is pickled by value, imports what a
node may lack only where it is used, and returns plain values. Only the facts about images need
Lipsum-Tune on the node.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

RAY_SESSION, TEMPORARY = "Ray's sessions", "temporary files"
IMAGE_CACHE, RUN_STORAGE = "cache of images", "run storage"
"""Uses of a folder whose disk is examined."""

SOURCE_PACKAGES = ("search_spaces", "trainers", "tuning", "cluster")


class Gpu(TypedDict):
    """A GPU as PyTorch sees it."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    error: str
    """Error of a first small computation; empty if it succeeded."""


class Disk(TypedDict):
    """Free space of the disk that holds a folder, or would hold it."""

    use: str
    path: str
    free_bytes: int
    total_bytes: int


class Images(TypedDict):
    """Train and validation files of all domains of a trial."""

    files: int
    bytes: int
    error: str
    """Why they cannot be read; the other fields are 0 then."""


class Software(TypedDict):
    """Versions that must be equal on all nodes and on the driver's machine."""

    python: str
    packages: dict[str, str | None]
    """Versions by distribution; None if it is not installed."""
    source: str
    """Digest of Lipsum-Tune's source files; empty if there are none."""


class NodeFacts(TypedDict):
    """What a node reports about itself."""

    software: Software
    torch_error: str
    """Error of `import torch`; `cuda` and `gpus` are empty then."""
    cuda: str
    """CUDA version that PyTorch was built for; empty for CPU builds."""
    gpus: list[Gpu]
    driver_gpus: int
    """Number of GPUs that `nvidia-smi` lists; 0 if it is missing or fails."""
    cpus: int
    memory_bytes: int
    memory_used_bytes: int
    shm_bytes: int | None
    """Size of /dev/shm; None if there is none."""
    open_files: int
    """Limit of open files of a process."""
    disks: list[Disk]
    missing_files: list[str]
    images: Images | None
    token: bool
    """Whether Ray requires its token here."""


class Request(TypedDict):
    """What nodes are asked about."""

    packages: Sequence[str]
    folders: Mapping[str, str]
    """Local folders by their use, in addition to those that every node has."""
    files: Sequence[str]
    """Local files that must exist."""
    images: tuple[str, Sequence[tuple[str, str]]] | None
    """Data root, and the domains and splits that a trial reads."""


def node_facts(request: Request) -> NodeFacts:
    """Gather all facts of the node on which this runs; needs a Ray worker."""
    import ray

    folders = {
        **request["folders"],
        RAY_SESSION: ray.get_runtime_context().get_temp_dir(),
        TEMPORARY: tempfile.gettempdir(),
    }
    try:
        from trainers.data.storage import cache_folder

        folders[IMAGE_CACHE] = str(cache_folder())
    except Exception:  # Lipsum-Tune is missing or broken: `software` shows it
        pass
    torch_error, cuda, gpus = _torch()
    total, used = _memory()
    shm = Path("/dev/shm")
    return {
        "software": software(request["packages"]),
        "torch_error": torch_error,
        "cuda": cuda,
        "gpus": gpus,
        "driver_gpus": _driver_gpus(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "memory_bytes": total,
        "memory_used_bytes": used,
        "shm_bytes": shutil.disk_usage(shm).total if shm.is_dir() else None,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "disks": [disk for use, path in folders.items() for disk in _disk(use, path)],
        "missing_files": [path for path in request["files"] if not Path(path).exists()],
        "images": None if request["images"] is None else _images(*request["images"]),
        "token": os.environ.get("RAY_AUTH_MODE") == "token",
    }


def software(packages: Sequence[str]) -> Software:
    """Versions of Python, of these distributions, and of Lipsum-Tune's source files."""
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    digest, seen = hashlib.sha256(), False
    for package in SOURCE_PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).rglob("*.py")):
                seen = True
                digest.update(f"{package}/{path.relative_to(folder).as_posix()}\n".encode())
                digest.update(path.read_bytes())
    source = digest.hexdigest()[:12] if seen else ""
    return {"python": platform.python_version(), "packages": versions, "source": source}


def _torch() -> tuple[str, str, list[Gpu]]:
    """Error of the import, CUDA version of the build, and GPUs."""
    try:
        import torch
    except Exception as error:  # a library is missing or does not fit
        return f"{type(error).__name__}: {_first_line(error)}", "", []
    gpus: list[Gpu] = []
    for index in range(torch.cuda.device_count()):
        gpu: Gpu = {"name": "", "memory_bytes": 0, "capability": (0, 0), "error": ""}
        try:
            properties = torch.cuda.get_device_properties(index)
            gpu["name"], gpu["memory_bytes"] = properties.name, properties.total_memory
            gpu["capability"] = (properties.major, properties.minor)
            square = torch.ones(8, 8, device=f"cuda:{index}")
            if float((square @ square).sum()) != 512:
                gpu["error"] = "it computes wrong numbers"
        except Exception as error:  # an old driver, no kernels for this GPU, no free memory
            gpu["error"] = _first_line(error)
        gpus.append(gpu)
    hip = getattr(torch.version, "hip", None)
    return "", torch.version.cuda or (f"ROCm {hip}" if hip else ""), gpus


def _driver_gpus() -> int:
    command = ["nvidia-smi", "--list-gpus"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    listed = done.stdout.splitlines() if done.returncode == 0 else []
    return sum(line.startswith("GPU ") for line in listed)


def _memory() -> tuple[int, int]:
    """Total and used bytes of the container if its cgroup (v2) has a limit, else of the machine."""
    import psutil  # type: ignore[import-untyped]  # a dependency of Ray

    cgroup = Path("/sys/fs/cgroup")
    try:
        total = int((cgroup / "memory.max").read_text())
        rows = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return total, int(rows["anon"]) + int(rows["shmem"])
    except (OSError, ValueError, KeyError):  # no cgroup v2, or no limit ("max")
        memory = psutil.virtual_memory()
        return int(memory.total), int(memory.total - memory.available)


def _disk(use: str, path: str) -> list[Disk]:
    """Free space at a path, or where it would be created; nothing if it cannot be determined."""
    folder = Path(path).expanduser().absolute()
    try:
        usage = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists()))
    except (OSError, StopIteration):
        return []
    if not usage.total:  # not a disk: /proc and the like
        return []
    return [{"use": use, "path": str(folder), "free_bytes": usage.free, "total_bytes": usage.total}]


def _images(root: str, parts: Sequence[tuple[str, str]]) -> Images:
    found: Images = {"files": 0, "bytes": 0, "error": ""}
    try:
        from trainers.data.data_root import domain_files
        from trainers.data.storage import open_store

        store = open_store(root)
        for domain, split in parts:
            files = domain_files(store, domain, split)
            with store.filesystem.open_input_file(files[0].path) as first:
                first.read(4)  # a listing does not show whether files may be read
            found["files"] += len(files)
            found["bytes"] += sum(int(file.size or 0) for file in files)
    except Exception as error:  # missing data, no permission, or no Lipsum-Tune on this node
        return {"files": 0, "bytes": 0, "error": _first_line(error)}
    return found


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
