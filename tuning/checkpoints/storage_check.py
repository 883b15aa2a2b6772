"""Check that every node of a cluster sees the storage of a search, before anything is trained.

A folder on a disk of the driver's machine looks like any other folder to a worker elsewhere, which
would write its checkpoints to a disk of its own. So the driver writes a file there, and a task on
each node looks for it and writes another one beside it.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass

import ray

from trainers.data.data_root import EMBEDDED
from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError, first_line, system_words
from tuning.config.schema import SearchFile
from tuning.execution.ray_workarounds import draining_nodes
from tuning.execution.tasks import ask_nodes

ANSWER_S = 120.0
"""Time that all nodes together may take: the first task on a node starts a process there."""
APPEARS_S = 3.0
"""Time for which a node looks for a new file: network disks cache that a file does not exist."""
_PROBE = ".lipsum-tune-probe-"


@dataclass(frozen=True)
class NodeStorage:
    """Access of one node to a folder or bucket."""

    node: str
    """Address of the node."""
    fault: str | None = None
    """What is wrong, as a predicate whose subject is the node; None if it sees what the driver has
    written there, and can write too."""


def alive_nodes() -> dict[str, str]:
    """Addresses of the nodes by Ray's identifier, without those that announced their end."""
    leaving = draining_nodes()
    return {
        node["NodeID"]: str(node["NodeManagerAddress"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
    }


def storage_on_nodes(url: str, deadline_s: float = ANSWER_S) -> list[NodeStorage]:
    """Access of each node of the connected cluster to a storage.

    A missing folder is created. `deadline_s` is the time for all nodes together.

    Raises:
        ConfigError: the driver itself cannot write there, or the URL is invalid.
    """
    store, probe = open_store(url), f"{_PROBE}{secrets.token_hex(8)}"
    try:
        with store.write(probe) as file:
            file.write(b"driver")
    except OSError as error:
        raise ConfigError(f"it cannot be written: {system_words(error)}") from None
    try:
        return _storage_on(url, probe, deadline_s, writes=True)
    finally:
        _remove(store, probe)


def check_nodes(file: SearchFile, home: str) -> None:
    """Refuse a search in which a node of the cluster cannot take part.

    A single node has the driver's own disk. Nodes that join later are not checked. `home` is that
    of the checkpoints, see `tuning.checkpoints.files`.

    Raises:
        ConfigError: names the key, the folder and the node.
    """
    root, storage = file.trial.data.root, file.search.checkpoints.storage
    are_several, found = len(alive_nodes()) > 1, list[tuple[str, str, str, NodeStorage]]()
    if are_several or storage is not None:
        key, value = "search.storage", file.search.storage
        if storage is not None:
            key, value = "search.checkpoints.storage", storage
        try:
            nodes = storage_on_nodes(home)
        except ConfigError as error:
            raise ConfigError(str(error), key=key, value=value) from None
        found += [(key, value, "set search.checkpoints.storage = s3://...", node) for node in nodes]
    if (
        are_several and isinstance(root, str) and root != EMBEDDED
    ):  # others are made by each machine
        nodes = _storage_on(root, file.trial.data.id_domain, ANSWER_S, writes=False)
        found += [("trial.data.root", root, "use a URL such as s3://...", node) for node in nodes]
    for key, value, advice, node in found:
        if node.fault is not None:
            hint = None if "://" in value else f"use a disk that all nodes reach, or {advice}"
            raise ConfigError(f"node {node.node} {node.fault}", key=key, value=value, hint=hint)


def _storage_on(url: str, path: str, deadline_s: float, *, writes: bool) -> list[NodeStorage]:
    """Run `_look` on each node; a node that fails while it leaves the cluster is left out."""
    nodes = alive_nodes()
    faults: dict[str, str | None] = {}
    arguments = dict.fromkeys(nodes, (url, path, writes))
    for node_id, answer in ask_nodes(_look, arguments, deadline_s).items():
        if answer is None:
            faults[node_id] = f"does not answer within {deadline_s:g} s"
        elif isinstance(answer, Exception):  # the node died, or this package is not installed there
            reason = first_line(getattr(answer, "cause", None) or answer)
            faults[node_id] = f"cannot be asked: {reason}"
        else:
            faults[node_id] = answer or None
    staying = alive_nodes()
    return [
        NodeStorage(nodes[node_id], fault)
        for node_id, fault in faults.items()
        if node_id in staying or not fault
    ]


def _look(url: str, path: str, writes: bool) -> str:
    """On a node: look for a file or folder, and write another file beside it. Returns the fault."""
    sees, own = False, f"{path}-{secrets.token_hex(4)}"
    try:
        store = open_store(url)
        deadline = time.monotonic() + APPEARS_S
        while not (sees := store.exists(path)) and writes and time.monotonic() < deadline:
            time.sleep(0.2)
        if not sees:
            return "does not see this folder"
        if writes:
            with store.write(own) as file:
                file.write(b"node")
            _remove(store, own)
    except (OSError, ConfigError) as error:
        message = system_words(error) if isinstance(error, OSError) else first_line(error)
        return f"cannot {'write' if sees else 'read'} there: {message}"
    return ""


def _remove(store: Store, path: str) -> None:
    with suppress(OSError):
        store.filesystem.delete_file(store.full(path))
