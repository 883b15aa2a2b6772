"""Storage as the nodes of a cluster see it: asked on each of them, before anything is trained.

A folder that only the driver's machine has looks like any other to a worker elsewhere, which would
write its checkpoints to a disk of its own. So the driver leaves a file there, and a task on each
node looks for it and writes one beside it.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainers.data.data_root import EMBEDDED
from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError, first_line, system_words
from tuning.config.schema import SearchFile
from tuning.execution.ray_workarounds import draining_nodes

ANSWER_S = 120.0
"""For how long a node may keep the search waiting: its first task starts a process there."""
APPEARS_S = 3.0
"""For how long a node looks again for what was written a moment ago."""
_PROBE = ".lipsum-tune-probe-"


@dataclass(frozen=True)
class NodeStorage:
    """What one node makes of a folder or bucket."""

    node: str
    """Its address."""
    sees: bool
    """Whether it sees what the driver has written there."""
    writes: bool
    """Whether it can write there too."""
    error: str | None = None
    """In one line, where it does not; None where it simply is not there."""
    free_bytes: int | None = None
    """Of the disk; None of a bucket."""

    @property
    def fault(self) -> str | None:
        """What is wrong, for a sentence that begins with the node; None where all is well."""
        if self.sees and self.writes:
            return None
        if self.error is not None:
            return self.error
        return "does not see this folder"


def alive_nodes() -> dict[str, str]:
    """The addresses of the cluster's nodes that are there to stay, by Ray's name for each."""
    leaving = draining_nodes()
    return {
        n["NodeID"]: str(n["NodeManagerAddress"])
        for n in ray.nodes()
        if n["Alive"] and n["NodeID"] not in leaving
    }


def storage_on_nodes(url: str, deadline_s: float = ANSWER_S) -> list[NodeStorage]:
    """Whether each node of the cluster sees a storage and can write there; needs a Ray session.

    Args:
        url: a folder or URL, as of `trainers.data.storage`, made where it is missing.
        deadline_s: for all nodes together.

    Returns:
        One for each node that is alive, the one of the driver among them.

    Raises:
        ConfigError: the driver itself cannot write there, or the URL is none.
    """
    token = secrets.token_hex(8)
    store = open_store(url)
    probe = f"{_PROBE}{token}"
    try:
        with store.write(probe) as file:
            file.write(token.encode())
    except OSError as error:
        raise ConfigError(f"it cannot be written: {system_words(error)}") from None
    try:
        return _on_each_node(_try_storage, (url, probe, token), deadline_s)
    finally:
        _forget(store, probe)


def folder_on_nodes(url: str, path: str, deadline_s: float = ANSWER_S) -> list[NodeStorage]:
    """Whether each node of the cluster sees a file or folder below a URL; nothing is written."""
    return _on_each_node(_look_for, (url, path), deadline_s)


def check_nodes(file: SearchFile, home: str, deadline_s: float = ANSWER_S) -> None:
    """Refuse a run that some node of the cluster could not take part in.

    A single node has the driver's own disk. Nodes that join later are not asked.

    Args:
        file: what is run.
        home: of its checkpoints, see `tuning.checkpoints.files`.
        deadline_s: for all nodes together.

    Raises:
        ConfigError: in one line: which folder, which node, and what to do.
    """
    root, several = file.trial.data.root, len(alive_nodes()) > 1
    if several or file.search.checkpoints.storage is not None:
        _check_storage(file, home, deadline_s)
    if several and root != EMBEDDED:  # which each machine draws for itself
        for node in folder_on_nodes(root, file.trial.data.id_domain, deadline_s):
            if node.fault:
                raise ConfigError(
                    f"trial.data.root = {root!r}: node {node.node} {node.fault}; on several nodes "
                    "it must be on a disk that all of them reach, or a URL such as s3://..."
                )


def _check_storage(file: SearchFile, home: str, deadline_s: float) -> None:
    storage = file.search.checkpoints.storage
    key, named = "search.storage", file.search.storage
    if storage is not None:
        key, named = "search.checkpoints.storage", storage
    try:
        nodes = storage_on_nodes(home, deadline_s)
    except ConfigError as error:
        raise ConfigError(f"{key} = {named!r}: {error}") from None
    for node in nodes:
        if node.fault:
            advice = (
                "; on several nodes it must be on a disk that all of them reach, or set "
                "search.checkpoints.storage = s3://..."
            )
            is_url = "://" in named
            raise ConfigError(
                f"{key} = {named!r}: node {node.node} {node.fault}{'' if is_url else advice}"
            )


def _on_each_node(
    task: Callable[..., NodeStorage], arguments: tuple[Any, ...], deadline_s: float
) -> list[NodeStorage]:
    """The answers of a task on each node; of those that give none in time, that they did not.

    A fault of a node that has gone meanwhile, or is about to, is none.
    """
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(task)
    nodes = alive_nodes()
    asked = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)).remote(
            *arguments
        ): name
        for name in nodes
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=deadline_s)
    for task_ref in silent:
        ray.cancel(task_ref, force=True)
    found = {task_ref: _answer(task_ref, nodes[asked[task_ref]]) for task_ref in answered}
    late, staying = f"does not answer within {deadline_s:g} s", alive_nodes()
    answers = {
        name: found.get(task_ref, NodeStorage(nodes[name], False, False, late))
        for task_ref, name in asked.items()
    }
    return [answer for name, answer in answers.items() if name in staying or not answer.fault]


def _answer(task_ref: Any, address: str) -> NodeStorage:
    try:
        return replace(ray.get(task_ref), node=address)
    except Exception as error:  # the node died, or lacks this package
        cause = getattr(error, "cause", None) or error
        return NodeStorage(address, False, False, f"cannot be asked: {first_line(cause)}")


def _try_storage(url: str, probe: str, token: str) -> NodeStorage:
    """On a node: read what the driver wrote, and write beside it."""
    sees, own = False, f"{probe}-{secrets.token_hex(4)}"
    try:
        store = open_store(url)
        if not _appears(store, probe):
            return NodeStorage("", False, False)
        sees = True
        free = shutil.disk_usage(store.root).free if store.is_local else None
        with store.write(own) as file:
            file.write(token.encode())
        _forget(store, own)
    except (OSError, ConfigError) as error:
        said = system_words(error) if isinstance(error, OSError) else first_line(error)
        return NodeStorage("", sees, False, f"cannot {'write' if sees else 'read'} there: {said}")
    return NodeStorage("", True, True, None, free)


def _appears(store: Store, path: str) -> bool:
    """Whether there is such a file, or will be soon: network disks remember what they have seen."""
    deadline = time.monotonic() + APPEARS_S
    while not store.exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _look_for(url: str, path: str) -> NodeStorage:
    """On a node: whether it sees a file or folder."""
    try:
        return NodeStorage("", sees := open_store(url).exists(path), sees)
    except (OSError, ConfigError) as error:
        said = system_words(error) if isinstance(error, OSError) else first_line(error)
        return NodeStorage("", False, False, f"cannot read there: {said}")


def _forget(store: Store, path: str) -> None:
    with suppress(OSError):
        store.filesystem.delete_file(store.full(path))
