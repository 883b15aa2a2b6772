"""What Ray Tune runs for each trial: a process that drives one `TorchTrainer` and waits for it.

A process of its own imports this module for every trial. So it imports neither MLflow, matplotlib
nor open_clip, which would take longer than the rest of a trial's start.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from trainers.errors import storage_failures
from tuning.execution.retries import fit
from tuning.runs.records import STEP

DRIVER_MEMORY = 256 << 20
"""Bytes that Ray reserves for the process that drives a trial. It reserves memory but no CPU: with
whole CPUs, drivers could take all CPUs that the workers wait for, and no trial would ever start;
with a fraction of a CPU, the last worker of an exact fit would not start."""
_HEAD = "node:__internal_head__"
"""Resource of which Ray's head node has 1 and all other nodes have none."""


def driver_options() -> dict[str, Any]:
    """Options of the Ray task or actor that drives a trial.

    It runs on the head node, so that a trial is not lost with a node that only hosts its driver.
    """
    head = {_HEAD: 0.001} if _HEAD in ray.cluster_resources() else {}
    return {"memory": DRIVER_MEMORY, "resources": head}


def trainable(storage_path: str, resources: Mapping[str, Any]) -> Any:
    """The function for `tune.Tuner`, with the resources of its process.

    Args:
        storage_path: folder or URL of the checkpoints of all trials.
        resources: see `tuning.execution.retries.fit`.
    """
    function = partial(_run_trial, storage_path=storage_path, resources=dict(resources))
    options = driver_options()
    return tune.with_resources(function, {"memory": options["memory"], **options["resources"]})


class TuneReports(TuneReportCallback):
    """Passes reports of evaluations on to Tune, but not those that only save a checkpoint."""

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Pass on the report of the first worker; the others are equal."""
        if STEP in metrics[0]:
            super().after_report(run_context, metrics, checkpoint)


def _run_trial(spec: dict[str, Any], *, storage_path: str, resources: dict[str, Any]) -> None:
    # The name is stable: a resumed trial finds its checkpoints by it.
    name = f"train-{spec['trial_id']}"
    with storage_failures(storage_path, "cannot be used"):
        fit(
            spec["trial"],
            name=name,
            storage_path=storage_path,
            callbacks=[TuneReports()],
            resources=resources,
        )


def final_metrics(
    config: str,
    split: str,
    *,
    name: str,
    storage_path: str,
    resources: Mapping[str, Any],
) -> dict[str, float]:
    """Train to the end, then evaluate a split once; `confirm` runs this as a Ray task.

    Args:
        config: a `TrialConfig` as JSON.
        split: evaluated after the last step, on the workers.
        name: stable, so that the training continues from its checkpoints after a kill.
        storage_path: folder or URL of the checkpoints.
        resources: see `tuning.execution.retries.fit`.

    Returns:
        The last report.
    """
    with storage_failures(storage_path, "cannot be used"):
        metrics: dict[str, float] = fit(
            config, name=name, storage_path=storage_path, final_split=split, resources=resources
        )
    return metrics
