"""A process on every node of the cluster, which answers what it is asked or is found silent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle
from ray._private.worker import get_dashboard_url
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.doctor import node_facts
from tuning.execution.ray_errors import in_one_line

_HEAD = "node:__internal_head__"
_TRIPS = 12
_TRIP_S = 10.0
_DRAINED = (1, 4)
"""Reasons of death that were meant: stopped in order, or let go by the autoscaler as idle."""


@dataclass(frozen=True)
class Node:
    """A member of the cluster as Ray knows it."""

    node_id: str
    name: str
    """Its address; where several have the same, with the beginning of its id."""
    address: str
    alive: bool
    is_head: bool
    cpus: float
    gpus: float
    why_dead: str = ""


@dataclass(frozen=True)
class Silence:
    """In place of an answer."""

    reason: str


def members() -> list[Node]:
    """Nodes that are alive, the head first, then those that died and were not meant to."""
    known = [node for node in ray.nodes() if node["Alive"] or node["DeathReason"] not in _DRAINED]
    known.sort(key=lambda node: (not node["Alive"], _HEAD not in node["Resources"]))
    addresses = [node["NodeManagerAddress"] for node in known]
    return [
        Node(
            node_id=node["NodeID"],
            name=_name(node, alone=addresses.count(node["NodeManagerAddress"]) == 1),
            address=node["NodeManagerAddress"],
            alive=node["Alive"],
            is_head=_HEAD in node["Resources"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            why_dead=node["DeathReasonMessage"],
        )
        for node in known
    ]


def _name(node: Mapping[str, Any], *, alone: bool) -> str:
    address = str(node["NodeManagerAddress"])
    if _HEAD in node["Resources"]:
        return f"{address} (head)"
    return address if alone else f"{address} ({node['NodeID'][:6]})"


def service_ports() -> dict[str, int]:
    """Of those services on the head to which code can be sent, by their names."""
    # Of a worker's own view of the dashboard, the port is the default one, whatever it really is.
    addresses = {
        "GCS": ray.get_runtime_context().gcs_address,
        "dashboard": get_dashboard_url(),
    }
    ports = {name: (address or "").rpartition(":")[2] for name, address in addresses.items()}
    return {name: int(port) for name, port in ports.items() if port.isdecimal()}


class Probes:
    """Asks the processes on the nodes; made by `probes`."""

    def __init__(self, actors: Mapping[str, Any], answer_s: float) -> None:
        self._actors = dict(actors)
        self.answer_s = answer_s

    def ask(self, question: Callable[[Any], Any], names: Sequence[str]) -> dict[str, Any]:
        """The answers of these nodes, `Silence` where there is none in time.

        Args:
            question: calls a method of `NodeProbe` remotely.
            names: whom to ask.
        """
        asked = {question(self._actors[name]): name for name in names}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=self.answer_s)
        said: dict[str, Any] = {}
        for reference, name in asked.items():
            if reference not in answered:
                said[name] = Silence(f"no answer within {self.answer_s:g} s")
                continue
            try:
                said[name] = ray.get(reference)
            except Exception as error:  # of the node, of its process, or what the process raised
                said[name] = Silence(in_one_line(error))
        return said

    def trips(self, name: str) -> list[tuple[float, float, float]] | Silence:
        """Round trips to a node's clock: the time here, the time there, the time here again."""
        actor, trips = self._actors[name], []
        for _ in range(_TRIPS):
            sent = time.time()
            try:
                read = ray.get(actor.clock.remote(), timeout=_TRIP_S)
            except Exception as error:
                return Silence(in_one_line(error))
            trips.append((sent, read, time.time()))
        return trips

    def connections(self, nodes: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Connections around a ring of nodes, each to the next, on ports that these choose.

        Args:
            nodes: names and addresses.

        Returns:
            By the names of who asked and who was asked: why there is none, or nothing.
        """
        if len(nodes) < 2:
            return {}
        names = [name for name, _ in nodes]
        addresses = dict(nodes)
        ports = {name: self.ask_one(name, "listen", addresses[name]) for name in names}
        tried = {}
        for name, following in zip(names, [*names[1:], names[0]], strict=True):
            port = ports[following]
            if isinstance(port, Silence):
                tried[name, following] = port.reason
                continue
            said = self.ask_one(name, "reach", addresses[following], port)
            tried[name, following] = said.reason if isinstance(said, Silence) else said
        return tried

    def ask_one(self, name: str, method: str, *arguments: Any) -> Any:
        """What a method of `NodeProbe` answers on one node, `Silence` where there is nothing."""
        (said,) = self.ask(lambda probe: getattr(probe, method).remote(*arguments), [name]).values()
        return said


@contextmanager
def probes(nodes: Sequence[Node], answer_s: float) -> Iterator[Probes]:
    """A process on each of the nodes, which takes no CPU of it; they end with the block."""
    # By value: what runs on a node must not depend on what is installed there.
    cloudpickle.register_pickle_by_value(node_facts)
    actors: dict[str, Any] = {}
    try:
        kind: Any = ray.remote(num_cpus=0)(node_facts.NodeProbe)
        for node in nodes:
            pinned = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            actors[node.name] = kind.options(scheduling_strategy=pinned).remote()
        yield Probes(actors, answer_s)
    finally:
        cloudpickle.unregister_pickle_by_value(node_facts)
        for actor in actors.values():
            with suppress(Exception):
                ray.kill(actor)
