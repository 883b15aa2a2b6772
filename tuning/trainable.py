"""What Ray Tune runs for each trial: it drives one `TorchTrainer` and waits.

Kept apart from `search`, and free of all that it imports: this module is read by a process of its
own for every trial, and MLflow, matplotlib and open_clip would take longer than the trial's start.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from trainers.dotted import over_trial
from trainers.torch_trainer import torch_trainer
from tuning.records import REFERENCE_KEY, TRIAL_KEY

DRIVER_MEMORY = 256 << 20
"""Bytes that Ray reserves for a trial's driver, which only waits for its workers. It takes memory
and no CPU: drivers of whole CPUs would take all that the workers wait for, and none would ever
start; drivers of a sliver would keep the last worker from an exact fit."""


def trainable(
    base: Mapping[str, Any],
    references: Mapping[str, Mapping[str, Any]],
    storage_path: Path,
    resources: Mapping[str, Any],
) -> Any:
    """The function for `tune.Tuner`, with the resources of its driver.

    Args:
        base: a `TrialConfig` as plain values, over which each proposal is laid.
        references: the configuration of each reference, by name.
        storage_path: for the checkpoints of all trials.
        resources: workers and what each takes, as `torch_trainer` names them.
    """
    function = partial(
        _trial,
        base=dict(base),
        references=dict(references),
        storage_path=storage_path,
        resources=dict(resources),
    )
    return tune.with_resources(function, {"memory": DRIVER_MEMORY})


def _trial(
    proposal: dict[str, Any],
    *,
    base: dict[str, Any],
    references: dict[str, Any],
    storage_path: Path,
    resources: dict[str, Any],
) -> None:
    params = dict(proposal)
    trial_id, reference = params.pop(TRIAL_KEY), params.pop(REFERENCE_KEY, None)
    torch_trainer(
        references[reference] if reference else over_trial(params, base),
        # A stable name: a trial that is taken up again finds its checkpoints under it.
        name=f"train-{trial_id}",
        storage_path=storage_path,
        callbacks=[TuneReportCallback()],
        **resources,
    ).fit()


def final_metrics(
    config: Mapping[str, Any],
    split: str,
    *,
    name: str,
    storage_path: Path,
    resources: Mapping[str, Any],
) -> dict[str, float]:
    """Train to the end, then evaluate a split once; what `confirm` runs as a task of Ray.

    Args:
        config: a `TrialConfig` as plain values.
        split: evaluated after the last step, on the workers.
        name: stable, so that a run that was killed goes on from its checkpoints.
        storage_path: for the checkpoints.
        resources: workers and what each takes, as `torch_trainer` names them.

    Returns:
        The last report.
    """
    trainer = torch_trainer(
        config, name=name, storage_path=storage_path, final_split=split, **resources
    )
    return trainer.fit().metrics or {}
