"""The Ray Train `TorchTrainer` around `fine_tune`: workers, checkpoints, reports.

The only module of this package that knows Ray. A trial of a search and a run of its own are the
same here; what differs is who listens to the reports (`callbacks`). The fine-tuning itself is
imported by the workers alone: for each trial, Ray starts two more processes that read this module,
and open_clip takes seconds to import.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import VALIDATE_STORAGE_MARKER_FILENAME

from trainers.data.storage import Store, open_store
from trainers.errors import (
    ConfigError,
    StorageFailed,
    storage_failures,
    system_error,
    system_words,
)

if TYPE_CHECKING:
    from trainers.config import TrialConfig
    from trainers.fine_tune import Report

REPORT_POLL_S = 0.2
"""Ray's controller takes one report each poll; its default of 2 s makes short trials wait."""

FIRST_STEP_S = 4 * 3600
"""For how long workers wait for one another: one may have to copy all images into its machine's
cache before its first step, where the others have them."""

NOTICE_S = 1.0
"""From one look for nodes that announce their end to the next."""
NOTICE_STEPS = 20
"""At most so many steps from one to the next."""

COPIED_AT_ONCE = 16 << 20
"""Bytes of a checkpoint in memory on its way to the storage."""

WORKER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(REPORT_POLL_S),
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
}
"""What the runtime environment of a job must carry for its trainers."""


def torch_trainer(
    config: str,
    *,
    name: str,
    storage_path: Path | str,
    workers: int = 1,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    min_workers: int | None = None,
    placement_strategy: str = "PACK",
    preemption_grace_s: float = 0.0,
    callbacks: Sequence[Any] = (),
    final_split: str | None = None,
    loop: Callable[[dict[str, Any]], None] | None = None,
) -> TorchTrainer:
    """A trainer of this configuration; `fit()` runs it, and goes on where one of its name stopped.

    Args:
        config: the `TrialConfig` as JSON, as the driver validated it.
        name: of the run's folder below `storage_path`; stable, so that a retry finds its
            checkpoints.
        storage_path: a folder or URL, as of `trainers.data.storage`, that every node reaches.
        workers: data-parallel processes.
        cpus_per_worker: CPUs that Ray reserves for each.
        gpus_per_worker: GPUs that Ray reserves for each; with 0, it trains on the CPU.
        min_workers: with so many it starts, or goes on when a node was lost, where there is no
            room for all; Ray Train looks again every minute. None always waits for all.
        placement_strategy: of Ray's placement groups: whether the workers lie on one node or on as
            many as possible.
        preemption_grace_s: for how long the others may train on when the time has come at which a
            node said it would be gone.
        callbacks: of Ray Train (`ray.train.UserCallback`), such as Tune's `TuneReportCallback`.
        final_split: evaluated once, after the last step, and added to the last report; a search
            has none, so that no trial ever reads the test splits.
        loop: in place of `train_loop`, for measurements; it is given the same values.

    Raises:
        ConfigError: a URL that nothing here knows.
        StorageFailed: it does not answer.
    """
    storage = open_storage(storage_path)
    resources = {"CPU": cpus_per_worker}
    if gpus_per_worker:
        resources["GPU"] = gpus_per_worker
    return TorchTrainer(
        loop or train_loop,
        torch_config=TorchConfig(timeout_s=FIRST_STEP_S),
        train_loop_config={
            "trial": config,
            "final_split": final_split,
            "storage": f"{storage.url}/{name}",
        },
        scaling_config=ScalingConfig(
            num_workers=workers if min_workers is None else (min_workers, workers),  # type: ignore[arg-type]
            use_gpu=gpus_per_worker > 0,
            resources_per_worker=resources,
            placement_strategy=placement_strategy,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage.root,
            storage_filesystem=storage.filesystem,
            callbacks=list(callbacks),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            # `tuning.execution.retries` decides which failures are worth another attempt.
            failure_config=FailureConfig(
                max_failures=0,
                max_preemption_failures=-1,  # type: ignore[call-arg]  # of Train V2
                preemption_grace_s=preemption_grace_s,
            ),
        ),
    )


def open_storage(storage_path: Path | str) -> Store:
    """Where trials keep their checkpoints.

    Raises:
        ConfigError: a URL that nothing here knows.
        StorageFailed: it does not answer.
    """
    try:
        return open_store(storage_path)
    except ConfigError as error:
        if system_error(error) is None:
            raise
        raise StorageFailed(str(error)) from None


