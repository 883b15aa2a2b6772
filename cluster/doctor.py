"""Ask every node of a Ray cluster what a search needs of it, and show a row for each.

The software of a node may be what is broken, so `node_facts` is pickled by value, imports what a
node may lack where it is used, and returns plain values.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainers.data.data_root import EMBEDDED
from trainers.errors import first_line
from tuning.config.schema import SearchFile
from tuning.execution.ray_session import ray_session
from tuning.execution.tasks import ask_nodes
from tuning.runs.run_folder import job_runs
from tuning.security.databases import check_drivers

ANSWER_S = 120.0
"""Time for a node to start a process and import PyTorch, which takes long on shared disks."""
LOW_DISK_GB = 5.0


@dataclass(frozen=True)
class Node:
    """A node, what it says of itself, and what a search would fail of."""

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    """Heading of a column -> text."""
    faults: tuple[str, ...] = ()


def examine(
    file: SearchFile | None = None, *, address: str | None = None, answer_s: float = ANSWER_S
) -> list[Node]:
    """Ask all nodes of a cluster, and whether a configuration can run on them.

    Args:
        file: from `load_config(..., check=False)`; without it, only the cluster is examined.
        address: by default RAY_ADDRESS, or a new local Ray.

    Raises:
        ConfigError: no such cluster, or a driver of a database is missing here.
    """
    if file is not None:
        search = file.search
        urls = {"search.tracking.uri": search.tracking.uri}
        urls["search.study_storage"] = search.study_storage
        check_drivers({key: url for key, url in urls.items() if url})
    asked = _asked(file)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        with ray_session(address):
            return _ask(asked, answer_s)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def _asked(file: SearchFile | None) -> dict[str, Any]:
    """Plain values for `node_facts`: folders to write to, files and data to read."""
    asked: dict[str, Any] = {"writable": {}, "files": [], "data": None}
    if file is None:
        return asked
    storage = file.search.checkpoints.storage or str(job_runs(file.search.storage))
    asked["writable"] = {"checkpoints": storage}
    texts = getattr(file.trial.method, "texts_file", None)
    asked["files"] = [*map(str, file.trial.model.paths), *([str(texts)] if texts else [])]
    if file.trial.data.root != EMBEDDED:
        asked["data"] = file.trial.data.root
    return asked


def _ask(asked: dict[str, Any], answer_s: float) -> list[Node]:
    found, alive = [], dict[str, tuple[str, dict[str, float]]]()
    for node in ray.nodes():
        name = str(node["NodeManagerAddress"])
        if "node:__internal_head__" in node["Resources"]:
            name += " (head)"
        if node["Alive"]:
            alive[node["NodeID"]] = name, node["Resources"]
        elif message := node.get("DeathReasonMessage"):
            found.append(Node(name, faults=(f"dead: {message}",)))
    answers = ask_nodes(node_facts, dict.fromkeys(alive, (asked,)), answer_s)
    for node_id, (name, resources) in alive.items():
        answer = answers[node_id]
        if answer is None or isinstance(answer, Exception):
            silent = f"no answer within {answer_s:g} s"
            reason = silent if answer is None else first_line(answer)
            found.append(Node(name, faults=(reason,)))
            continue
        facts, faults = answer
        free = {"CPUs": f"{resources.get('CPU', 0):g}", "GPUs": f"{resources.get('GPU', 0):g}"}
        found.append(Node(name, {**free, **facts}, tuple(faults)))
    versions = {node.facts["versions"] for node in found if node.facts}
    if len(versions) > 1:
        differ = "another version than on other nodes"
        found = [Node(n.name, n.facts, (*n.faults, differ) if n.facts else n.faults) for n in found]
    return sorted(found, key=lambda node: "(head)" not in node.name)


def node_facts(asked: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What this node says of itself by column, and the faults that it finds."""
    import platform
    import shutil
    import tempfile
    from importlib.metadata import PackageNotFoundError, version
    from uuid import uuid4

    import psutil  # type: ignore[import-untyped]  # a dependency of Ray

    facts: dict[str, str] = {}
    faults: list[str] = []
    versions = [f"Python {platform.python_version()}"]
    for package in ("lipsum-tune", "torch", "open_clip_torch"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            faults.append(f"{package} is not installed")
    facts["versions"] = "\n".join(versions)
    try:
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        for index in range(len(names)):
            torch.ones(1, device=f"cuda:{index}").item()
        facts["device"] = "\n".join(names) or "CPU"
    except Exception as error:  # an old driver, no kernels for this GPU, a missing library
        faults.append(f"torch: {error}".splitlines()[0])
    facts["free memory"] = f"{psutil.virtual_memory().available / 2**30:.0f} GB"
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    facts["free disk"] = f"{free:.0f} GB"
    if free < LOW_DISK_GB:
        faults.append(f"less than {LOW_DISK_GB:g} GB free in {tempfile.gettempdir()}")
    faults += [f"not here: {path}" for path in asked["files"] if not Path(path).exists()]
    for use, url in asked["writable"].items():
        try:
            from trainers.data.storage import open_store

            store, name = open_store(url), f".lipsum-tune-{uuid4().hex}"
            with store.write(name) as file:
                file.write(b"1")
            store.filesystem.delete_file(store.full(name))
            facts[use] = "writable"
        except Exception as error:  # no permission, no such bucket, no Lipsum-Tune on this node
            faults.append(f"{use} in {url}: {error}".splitlines()[0])
    if asked["data"]:
        try:
            from trainers.data.storage import open_store

            if not open_store(asked["data"]).list():
                raise FileNotFoundError("nothing is there")
            facts["data"] = "readable"
        except Exception as error:
            faults.append(f"data in {asked['data']}: {error}".splitlines()[0])
    return facts, faults


def render(nodes: list[Node]) -> RenderableType:
    """A table with a row for each node, and the faults below it."""
    columns = list(dict.fromkeys(key for node in nodes for key in node.facts))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in ("node", *columns):
        table.add_column(column)
    for node in nodes:
        style = "red" if node.faults else ""
        table.add_row(node.name, *(node.facts.get(key, "") for key in columns), style=style)
    faults = [Text(f"{node.name}: {fault}", "red") for node in nodes for fault in node.faults]
    end = faults or [Text("All nodes can run a search.", "green")]
    return Group(table, "", *end)
