"""Whether the processes that decode images have room for their batches on the nodes of trials.

They pass batches on in `/dev/shm`, of which a container has 64 MB by default. A process that finds
it full is killed, hours into a search.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search_spaces.distributions import Categorical
from trainers.data.config import MOST_LOADERS
from trainers.errors import ConfigError
from tuning.config.schema import SearchFile
from tuning.execution.cluster_resources import workers_on

SHARED_MEMORY = "/dev/shm"
ANSWER_S = 20
"""Seconds that a node may take to answer. One that does not is not refused."""


def shared_memory_of(file: SearchFile) -> int:
    """Most bytes that the loader processes of one worker keep in shared memory.

    Each decodes two batches ahead, as PyTorch has it: those of training still lie there while those
    of an evaluation come.
    """
    trial = file.trial
    resources = file.search.resources
    if trial.data.workers != "auto":
        loaders = trial.data.workers
    else:  # as `DataConfig.loader_processes` counts them in a worker
        loaders = min(MOST_LOADERS, resources.cpus_per_worker) if resources.gpus_per_worker else 0
    if not loaders:
        return 0
    from trainers.models.clip import model_config

    side = model_config(trial.model)["vision_cfg"].get("image_size", 224)
    side = max(side) if isinstance(side, list | tuple) else side
    images = _largest_batch(file) // resources.workers + trial.eval.batch_size
    return 2 * loaders * images * 3 * int(side) ** 2


def check_shared_memory(file: SearchFile, concurrent: int, *, is_own_ray: bool) -> None:
    """Raise a ConfigError if a node has less shared memory free than the trials on it need.

    Args:
        concurrent: number of trials at a time.
        is_own_ray: all of them run on this machine.
    """
    of_worker = shared_memory_of(file)
    if not of_worker:
        return
    resources = file.search.resources
    most = concurrent * resources.workers
    nodes = [("this machine", most, _free(SHARED_MEMORY))] if is_own_ray else _of_cluster(file)
    for name, fitting, free in nodes:
        needed = min(fitting, most) * of_worker
        if free is not None and free < needed:
            problem = (
                f"{SHARED_MEMORY} of {name} has {free / 1e6:,.0f} MB free, and the processes that "
                f"decode images need up to {needed / 1e6:,.0f} MB"
            )
            size = math.ceil(needed / 2**30)
            hint = f"start the container with --shm-size={size}g, or set fewer processes"
            key = "trial.data.workers"
            raise ConfigError(problem, key=key, value=file.trial.data.workers, hint=hint)


def _largest_batch(file: SearchFile) -> int:
    """Most images of a step, also of a searched `optim.batch_size`."""
    sizes = [file.trial.optim.batch_size]
    for space in file.spaces.values():
        searched = space.parameters.get("optim.batch_size")
        if isinstance(searched, Categorical):
            sizes += [int(size) for size in searched.choices]
        elif searched is not None:
            sizes.append(int(searched.high))
    return max(sizes)


def _free(folder: str) -> int | None:
    """Free bytes; None where there is no such folder, as on macOS."""
    return shutil.disk_usage(folder).free if Path(folder).is_dir() else None


def _of_cluster(file: SearchFile) -> Iterator[tuple[str, int, int | None]]:
    """Name, number of workers that fit, and free bytes of each node that has room for a worker."""
    asked = list[tuple[str, int, Any]]()
    for node in ray.nodes():
        fitting = workers_on(node["Resources"], file.search.resources) if node["Alive"] else 0
        if fitting:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task: Any = ray.remote(_free).options(num_cpus=0, scheduling_strategy=there)
            name = f"node {node['NodeManagerAddress']}"
            asked.append((name, fitting, task.remote(SHARED_MEMORY)))
    for name, fitting, answer in asked:
        try:
            yield name, fitting, ray.get(answer, timeout=ANSWER_S)
        except RayError:
            continue
