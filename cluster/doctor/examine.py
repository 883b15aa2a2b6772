"""Examine a cluster: gather facts on every node, run all checks, and show the findings."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import ray
from ray import cloudpickle
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.doctor import node_facts
from cluster.doctor.checks import CHECKS, Finding, Status
from cluster.doctor.cluster_facts import ClusterFacts, Node, Storage
from trainers.data.data_root import EMBEDDED
from trainers.data.storage import open_store
from trainers.errors import ConfigError
from trainers.redact import is_secret_name, redact
from tuning.checkpoints.storage_check import storage_on_nodes
from tuning.config.schema import SearchFile
from tuning.execution.cluster_resources import HEAD
from tuning.execution.ray_errors import in_one_line
from tuning.execution.ray_session import ray_session
from tuning.execution.ray_workarounds import has_autoscaler
from tuning.execution.tasks import ask_nodes
from tuning.runs.environment import DRAWING_PACKAGES, PACKAGES
from tuning.runs.run_folder import job_runs

ANSWER_S = 120.0
"""Time for a node to start a process and import PyTorch, which takes long on shared disks."""

_EXPECTED_DEATHS = (1, 4)
"""`DeathReason` of nodes that were stopped in order, or removed by the autoscaler."""
_STYLES: dict[Status, str] = {"fault": "bold red", "warning": "yellow", "ok": "green"}


@dataclass(frozen=True)
class Row:
    """A finding of a check, and the nodes for which it is the same."""

    status: Status
    check: str
    nodes: tuple[str, ...]
    found: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """All findings, faults first."""

    findings: tuple[Row, ...]
    nodes: tuple[str, ...]
    """Names of all nodes that are alive."""

    def count(self, status: Status) -> int:
        """Number of findings with that status."""
        return sum(row.status == status for row in self.findings)


def examine(
    file: SearchFile | None = None, *, address: str | None = None, answer_s: float = ANSWER_S
) -> Diagnosis:
    """Examine a cluster, and whether a configuration can run on it.

    Args:
        file: from `load_config(..., check=False)`; without it, only the cluster is examined.
        address: by default RAY_ADDRESS, or a new local Ray.
    """
    try:
        with ray_session(address):
            cluster = gather(file, answer_s)
    except ConfigError as error:
        cluster = ClusterFacts(node_facts.software(PACKAGES), file, ray_error=str(error))
    return diagnose(cluster)


def gather(file: SearchFile | None, answer_s: float) -> ClusterFacts:
    """Gather facts on all nodes; needs a Ray session."""
    alive: dict[str, Node] = {}  # by node id, the head first
    dead: dict[str, str] = {}
    known = [n for n in ray.nodes() if n["Alive"] or n["DeathReason"] not in _EXPECTED_DEATHS]
    addresses = [str(node["NodeManagerAddress"]) for node in known]
    for node in sorted(known, key=lambda node: HEAD not in node["Resources"]):
        address, resources = str(node["NodeManagerAddress"]), node["Resources"]
        name = f"{address} (head)" if HEAD in resources else address
        if HEAD not in resources and addresses.count(address) > 1:
            name = f"{address} ({node['NodeID'][:6]})"
        if node["Alive"]:
            cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
            memory = resources.get("memory", 0.0)
            alive[node["NodeID"]] = Node(name, address, HEAD in resources, cpus, gpus, memory)
        else:
            dead[name] = node["DeathReasonMessage"]

    request = _request(file)
    cloudpickle.register_pickle_by_value(node_facts)
    try:
        arguments = dict.fromkeys(alive, (request,))
        answers = ask_nodes(node_facts.node_facts, arguments, answer_s)
    finally:
        cloudpickle.unregister_pickle_by_value(node_facts)
    facts: dict[str, node_facts.NodeFacts] = {}
    silent: dict[str, str] = {}
    for node_id, answer in answers.items():
        name = alive[node_id].name
        if answer is None:
            silent[name] = f"no answer within {answer_s:g} s"
        elif isinstance(answer, Exception):
            silent[name] = in_one_line(answer)
        else:
            facts[name] = answer

    nodes = tuple(alive.values())
    storage = _storage(file, nodes, answer_s) if file else ()
    driver = node_facts.software(request["packages"])
    return ClusterFacts(driver, file, None, nodes, facts, silent, dead, storage, has_autoscaler())


def _request(file: SearchFile | None) -> node_facts.Request:
    """What to ask nodes about."""
    request: node_facts.Request = {"packages": PACKAGES, "folders": {}, "files": [], "images": None}
    if file is None:
        return request
    storage = file.search.checkpoints.storage or str(job_runs(file.search.storage))
    if "://" not in storage:
        request["folders"] = {node_facts.RUN_STORAGE: storage}
    if file.trial.data.root == EMBEDDED:
        request["packages"] = (*PACKAGES, *DRAWING_PACKAGES)
    elif isinstance(file.trial.data.root, str):
        request["images"] = (file.trial.data.root, file.trial.data.trial_parts)
    texts = getattr(file.trial.method, "texts_file", None)
    request["files"] = [*file.trial.model.paths, *([str(texts)] if texts else [])]
    return request


def _storage(file: SearchFile, nodes: Sequence[Node], answer_s: float) -> tuple[Storage, ...]:
    """Write to the run folder from here, and to the storage of checkpoints from every node."""
    runs, checkpoints = job_runs(file.search.storage), file.search.checkpoints.storage
    made = [folder for folder in (runs, runs.parent) if not folder.exists()]
    found = []
    try:
        if checkpoints is not None:
            probe = ".lipsum-tune-doctor"
            try:
                with open_store(str(runs)).write(probe) as written:
                    written.write(b"")
                (runs / probe).unlink()
            except OSError as error:
                found.append(Storage("search.storage", str(runs), str(error)))
        key = "search.storage" if checkpoints is None else "search.checkpoints.storage"
        url = checkpoints or str(runs)
        try:
            answers = storage_on_nodes(url, answer_s)
        except ConfigError as error:
            return (*found, Storage(key, url, str(error)))
        names: dict[str, list[str]] = {}  # several nodes may have the same address
        for node in nodes:
            names.setdefault(node.address, []).append(node.name)
        by_name = [(names[a.node].pop(0) if names.get(a.node) else a.node, a) for a in answers]
        return (*found, Storage(key, url, nodes=tuple(by_name)))
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def diagnose(cluster: ClusterFacts) -> Diagnosis:
    """Run all checks, and combine findings that are equal on several nodes."""
    urls = []
    if cluster.file is not None:
        urls = [cluster.file.search.tracking.uri, cluster.file.search.study_storage]
    rows: dict[tuple[str, Finding], list[str]] = {}
    for check, run in CHECKS.items():
        for finding in run(cluster):
            text = hide_secrets(finding.found, [url for url in urls if url])
            of_nodes = rows.setdefault((check, replace(finding, found=text, node="")), [])
            of_nodes.extend([finding.node] if finding.node else [])
    found = [
        Row(finding.status, check, tuple(nodes), finding.found, finding.remedy)
        for (check, finding), nodes in rows.items()
    ]
    found.sort(key=lambda row: list(_STYLES).index(row.status))
    return Diagnosis(tuple(found), tuple(node.name for node in cluster.nodes))


def hide_secrets(text: str, urls: Sequence[str]) -> str:
    """A message without passwords: values of variables in `urls`, or whose names are of secrets."""
    for url in ("", *urls):
        text = redact(text, url)
    for name, value in os.environ.items():
        if is_secret_name(name) and len(value) > 4:  # shorter values are part of many words
            text = text.replace(value, "***")
    return text


def render(diagnosis: Diagnosis) -> RenderableType:
    """A table of all findings with their remedies, and a summary."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for row in diagnosis.findings:
        where = ", ".join(row.nodes[:3])
        if len(row.nodes) > 1 and set(row.nodes) == set(diagnosis.nodes):
            where = f"all {len(row.nodes)} nodes"
        elif len(row.nodes) > 3:
            where += f" and {len(row.nodes) - 3} more"
        text = Text(f"{where}: " if where else "", style="dim" if row.status == "ok" else "")
        text.append(row.found)
        if row.remedy:
            text.append(f"\n-> {row.remedy}", "cyan")
        table.add_row(Text(row.status, _STYLES[row.status]), Text(row.check, "bold"), text)
    return Group(table, Text(), summary(diagnosis))


def summary(diagnosis: Diagnosis) -> Text:
    """Numbers of faults and warnings, such as `2 faults, 1 warning`."""
    faults, warnings = diagnosis.count("fault"), diagnosis.count("warning")
    words = [f"{faults} fault{'' if faults == 1 else 's'}"] if faults else []
    words += [f"{warnings} warning{'' if warnings == 1 else 's'}"] if warnings else []
    worst: Status = "fault" if faults else "warning" if warnings else "ok"
    return Text(", ".join(words) or "ready: no faults, no warnings", _STYLES[worst])


def as_json(diagnosis: Diagnosis) -> str:
    """All findings with all of their nodes, for scripts."""
    values = {
        "faults": diagnosis.count("fault"),
        "warnings": diagnosis.count("warning"),
        "nodes": list(diagnosis.nodes),
        "findings": [asdict(row) for row in diagnosis.findings],
    }
    return json.dumps(values, indent=2, ensure_ascii=False)
