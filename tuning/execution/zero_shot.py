"""The zero-shot metrics of a search, evaluated once, on the hardware on which trials run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ray
import torch

from trainers.config import TrialConfig
from trainers.errors import ConfigError
from trainers.loop.evaluate_run import evaluate_run
from trainers.loop.state import load_split, start
from trainers.process_state import restored_state
from trainers.ray_trainer import task_device
from tuning.config.schema import ResourcesConfig
from tuning.runs.errors import root_cause


def zero_shot_metrics(
    trial: TrialConfig,
    resources: ResourcesConfig,
    call: Callable[..., Any],
    *,
    here: bool = False,
    final_split: str | None = None,
) -> dict[str, float]:
    """The validation metrics of a trial before its first step.

    Args:
        call: of a `RayWatch`.
        here: evaluate in this process if trials take no GPU, as all of them run on this machine.
            Another one would have to import all that this one has imported.
        final_split: adds the metrics of this split.
    """
    if here and not resources.gpus_per_worker:
        with restored_state():
            if "OMP_NUM_THREADS" not in os.environ:  # as Ray does for a worker
                torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
            return _evaluate(trial, final_split, torch.device("cpu"))
    remote = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)
    try:
        task = remote(_evaluate).remote(trial, final_split)
        metrics: dict[str, float] = call(ray.get, task)
    except ConfigError as error:  # Ray adds the traceback of the worker
        raise root_cause(error) from None
    return metrics


def _evaluate(
    trial: TrialConfig, final_split: str | None, device: torch.device | None = None
) -> dict[str, float]:
    run = start(trial, device=device or task_device())
    metrics = evaluate_run(run, "val", load_split(trial, "val"))
    if final_split is not None:
        metrics |= evaluate_run(run, final_split, load_split(trial, final_split))
    return metrics
