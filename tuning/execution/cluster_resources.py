"""How many trials fit into a cluster, node by node: a worker runs on one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from trainers.errors import ConfigError
from tuning.config.schema import ResourcesConfig

HEAD: Final = "node:__internal_head__"
"""Resource of which Ray's head node has 1 and all other nodes have none."""
SLOT: Final = {HEAD: 0.001}
"""Resources of the process of a slot. It runs on the head, so that a trial is not lost with a node
that only hosts that process. No CPU is reserved: whole ones could take all CPUs that the workers
wait for; with a fraction, the last worker of an exact fit would not start."""
_SLACK = 1e-6
"""Tolerance of sums of fractions."""


def fitting_trials(nodes: Sequence[Mapping[str, float]], resources: ResourcesConfig) -> int:
    """Number of trials that run at a time on nodes with these CPUs and GPUs, by Ray's names."""
    return sum(workers_on(node, resources) for node in nodes) // resources.workers


def check_fits(nodes: Sequence[Mapping[str, float]], resources: ResourcesConfig) -> None:
    """Raise a ConfigError that names what is missing if not even one trial fits."""
    if fitting_trials(nodes, resources):
        return
    wanted = _per_worker(resources)
    largest = max(nodes, key=lambda node: [node.get(kind, 0.0) for kind in reversed(wanted)])
    problem = (
        f"{resources.workers} worker(s) of {_text(wanted)} do not fit onto {len(nodes)} node(s), "
        f"the largest of which has {_text({kind: largest.get(kind, 0.0) for kind in wanted})}"
    )
    hint = "on a cluster that adds nodes by itself, set search.resources.max_concurrent"
    raise ConfigError(problem, key="search.resources", hint=hint)


def _per_worker(resources: ResourcesConfig) -> dict[str, float]:
    amounts = {"CPU": float(resources.cpus_per_worker), "GPU": resources.gpus_per_worker}
    return {kind: amount for kind, amount in amounts.items() if amount}


def workers_on(node: Mapping[str, float], resources: ResourcesConfig) -> int:
    """Number of workers that a node has room for."""
    fits = {
        kind: int((node.get(kind, 0.0) + _SLACK) // amount)
        for kind, amount in _per_worker(resources).items()
    }
    if 0 < (share := resources.gpus_per_worker) < 1:  # a share of one GPU, not of several
        fits["GPU"] = int(node.get("GPU", 0.0) + _SLACK) * int((1 + _SLACK) // share)
    return min(fits.values())


def _text(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in amounts.items())
