"""The Ray Train `TorchTrainer` around `fine_tune`: workers, checkpoints, reports.

The only module of this package that knows Ray. A trial of a search and a run of its own are the
same here; what differs is who listens to the reports (`callbacks`). The fine-tuning itself is
imported by the workers alone: for each trial, Ray starts two more processes that read this module,
and open_clip takes seconds to import.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import ray.train.torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

if TYPE_CHECKING:
    from trainers.config import TrialConfig
    from trainers.fine_tune import Report

REPORT_POLL_S = 0.2
"""Ray's controller takes one report each poll; its default of 2 s makes short trials wait."""

FIRST_STEP_S = 4 * 3600
"""For how long workers wait for one another: one may have to copy all pictures into its machine's
cache before its first step, where the others have them."""

WORKER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(REPORT_POLL_S),
    "RAY_TRAIN_V2_ENABLED": "1",
}
"""What the runtime environment of a job must carry for its trainers."""


def torch_trainer(
    config: Mapping[str, Any],
    *,
    name: str,
    storage_path: Path | str,
    workers: int = 1,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    max_failures: int = 0,
    callbacks: Sequence[Any] = (),
    final_split: str | None = None,
    loop: Callable[[dict[str, Any]], None] | None = None,
) -> TorchTrainer:
    """A trainer of this configuration; `fit()` runs it, and goes on where one of its name stopped.

    Args:
        config: what is run, a `TrialConfig` as plain values; the workers validate it.
        name: of the run's folder below `storage_path`; stable, so that a retry finds its
            checkpoints.
        storage_path: a folder or bucket that every node reaches.
        workers: data-parallel processes.
        cpus_per_worker: CPUs that Ray reserves for each.
        gpus_per_worker: GPUs that Ray reserves for each; with 0, it trains on the CPU.
        max_failures: worker failures, such as a lost node, that are answered by a restart.
        callbacks: of Ray Train (`ray.train.UserCallback`), such as Tune's `TuneReportCallback`.
        final_split: evaluated once, after the last step, and added to the last report; a search
            has none, so that no trial ever reads the test splits.
        loop: in place of `train_loop`, for measurements; it is given the same values.
    """
    resources = {"CPU": cpus_per_worker}
    if gpus_per_worker:
        resources["GPU"] = gpus_per_worker
    return TorchTrainer(
        loop or train_loop,
        torch_config=TorchConfig(timeout_s=FIRST_STEP_S),
        train_loop_config={"trial": dict(config), "final_split": final_split},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage_path),
            callbacks=list(callbacks),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )


def train_loop(values: dict[str, Any]) -> None:
    """What each worker runs: `fine_tune` from the last checkpoint on, reporting to Ray Train."""
    from trainers.config import TrialConfig
    from trainers.errors import validate

    config = validate(TrialConfig, values["trial"], "trial")
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        _report_all(config, values["final_split"], None)
        return
    with checkpoint.as_directory() as folder:
        _report_all(config, values["final_split"], Path(folder))


def _report_all(config: TrialConfig, final_split: str | None, resume_from: Path | None) -> None:
    from trainers.fine_tune import fine_tune
    from trainers.run import load_split

    device = ray.train.torch.get_device()
    for report in fine_tune(config, device=device, resume_from=resume_from):
        # A resumed run repeats its last report, with what was measured already.
        known = f"id_{final_split}/acc" in report.metrics
        if final_split is not None and report.step == config.steps and not known:
            report.metrics.update(report.run.evaluate(final_split, load_split(config, final_split)))
        _report(report)


def _report(report: Report) -> None:
    """Every worker must report; the first brings the checkpoint, which all workers share."""
    metrics = {"step": report.step, **report.metrics}
    with tempfile.TemporaryDirectory() as folder:
        report.save(Path(folder))
        if ray.train.get_context().get_world_rank() != 0:
            ray.train.report(metrics)
            return
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
