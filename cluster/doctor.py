"""Ask every node of a Ray cluster what a search needs of it, and show a row for each.

The software of a node may be what is broken, so `node_facts` is pickled by value, imports what a
node may lack where it is used, and returns plain values.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from rich.console import Group, RenderableType
from rich.text import Text

from trainers.data.store import EMBEDDED
from trainers.errors import ConfigError, first_line
from tuning.config.schema import SearchFile
from tuning.execution.cluster_resources import fitting_trials, shared_memory
from tuning.execution.ray_session import ray_session
from tuning.execution.tasks import ask_nodes
from tuning.runs.run_folder import job_runs
from tuning.views.result_table import borderless_table

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


def examine(file: SearchFile | None = None, *, address: str | None = None) -> list[Node]:
    """Ask all nodes of a cluster (RAY_ADDRESS, or a new local Ray) if they can run a configuration.

    Raises:
        ConfigError: no such cluster.
    """
    asked: dict[str, Any] = {}
    if file is not None:
        search, trial = file.search, file.trial
        asked["checkpoints"] = search.checkpoints.storage or str(job_runs(search.storage))
        asked["files"] = [str(path) for path in trial.model.paths]
        asked["data"] = trial.data.root if trial.data.root != EMBEDDED else None
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        with ray_session(address):
            nodes = {node["NodeID"]: node for node in ray.nodes()}
            if file is not None:
                resources, each = search.resources, [[n["Resources"]] for n in nodes.values()]
                most = max(fitting_trials(node, resources) for node in each)
                most = min(most, resources.max_concurrent or most)
                with suppress(ConfigError):  # a model that only the nodes have
                    asked["shared memory"] = most * shared_memory(trial, resources)
            answers = ask_nodes(node_facts, asked, ANSWER_S)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    found = []
    for node_id, node in nodes.items():
        name, answer = str(node["NodeManagerAddress"]), answers.get(node_id)
        name += " (head)" if "node:__internal_head__" in node["Resources"] else ""
        if isinstance(answer, tuple):
            has = {f"{key}s": f"{node['Resources'].get(key, 0):g}" for key in ("CPU", "GPU")}
            found.append(Node(name, {**has, **answer[0]}, tuple(answer[1])))
        elif node_id in answers:
            silent = f"no answer within {ANSWER_S:g} s"
            found.append(Node(name, faults=(first_line(answer) if answer else silent,)))
        elif message := node.get("DeathReasonMessage"):
            found.append(Node(name, faults=(f"dead: {message}",)))
    if len({node.facts["versions"] for node in found if node.facts}) > 1:
        differ = ("versions of Python or packages differ between nodes",)
        found = [replace(n, faults=n.faults + differ) if n.facts else n for n in found]
    return sorted(found, key=lambda node: "(head)" not in node.name)


def node_facts(asked: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What this node says of itself by column, and what a search would fail of here."""
    import platform
    import shutil
    import tempfile
    from importlib.metadata import PackageNotFoundError, version
    from uuid import uuid4

    facts, faults = dict[str, str](), list[str]()
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
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    facts["free disk"] = f"{free:.0f} GB"
    if free < LOW_DISK_GB:
        faults.append(f"less than {LOW_DISK_GB:g} GB free in {tempfile.gettempdir()}")
    if needed := asked.get("shared memory"):
        try:
            from tuning.execution.cluster_resources import check_shared_memory

            check_shared_memory(needed)
        except Exception as error:  # too little, or no Lipsum-Tune on this node
            faults.append(str(error))
    faults += [f"not found: {path}" for path in asked.get("files", ()) if not Path(path).exists()]
    for use, works in (("checkpoints", "writable"), ("data", "readable")):
        if not (url := asked.get(use)):
            continue
        try:
            from trainers.data.store import open_store

            store, name = open_store(url), f".lipsum-tune-{uuid4().hex}"
            if use == "checkpoints":
                with store.write(name) as file:
                    file.write(b"1")
                store.filesystem.delete_file(store.full(name))
            elif not store.list():
                raise FileNotFoundError("the folder is empty or missing")
            facts[use] = works
        except Exception as error:  # no permission, no such bucket, no Lipsum-Tune on this node
            faults.append(f"{use} in {url}: {error}".splitlines()[0])
    return facts, faults


def render(nodes: list[Node]) -> RenderableType:
    """A table with a row for each node, and the faults below it."""
    columns = list(dict.fromkeys(key for node in nodes for key in node.facts))
    table = borderless_table("node", *columns, text=range(len(columns) + 1))
    for node in nodes:
        style = "red" if node.faults else ""
        table.add_row(node.name, *(node.facts.get(key, "") for key in columns), style=style)
    faults = [Text(f"{node.name}: {fault}", "red") for node in nodes for fault in node.faults]
    return Group(table, "", *(faults or [Text("All nodes can run a search.", "green")]))
