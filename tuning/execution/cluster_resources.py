"""How many trials fit into a cluster, node by node: a worker runs on one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import ray

from trainers.errors import ConfigError
from tuning.config.schema import ResourcesConfig

HEAD: Final = "node:__internal_head__"
"""Resource of which Ray's head node has 1 and all other nodes have none."""
DRIVER_MEMORY: Final = 720 << 20
"""Bytes that Ray reserves on the head for the process that drives a trial, and those of Ray Train
that come with it (Ray 2.60 on Linux, shares of shared pages): 394 MB the driver, 3 times 90 to
115 MB others. No CPU is reserved: with whole CPUs, drivers could take all CPUs that the workers
wait for, and no trial would ever start; with a fraction of a CPU, the last worker of an exact fit
would not start."""
_SLACK = 1e-6
"""Tolerance of sums of fractions."""


def fitting_trials(nodes: Sequence[Mapping[str, float]], resources: ResourcesConfig) -> int:
    """Number of trials that run at a time.

    For elastic trials, the number that run with all their workers. If none does, the number that
    run with as many workers as possible.

    Args:
        nodes: CPUs and GPUs of each node, under Ray's names.
        resources: of one trial.
    """
    slots = [_workers_on(node, resources) for node in nodes]
    for workers in reversed(resources.sizes):
        if resources.placement_strategy == "STRICT_PACK":
            fits = sum(slot // workers for slot in slots)
        else:
            fits = sum(slots) // workers
        if resources.placement_strategy == "STRICT_SPREAD":  # one worker of a trial on each node
            while sum(min(slot, fits) for slot in slots) < fits * workers:
                fits -= 1
        if fits:
            return fits
    return 0


def fitting_drivers(nodes: Sequence[Mapping[str, float]]) -> int | None:
    """Number of drivers that the memory of the head has room for, at least 1; None if unknown."""
    heads = [node["memory"] for node in nodes if HEAD in node and "memory" in node]
    return max(1, int(heads[0] // DRIVER_MEMORY)) if heads else None


def driver_options() -> dict[str, Any]:
    """Options of the Ray task or actor that drives a trial.

    It runs on the head node, so that a trial is not lost with a node that only hosts its driver.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    heads = [node for node in nodes if HEAD in node]
    memory = min([DRIVER_MEMORY, *(int(node.get("memory", DRIVER_MEMORY)) for node in heads)])
    return {"memory": memory, "resources": {HEAD: 0.001} if heads else {}}


def check_fits(nodes: Sequence[Mapping[str, float]], resources: ResourcesConfig) -> None:
    """Raise a ConfigError that names what is missing if not even one trial fits."""
    if fitting_trials(nodes, resources):
        return
    workers, per_worker = resources.sizes[0], _per_worker(resources)
    per_trial = {kind: workers * amount for kind, amount in per_worker.items()}
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    largest = max(nodes, key=lambda node: [node.get(kind, 0.0) for kind in reversed(per_worker)])
    has = _text({kind: largest.get(kind, 0.0) for kind in per_worker})
    if any(total[kind] + _SLACK < amount for kind, amount in per_trial.items()):
        problem = f"one trial takes {_text(per_trial)}; the cluster has {_text(total)}"
    elif not any(_workers_on(node, resources) for node in nodes):
        problem = (
            f"one worker takes {_text(per_worker)}; the largest of {len(nodes)} node(s) has {has}"
        )
    else:
        problem = (
            f"{workers} worker(s) of {_text(per_worker)} do not fit onto {len(nodes)} node(s), the "
            f"largest of which has {has}, with placement_strategy = "
            f"{resources.placement_strategy!r}"
        )
    raise ConfigError(problem, key="search.resources")


def _per_worker(resources: ResourcesConfig) -> dict[str, float]:
    amounts = {"CPU": float(resources.cpus_per_worker), "GPU": resources.gpus_per_worker}
    return {kind: amount for kind, amount in amounts.items() if amount}


def _workers_on(node: Mapping[str, float], resources: ResourcesConfig) -> int:
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
