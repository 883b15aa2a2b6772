"""The whole examination: what is asked of whom, in which order."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.doctor import machines, needs, network, services, software
from cluster.doctor.facts import RUN_STORAGE, NodeFacts
from cluster.doctor.finding import Finding, merged, without_secrets
from cluster.doctor.node_facts import code_digest, package_version
from cluster.doctor.probes import Node, Probes, Silence, members, probes, service_ports
from trainers.checks import trial_parts
from trainers.config import TrialConfig
from trainers.data.data_root import EMBEDDED
from trainers.data.storage import open_store
from trainers.errors import ConfigError
from trainers.models.config import is_path
from tuning.checkpoints.storage_check import storage_on_nodes
from tuning.config.schema import SearchConfig, SearchFile
from tuning.config.validation import check_search
from tuning.execution.ray_session import ray_session
from tuning.execution.ray_workarounds import has_autoscaler

ANSWER_S = 120.0
"""For how long a node may take to start a process and import PyTorch; shared disks are slow."""

_PROBE = ".lipsum-tune-doctor"


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and of how many."""

    findings: tuple[Finding, ...]
    """The worst first; what is true of several nodes is one of them."""
    nodes: tuple[str, ...]
    """Names of the nodes that are alive."""


def examine(
    file: SearchFile | None = None, *, address: str | None = None, answer_s: float = ANSWER_S
) -> Diagnosis:
    """Look at a cluster, and at what a configuration needs of it.

    Args:
        file: from `load_config(..., check=False)`; without one, what needs none is looked at.
        address: of a Ray cluster; by default the one in `RAY_ADDRESS`, or a new local one.
        answer_s: for how long a node may keep a question waiting.
    """
    found: list[Finding] = []
    alive: list[Node] = []
    with ExitStack() as stack:
        try:
            stack.enter_context(ray_session(address))
        except ConfigError as error:
            found.append(_no_ray(str(error)))
        else:
            known = members()
            alive = [node for node in known if node.alive]
            dead = {node.name: node.why_dead for node in known if not node.alive}
            found += network.membership([node.name for node in alive], dead)
            answering = stack.enter_context(probes(alive, answer_s))
            found += _cluster(file, alive, answering)
    if file is not None:
        found += _configuration(file)
    urls = [file.search.tracking.uri, file.search.study_storage] if file else []
    told = [without_secrets(finding, [url for url in urls if url]) for finding in found]
    return Diagnosis(tuple(merged(told)), tuple(node.name for node in alive))


def _no_ray(error: str) -> Finding:
    return Finding(
        "Ray", "fault", error,
        "`ray start --head` where it should run; RAY_AUTH_MODE and the token in ~/.ray must be "
        "the same there and here",
    )  # fmt: skip


def _cluster(
    file: SearchFile | None, nodes: Sequence[Node], answering: Probes
) -> Iterator[Finding]:
    """Whatever has to be asked of nodes; those that stay silent once are not asked again."""
    packages = (*software.PACKAGES, *_drawing_packages(file))
    folders = _folders(file)
    files = _files(file.trial) if file else []
    said: dict[str, NodeFacts | Silence] = answering.ask(
        lambda probe: probe.facts.remote(packages, folders, files), [node.name for node in nodes]
    )
    facts: dict[str, NodeFacts] = {}
    for name, answer in said.items():
        if isinstance(answer, Silence):
            yield network.silent(name, answer.reason)
        else:
            facts[name] = answer
    answered = [node for node in nodes if node.name in facts]
    yield from _software_and_hardware(packages, answered, facts)
    yield from _clocks(answering, answered)
    yield from _network(file, answering, answered, facts)
    if file is not None:
        yield from _storage(file.search, nodes, answering.answer_s)
        yield from _images(file.trial, answering, answered)
        yield needs.room(file.search.resources, nodes, has_autoscaler())


def _software_and_hardware(
    packages: Sequence[str], nodes: Sequence[Node], facts: Mapping[str, NodeFacts]
) -> Iterator[Finding]:
    versions = {name: package_version(name) for name in packages}
    here = software.Here(platform.python_version(), versions, code_digest())
    for node in nodes:
        of_node = facts[node.name]
        yield from software.software(here, node.name, of_node)
        yield from software.gpus(node.name, of_node, node.gpus)
        yield from machines.machine(node.name, of_node, node.cpus)
        yield from needs.files(node.name, of_node["missing_files"])
    yield from machines.disks({node.name: facts[node.name] for node in nodes})


