"""The zero-shot metrics of a search, evaluated once, on the hardware on which trials run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trainers.config import TrialConfig
from trainers.loop.evaluate_run import evaluate_run
from trainers.loop.state import load_split, start
from tuning.config.schema import ResourcesConfig
from tuning.execution.trial_hardware import call_where_trials_run


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
        here: see `call_where_trials_run`.
        final_split: adds the metrics of this split.
    """
    arguments = trial, final_split
    return call_where_trials_run(_evaluate, *arguments, resources=resources, call=call, here=here)


def _evaluate(
    trial: TrialConfig, final_split: str | None, *, device: torch.device
) -> dict[str, float]:
    run = start(trial, device=device)
    metrics = evaluate_run(run, "val", load_split(trial, "val"))
    if final_split is not None:
        metrics |= evaluate_run(run, final_split, load_split(trial, final_split))
    return metrics
