"""What one node says of itself.

Everything here runs on nodes whose software may be the very thing that is wrong. So `probes` sends
this module along by value, nothing in it needs Lipsum-Tune at the other end unless it says so, and
what comes back is made of plain values. Imports that a node may lack are made where they are used.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.doctor.facts import PICTURE_CACHE, RAY_SESSION, TEMPORARY

if TYPE_CHECKING:
    from cluster.doctor.facts import Disk, Gpu, Images, NodeFacts, SmiGpu, Torch

CODE = ("search_spaces", "trainers", "tuning", "cluster")
"""Lipsum-Tune's own packages."""

_SMI = "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader,nounits"
_PATIENCE_S = 30


class NodeProbe:
    """A process on one node, which answers until it is let go."""

    def facts(
        self, packages: Sequence[str], folders: Mapping[str, str], files: Sequence[str]
    ) -> NodeFacts:
        """What there is on this node; see `node_facts`."""
        import ray

        asked = {**folders, RAY_SESSION: ray.get_runtime_context().get_temp_dir()}
        return node_facts(packages, asked, files)

    def clock(self) -> float:
        """Seconds since the epoch, by this node's clock."""
        return time.time()

    def state_api(self) -> str:
        """Why Ray's state API does not answer here; empty where it does."""
        from ray.util.state import list_placement_groups

        try:
            list_placement_groups(limit=1, timeout=10, raise_on_missing_output=False)
        except Exception as error:
            return str(error).strip().partition(". ")[0] or type(error).__name__
        return ""

    def images(self, root: str, parts: Sequence[tuple[str, str]]) -> dict[str, Images]:
        """The Parquet files of each domain and split; needs Lipsum-Tune.

        Raises:
            ConfigError: one cannot be read from here.
        """
        from trainers.data.data_root import domain_files
        from trainers.data.storage import open_store

        store = open_store(root)
        found: dict[str, Images] = {}
        for domain, split in parts:
            files = domain_files(store, domain, split)
            with store.filesystem.open_input_file(files[0].path) as first:
                first.read(4)  # a listing alone does not say that it may be read
            total = sum(int(file.size or 0) for file in files)
            found[f"{domain}/{split}"] = {"files": len(files), "bytes": total}
        return found

    def listen(self, host: str) -> int:
        """A port of this node on which a connection is taken until the process is let go."""
        self._callback = socket.create_server((host, 0))
        return int(self._callback.getsockname()[1])

    def reach(self, host: str, port: int) -> str:
        """Why a connection to there cannot be made from here; empty where it can."""
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            return str(error)
        return ""


def node_facts(
    packages: Sequence[str], folders: Mapping[str, str], files: Sequence[str]
) -> NodeFacts:
    """What there is on this machine.

    Args:
        packages: distributions whose versions are wanted.
        folders: local ones whose disks are wanted, by what they are used for. The temporary folder
            and the cache of images come on top.
        files: local files and folders that must be there.
    """
    import psutil  # type: ignore[import-untyped]  # comes with Ray
    from ray._common.utils import get_system_memory
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    from ray._private.utils import get_used_memory

    folders = {**folders, TEMPORARY: tempfile.gettempdir(), **_image_cache()}
    addresses = (a for of_one in psutil.net_if_addrs().values() for a in of_one)
    shm = Path("/dev/shm")
    return {
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in packages},
        "code": code_digest(),
        "torch": _torch(),
        "smi": _smi(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "memory_bytes": int(get_system_memory()),  # of the container, where there is one
        "memory_used_bytes": int(get_used_memory()),
        "shm_bytes": shutil.disk_usage(shm).total if shm.is_dir() else None,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "disks": [disk for use, path in folders.items() for disk in _disk(use, path)],
        "missing_files": [path for path in files if not Path(path).exists()],
        "token_mode": bool(is_token_auth_enabled()),
        "interfaces": [
            a.address.partition("%")[0]
            for a in addresses
            if a.family in (socket.AF_INET, socket.AF_INET6)
        ],
        "listening": listening(),
    }