def _clocks(answering: Probes, nodes: Sequence[Node]) -> Iterator[Finding]:
    """One node after the other: each would make the others' answers late."""
    for node in nodes:
        trips = answering.trips(node.name)
        if isinstance(trips, Silence):
            yield network.silent(node.name, trips.reason)
        else:
            yield machines.clock(node.name, trips)


def _network(
    file: SearchFile | None,
    answering: Probes,
    nodes: Sequence[Node],
    facts: Mapping[str, NodeFacts],
) -> Iterator[Finding]:
    for head in [node for node in nodes if node.is_head]:
        error = answering.ask_one(head.name, "state_api")
        yield network.state_api(head.name, error.reason if isinstance(error, Silence) else error)
        of_head = facts[head.name]
        yield network.token(of_head["token_mode"], [node.address for node in nodes])
        yield from network.exposure(head.name, of_head, service_ports())
    refused = answering.connections([(node.name, node.address) for node in nodes])
    yield from network.connections(refused, file.search.resources.workers if file else None)


def _storage(search: SearchConfig, nodes: Sequence[Node], answer_s: float) -> Iterator[Finding]:
    """Where the run folder is to be, and the checkpoints, which every node writes."""
    with _removed_if_empty(Path(search.storage)):
        checkpoints = search.checkpoints.storage
        if checkpoints is None:
            yield from _on_all_nodes(
                "search.storage", str(Path(search.storage).absolute()), nodes, answer_s
            )
            return
        yield from _on_all_nodes("search.checkpoints.storage", checkpoints, nodes, answer_s)
        try:
            with open_store(search.storage).write(_PROBE) as file:
                file.write(b"")
            Path(search.storage, _PROBE).unlink()
        except OSError as error:
            yield _unwritable("search.storage", search.storage, str(error))


def _on_all_nodes(key: str, url: str, nodes: Sequence[Node], answer_s: float) -> Iterator[Finding]:
    names: dict[str, list[str]] = {}
    for node in nodes:
        names.setdefault(node.address, []).append(node.name)
    try:
        answers = [
            (names[answer.node].pop(0) if names.get(answer.node) else answer.node, answer)
            for answer in storage_on_nodes(url, answer_s)
        ]
        yield from needs.storage(key, url, answers)
    except ConfigError as error:
        yield _unwritable(key, url, str(error))


def _unwritable(key: str, url: str, error: str) -> Finding:
    remedy = "see who owns it and how it is mounted, or name another folder"
    return Finding("storage", "fault", f"{key} = {url}: from here, {error}", remedy)


@contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    """A folder that is made only to be looked at does not stay."""
    there = folder.exists()
    try:
        yield
    finally:
        if not there:
            with suppress(OSError):
                folder.rmdir()


def _images(trial: TrialConfig, answering: Probes, nodes: Sequence[Node]) -> Iterator[Finding]:
    root, parts = trial.data.root, trial_parts(trial.data)
    if root == EMBEDDED:  # `versions` says whether what draws it is installed
        yield Finding("images", "ok", "the embedded benchmark, drawn by each machine at first use")
        return
    names = [node.name for node in nodes]
    answers = answering.ask(lambda probe: probe.images.remote(root, parts), names)
    yield from needs.images(root, answers)


def _configuration(file: SearchFile) -> Iterator[Finding]:
    """What is the driver's business."""
    try:
        check_search(file)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield Finding("configuration", "fault", line, "correct it, or --set another value")
    else:
        yield Finding("configuration", "ok", f"search.name = {file.search.name}: can run here")
    yield from services.tracking(file, Path(file.search.storage))
    yield services.study_storage(file.search.study_storage)


def _drawing_packages(file: SearchFile | None) -> tuple[str, ...]:
    return needs.DRAWING_PACKAGES if file and file.trial.data.root == EMBEDDED else ()


def _folders(file: SearchFile | None) -> dict[str, str]:
    """Local folders, beside those of every node, whose disks matter."""
    if file is None:
        return {}
    storage = file.search.checkpoints.storage or os.path.abspath(file.search.storage)  # noqa: PTH100
    return {} if urlsplit(storage).scheme else {RUN_STORAGE: storage}


def _files(trial: TrialConfig) -> list[str]:
    """Local files that every worker of a trial opens, beside its images."""
    model = trial.model
    named = [model.name.removeprefix("local-dir:") if "local-dir:" in model.name else ""]
    named += [model.name] if model.name.endswith(".json") else []
    named += [model.pretrained] if model.pretrained and is_path(model.pretrained) else []
    named += [str(getattr(trial.method, "texts_file", None) or "")]
    return [name for name in named if name]
