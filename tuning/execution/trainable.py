"""What Ray Tune runs for each trial: it drives one `TorchTrainer` and waits.

Kept apart from `search`, and free of all that it imports: this module is read by a process of its
own for every trial, and MLflow, matplotlib and open_clip would take longer than the trial's start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from trainers.errors import storage_failures
from trainers.overrides import over_trial
from tuning.execution.retries import fit
from tuning.runs.records import REFERENCE_KEY, STEP, TRIAL_KEY

DRIVER_MEMORY = 256 << 20
"""Bytes that Ray reserves for a trial's driver, which only waits for its workers. It takes memory
and no CPU: drivers of whole CPUs would take all that the workers wait for, and none would ever
start; drivers of a sliver would keep the last worker from an exact fit."""
_HEAD = "node:__internal_head__"
"""What Ray's head has 1 of, and no other node has."""


def driver_options() -> dict[str, Any]:
    """Of a Ray task or actor that drives a trial: on the head, so that no other node takes a driver
    with it, and with it the trial, when it is lost."""
    head = {_HEAD: 0.001} if _HEAD in ray.cluster_resources() else {}
    return {"memory": DRIVER_MEMORY, "resources": head}


def trainable(
    base: Mapping[str, Any],
    references: Mapping[str, Mapping[str, Any]],
    storage_path: str,
    resources: Mapping[str, Any],
) -> Any:
    """The function for `tune.Tuner`, with the resources of its driver.

    Args:
        base: a `TrialConfig` as plain values, over which each proposal is laid.
        references: the configuration of each reference, by name.
        storage_path: for the checkpoints of all trials, a folder or URL.
        resources: as of `tuning.execution.retries.fit`.
    """
    function = partial(
        _trial,
        base=dict(base),
        references=dict(references),
        storage_path=storage_path,
        resources=dict(resources),
    )
    options = driver_options()
    return tune.with_resources(function, {"memory": options["memory"], **options["resources"]})


class TuneReports(TuneReportCallback):
    """Gives Tune what workers report at evaluations, and not that they saved something between."""

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """The first worker's report: all say the same."""
        if STEP in metrics[0]:
            super().after_report(run_context, metrics, checkpoint)


def _trial(
    proposal: dict[str, Any],
    *,
    base: dict[str, Any],
    references: dict[str, Any],
    storage_path: str,
    resources: dict[str, Any],
) -> None:
    params = dict(proposal)
    trial_id, reference = params.pop(TRIAL_KEY), params.pop(REFERENCE_KEY, None)
    config = references[reference] if reference else over_trial(params, base)
    # A stable name: a trial that is taken up again finds its checkpoints under it.
    of_trial: dict[str, Any] = {"name": f"train-{trial_id}", "storage_path": storage_path}
    with storage_failures(storage_path, "cannot be used"):
        fit(json.dumps(config), **of_trial, callbacks=[TuneReports()], resources=resources)


def final_metrics(
    config: str,
    split: str,
    *,
    name: str,
    storage_path: str,
    resources: Mapping[str, Any],
) -> dict[str, float]:
    """Train to the end, then evaluate a split once; what `confirm` runs as a task of Ray.

    Args:
        config: a `TrialConfig` as JSON.
        split: evaluated after the last step, on the workers.
        name: stable, so that a run that was killed goes on from its checkpoints.
        storage_path: for the checkpoints, a folder or URL.
        resources: as of `tuning.execution.retries.fit`.

    Returns:
        The last report.
    """
    with storage_failures(storage_path, "cannot be used"):
        metrics: dict[str, float] = fit(
            config, name=name, storage_path=storage_path, final_split=split, resources=resources
        )
    return metrics
