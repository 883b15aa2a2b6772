"""How many trials fit into a cluster, node by node: a worker lies on one node, whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainers.errors import ConfigError
from tuning.config.schema import ResourcesConfig


def fitting_trials(nodes: Sequence[Mapping[str, float]], resources: ResourcesConfig) -> int:
    """How many trials run at once.

    Of elastic trials, as many as get all of their workers; or, if none does, as get most of them.

    Args:
        nodes: CPUs and GPUs of each node, under Ray's names.
        resources: what a trial takes.
    """
    slots = [_workers_on(node, resources) for node in nodes]
    for workers in reversed(resources.sizes):
        if fits := _fitting(slots, workers, resources.placement_strategy):
            return fits
    return 0


def check_fits(nodes: Sequence[Mapping[str, float]], resources: ResourcesConfig) -> None:
    """Raise a `ConfigError` where not even one trial does, which names what is lacking."""
    if fitting_trials(nodes, resources):
        return
    workers, of_worker = resources.sizes[0], _wanted(resources)
    trial = {kind: workers * amount for kind, amount in of_worker.items()}
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    if any(total[kind] + _SLACK < amount for kind, amount in trial.items()):
        raise ConfigError(
            f"search.resources: one trial takes {_said(trial)}; the cluster has {_said(total)}"
        )
    largest = max(nodes, key=lambda node: [node.get(kind, 0.0) for kind in reversed(of_worker)])
    has = {kind: largest.get(kind, 0.0) for kind in of_worker}
    if not any(_workers_on(node, resources) for node in nodes):
        raise ConfigError(
            f"search.resources: one worker takes {_said(of_worker)}, and the largest of "
            f"{len(nodes)} node(s) has {_said(has)}"
        )
    raise ConfigError(
        f"search.resources: {workers} worker(s) of {_said(of_worker)} do not fit onto the "
        f"{len(nodes)} node(s), the largest of which has {_said(has)}, with placement_strategy = "
        f"{resources.placement_strategy!r}"
    )


_SLACK = 1e-6
"""Of sums of fractions."""


def _wanted(resources: ResourcesConfig) -> dict[str, float]:
    wanted = {"CPU": float(resources.cpus_per_worker), "GPU": resources.gpus_per_worker}
    return {kind: amount for kind, amount in wanted.items() if amount}


def _workers_on(node: Mapping[str, float], resources: ResourcesConfig) -> int:
    wanted = _wanted(resources)
    fits = {k: int((node.get(k, 0.0) + _SLACK) // amount) for k, amount in wanted.items()}
    if 0 < (share := resources.gpus_per_worker) < 1:  # of one GPU
        fits["GPU"] = int(node.get("GPU", 0.0) + _SLACK) * int((1 + _SLACK) // share)
    return min(fits.values())


def _fitting(slots: Sequence[int], workers: int, strategy: str) -> int:
    """Trials of so many workers on nodes that hold so many workers each."""
    if strategy == "STRICT_PACK":
        return sum(slot // workers for slot in slots)
    fits = sum(slots) // workers
    if strategy == "STRICT_SPREAD":  # no node has two workers of one trial
        while sum(min(slot, fits) for slot in slots) < fits * workers:
            fits -= 1
    return fits


def _said(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in amounts.items())