def train_loop(values: dict[str, Any]) -> None:
    """What each worker runs: `fine_tune` from the last checkpoint on, reporting to Ray Train."""
    from trainers.config import TrialConfig

    config = TrialConfig.model_validate_json(values["trial"])
    with _last_checkpoint(values["storage"]) as folder:
        _report_all(config, values, folder)


@contextmanager
def _last_checkpoint(storage: str) -> Iterator[Path | None]:
    """The checkpoint to go on from, in a folder of this machine; None where there is none."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with ExitStack() as stack:
        with storage_failures(storage, "the last checkpoint cannot be read"):
            folder = stack.enter_context(checkpoint.as_directory())
        yield Path(folder)


def _report_all(config: TrialConfig, values: dict[str, Any], resume_from: Path | None) -> None:
    from trainers.fine_tune import fine_tune
    from trainers.loop.state import load_split

    device, final_split = ray.train.torch.get_device(), values["final_split"]
    for report in fine_tune(
        config,
        device=device,
        resume_from=resume_from,
        save_now=_Notice(device),
    ):
        # A resumed run repeats its last report, with what was measured already.
        known = f"id_{final_split}/acc" in report.metrics
        if final_split is not None and report.step == config.steps and not known:
            report.add(report.run.evaluate(final_split, load_split(config, final_split)))
        _report(report, values["storage"])


class _Notice:
    """Tells once of each node of the run that announces its end; all workers ask at each step.

    Ray's own answer costs a message to a process that all workers wait for, so it is asked for
    about every second: the workers agree on the number of steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._told = device, set[str]()
        self._steps, self._wait, self._began = 0, 1, time.monotonic()

    def __call__(self) -> bool:
        from trainers.loop.distributed import averaged

        self._steps += 1
        if self._steps < self._wait:
            return False
        info = ray.train.get_preemption_info()
        now = time.monotonic()
        step_s = torch.tensor((now - self._began) / self._steps, device=self._device)
        self._wait = max(1, min(NOTICE_STEPS, round(NOTICE_S / float(averaged(step_s)))))
        self._steps, self._began = 0, now
        leaving = set(info.preempted_node_ids) if info is not None else set()
        new = leaving - self._told
        self._told |= leaving
        return bool(new)


def _report(report: Report, storage: str) -> None:
    """Every worker must report; the first brings the checkpoint, which all workers share.

    Raises:
        StorageFailed: the machine's folder for temporary files is full, through which a checkpoint
            goes, or the storage is, or it does not take the checkpoint for another reason.
    """
    metrics: dict[str, Any] = {"step": report.step, **report.metrics}
    if not report.metrics:  # only to be saved: callbacks pass over what has no step
        metrics = {"saved_step": report.step}
    with _saved(report) as folder:
        if ray.train.get_context().get_world_rank() != 0:
            ray.train.report(metrics)
            return
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        with storage_failures(storage, "a checkpoint cannot be written"):
            keep = partial(_keep, storage)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_fn=keep)


def _keep(storage: str, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Copy a checkpoint to where Ray Train keeps those of the run.

    Ray Train's own way is Arrow's `copy_files`, which says nothing (Arrow 25) where a bucket
    refuses a file: the checkpoint would be taken for kept, and the one before it removed.
    """
    context = ray.train.get_context().get_storage()
    run = Store(context.storage_filesystem, context.experiment_fs_path, storage)
    if not run.exists(VALIDATE_STORAGE_MARKER_FILENAME):
        raise StorageFailed(f"{storage}: it is gone, or this node does not see it")
    files = sorted(Path(checkpoint.path).iterdir(), reverse=True)  # the weights, which count, last
    for path in files:
        with path.open("rb") as source, run.write(f"{name}/{path.name}") as target:
            shutil.copyfileobj(source, target, COPIED_AT_ONCE)
    return ray.train.Checkpoint(run.full(name), run.filesystem)


@contextmanager
def _saved(report: Report) -> Iterator[Path]:
    """The checkpoint of a report, in a folder of this machine; of the first worker alone."""
    with ExitStack() as stack:
        try:
            directory = tempfile.TemporaryDirectory(
                prefix="lipsum-tune-", ignore_cleanup_errors=True
            )
            folder = Path(stack.enter_context(directory))
            report.save(folder)
        except (OSError, StorageFailed) as error:
            said = system_words(error) if isinstance(error, OSError) else str(error)
            raise StorageFailed(
                f"node {ray.util.get_node_ip_address()}: {said}; "
                "TMPDIR names another folder for temporary files"
            ) from None
        yield folder
