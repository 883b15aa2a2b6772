"""What `lipsum-tune doctor` has found out about a cluster, for its checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.doctor.node_facts import NodeFacts, Software
from tuning.config.schema import SearchFile


@dataclass(frozen=True)
class Node:
    """A node that Ray considers alive."""

    name: str
    """Its address; with the start of its id if several nodes have the same address."""
    address: str
    is_head: bool
    cpus: float
    """CPUs that Ray offers on it."""
    gpus: float


@dataclass(frozen=True)
class Storage:
    """A storage of the configuration as the driver and the nodes see it."""

    key: str
    url: str
    error: str | None = None
    """Why the driver cannot write there."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """What is wrong on each node, by name; empty if nothing is."""


@dataclass(frozen=True)
class ClusterFacts:
    """Everything that the checks look at."""

    driver: Software
    file: SearchFile | None = None
    """The configuration, if one was given."""
    ray_error: str | None = None
    """Why there is no connection to Ray; there are no nodes then."""
    nodes: tuple[Node, ...] = ()
    facts: Mapping[str, NodeFacts] = field(default_factory=dict)
    """Facts by node name."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """Nodes that gave no facts, and why."""
    dead: Mapping[str, str] = field(default_factory=dict)
    """Nodes that died unexpectedly, with the reason that Ray gives."""
    storage: tuple[Storage, ...] = ()

    def answers(self) -> list[tuple[Node, NodeFacts]]:
        """Nodes with their facts."""
        return [(node, self.facts[node.name]) for node in self.nodes if node.name in self.facts]
