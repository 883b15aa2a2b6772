"""What is called once where trials run, on their hardware: a function, the zero-shot metrics."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import ray
import torch

from trainers.config import TrialConfig
from trainers.errors import ConfigError
from trainers.loop.images import load_split
from trainers.loop.measure import measure_zero_shot
from trainers.loop.setup import set_up
from trainers.process_state import restored_state
from trainers.ray_trainer import task_device
from tuning.config.schema import ResourcesConfig
from tuning.log.errors import root_cause

T = TypeVar("T")


def call_where_trials_run(
    function: Callable[..., T],
    *arguments: Any,
    resources: ResourcesConfig,
    call: Callable[..., Any],
    here: bool = False,
    alone: bool = False,
) -> T:
    """Call a function with a `device`, which is that of a trial's worker, and return its result.

    Args:
        call: of a `RayWatch`.
        here: call it in this process if trials take no GPU, as all of them run on this machine.
            Another one would have to import all that this one has imported.
        alone: no trial runs meanwhile, so that here it takes all cores.
    """
    if here and not resources.gpus_per_worker:
        with restored_state():
            if "OMP_NUM_THREADS" not in os.environ:  # as Ray does for a worker
                cores = os.cpu_count() if alone else int(resources.cpus_per_worker)
                torch.set_num_threads(max(1, cores or 1))
            return function(*arguments, device=torch.device("cpu"))
    cpus, gpus = resources.cpus_per_worker, resources.gpus_per_worker
    task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus)(_on_its_device)
    try:
        result: T = call(ray.get, task.remote(function, arguments))
    except ConfigError as error:  # Ray adds the traceback of the worker
        raise root_cause(error) from None
    return result


def _on_its_device(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    return function(*arguments, device=task_device())


def zero_shot_metrics(
    trial: TrialConfig, final_split: str | None, *, device: torch.device
) -> dict[str, float]:
    """The metrics of a trial before its first step, on validation and on a final split."""
    setup = set_up(trial, device=device)
    metrics = measure_zero_shot(setup, load_split(trial, "val"))
    if final_split is not None:
        metrics |= measure_zero_shot(setup, load_split(trial, final_split))
    return metrics