def code_digest() -> str:
    """A digest of Lipsum-Tune's source files as they would be imported here; empty without any."""
    digest, seen = hashlib.sha256(), False
    for package in CODE:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).rglob("*.py")):
                seen = True
                digest.update(f"{package}/{path.relative_to(folder).as_posix()}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12] if seen else ""


def package_version(package: str) -> str | None:
    """Of a distribution; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch() -> Torch:
    try:
        import torch
    except Exception as error:  # a library that is missing or does not fit
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return {"error": said, "cuda": "", "nccl": "", "gpus": []}
    built_for: Any = torch.version
    nccl = ""
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return {
        "error": "",
        "cuda": built_for.cuda or (f"ROCm {built_for.hip}" if built_for.hip else ""),
        "nccl": nccl,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
    }


def _gpu(index: int) -> Gpu:
    import torch

    gpu: Gpu = {"name": "", "memory_bytes": 0, "capability": (0, 0), "error": ""}
    try:
        properties = torch.cuda.get_device_properties(index)
        gpu["name"], gpu["memory_bytes"] = properties.name, properties.total_memory
        gpu["capability"] = (properties.major, properties.minor)
        square = torch.ones(8, 8, device=f"cuda:{index}")
        if float((square @ square).sum()) != 512:
            gpu["error"] = "it computes wrong numbers"
    except Exception as error:  # an old driver, no kernels for this GPU, no memory left
        gpu["error"] = str(error).strip().partition("\n")[0] or type(error).__name__
    return gpu


def _smi() -> list[SmiGpu]:
    """As `nvidia-smi` lists them; none where it is not there or fails."""
    try:
        done = subprocess.run(_SMI.split(), capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return smi_gpus(done.stdout) if done.returncode == 0 else []


def smi_gpus(listed: str) -> list[SmiGpu]:
    """The GPUs of `nvidia-smi`'s list: a line each of name, driver and MiB, comma-separated."""
    rows = [row for row in csv.reader(listed.splitlines(), skipinitialspace=True) if len(row) == 3]
    return [
        {
            "name": name,
            "driver": driver,
            "memory_bytes": int(mib) * 2**20 if mib.strip().isdecimal() else 0,
        }
        for name, driver, mib in rows
    ]


def _image_cache() -> dict[str, str]:
    """Where the cache of images is; nobody knows where Lipsum-Tune is missing."""
    try:
        from trainers.data.cache.arrow_cache import cache_folder
    except Exception:
        return {}
    return {PICTURE_CACHE: str(cache_folder())}


def _disk(use: str, path: str) -> list[Disk]:
    """Room at a path, or where it would be made; nothing where nobody can look."""
    folder = Path(path).expanduser().absolute()
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        usage, device = shutil.disk_usage(there), there.stat().st_dev
    except (OSError, StopIteration):
        return []
    if not usage.total:  # no disk: /proc and the like
        return []
    return [
        {
            "use": use,
            "path": str(folder),
            "device": device,
            "free_bytes": usage.free,
            "total_bytes": usage.total,  # as Ray counts
        }
    ]


def listening() -> list[tuple[str, int]]:
    """Whatever listens on TCP, by the system's own tables, where it has them (Linux)."""
    tables: dict[str, Callable[[bytes], str]] = {
        "/proc/net/tcp": lambda raw: socket.inet_ntop(socket.AF_INET, raw),
        "/proc/net/tcp6": lambda raw: socket.inet_ntop(socket.AF_INET6, raw),
    }
    found = []
    for table, spell in tables.items():
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            address, _, port = local.partition(":")
            if state == "0A":  # LISTEN
                found.append((spell(_in_network_order(address)), int(port, 16)))
    return sorted(set(found))


def _in_network_order(address: str) -> bytes:
    """An address of the kernel's tables, whose 32-bit words stand in the machine's own order."""
    words = (int(address[start : start + 8], 16) for start in range(0, len(address), 8))
    return b"".join(word.to_bytes(4, sys.byteorder) for word in words)
