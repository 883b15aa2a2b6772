"""A Ray Train `TorchTrainer` around `fine_tune`: workers, checkpoints, reports.

The only module of this package that imports Ray. Between a trial and its trainer there is little:
the trial is one JSON text, its checkpoints lie in one folder, and its reports go to Ray Train
without a checkpoint. Workers find the newest checkpoint in the folder whenever they start, be it
for a new attempt, after a lost node, or because an elastic trial changed its size.

Two processes import this module for each trial before a worker does, so it imports neither
open_clip nor the training loop at its top.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from trainers.checkpoints.format import STATE, WEIGHTS
from trainers.checkpoints.storage import (
    fetch_checkpoint,
    newest_checkpoint,
    remove_other_checkpoints,
    write_checkpoint,
)
from trainers.data.storage import Store, open_store
from trainers.errors import (
    ConfigError,
    StorageFailed,
    storage_failures,
    system_error,
    system_words,
)

if TYPE_CHECKING:
    from trainers.fine_tune import Report

REPORT_POLL_S = 0.2
"""Interval at which Ray's controller takes a report; its default of 2 s makes short trials wait."""

COLLECTIVE_TIMEOUT_S = 1200
"""Time after which workers that wait for another one in a collective operation fail. Filling the
cache of images may take hours, but happens before the first such operation."""

NOTICE_S, NOTICE_STEPS = 1.0, 20
"""Interval between two checks for nodes that announce their end, and its limit in steps."""

WORKER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(REPORT_POLL_S),
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
}
"""Environment that a job of Ray needs for its trainers."""


def torch_trainer(
    config: str,
    *,
    folder: Store,
    name: str,
    scratch: Path,
    workers: int = 1,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    min_workers: int | None = None,
    placement_strategy: str = "PACK",
    preemption_grace_s: float = 0.0,
    callbacks: Sequence[Any] = (),
    final_split: str | None = None,
    loop: Callable[[dict[str, Any]], Any] | None = None,
) -> TorchTrainer:
    """A trainer of one configuration; `fit()` starts it, or continues from its newest checkpoint.

    Args:
        config: the `TrialConfig` as JSON, validated by the driver.
        folder: of the checkpoints, prepared by `trainers.checkpoints.storage.prepare_folder`; every
            node must have access to it.
        name: of Ray Train's run; unique to the attempt.
        scratch: folder on this machine for the files of Ray Train's run, which nothing reads.
        workers: as all other resources, see `tuning.config.schema.ResourcesConfig`.
        callbacks: of Ray Train (`ray.train.UserCallback`), such as Tune's `TuneReportCallback`.
        final_split: split that is evaluated once, after the last step, and added to the last
            report. A search has none, so no trial ever reads the test splits.
        loop: replaces `train_loop`, for measurements; it gets the same values.
    """
    resources = {"CPU": cpus_per_worker}
    if gpus_per_worker:
        resources["GPU"] = gpus_per_worker
    return TorchTrainer(
        loop or train_loop,  # type: ignore[arg-type]  # what it returns is in the Result
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        train_loop_config={
            "trial": config,
            "folder": folder.root if folder.is_local else folder.url,
            "final_split": final_split,
        },
        scaling_config=ScalingConfig(
            num_workers=workers if min_workers is None else (min_workers, workers),  # type: ignore[arg-type]
            use_gpu=gpus_per_worker > 0,
            resources_per_worker=resources,
            placement_strategy=placement_strategy,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(scratch),
            callbacks=list(callbacks),
            # `tuning.execution.retries` decides which failures are worth another attempt.
            failure_config=FailureConfig(
                max_failures=0,
                max_preemption_failures=-1,  # type: ignore[call-arg]  # of Train V2
                preemption_grace_s=preemption_grace_s,
            ),
        ),
    )


def open_storage(url: Path | str) -> Store:
    """Folder or bucket for checkpoints.

    Raises:
        ConfigError: the URL's file system is unknown.
        StorageFailed: it does not answer.
    """
    try:
        return open_store(url)
    except ConfigError as error:
        if system_error(error) is None:
            raise
        raise StorageFailed(str(error)) from None


def train_loop(values: dict[str, Any]) -> dict[str, float]:
    """Run `fine_tune` in a worker of Ray Train, from the newest checkpoint on.

    Args:
        values: `trial` (a `TrialConfig` as JSON), `folder` (path or URL of its checkpoints) and
            `final_split` (evaluated after the last step, or None).

    Returns:
        The last report.
    """
    from trainers.config import TrialConfig
    from trainers.fine_tune import fine_tune
    from trainers.loop.state import load_split, open_images

    config = TrialConfig.model_validate_json(values["trial"])
    folder, final_split = open_storage(values["folder"]), values["final_split"]
    device, metrics = ray.train.torch.get_device(), dict[str, float]()
    # Opening images copies them into the cache of this machine if they are not there. That may take
    # hours on one node while the others have them already. The barrier in `newest_on_this_node`,
    # which comes next, is Ray's and does not time out.
    open_images(config.data, config.data.id_domain, "train")
    for split in ("val", final_split):
        if split is not None:
            load_split(config, split)
    with newest_on_this_node(folder) as resume_from:
        for report in fine_tune(
            config, device=device, resume_from=resume_from, save_now=_PreemptionNotice(device)
        ):
            # A resumed run repeats its last report, which may contain the final split already.
            is_known = f"id_{final_split}/acc" in report.metrics
            if final_split is not None and report.step == config.steps and not is_known:
                report.add(report.run.evaluate(final_split, load_split(config, final_split)))
            metrics = report.metrics or metrics
            save_and_report(report, folder)
    return metrics


@contextmanager
def newest_on_this_node(folder: Store) -> Iterator[Path | None]:
    """Within the block, the newest checkpoint in a folder of this machine; None if there is none.

    All workers must enter it. The first one looks, so that all continue from the same checkpoint;
    the first one of each node fetches it.

    Raises:
        StorageFailed: the storage cannot be read.
    """
    from ray.train.collective import barrier, broadcast_from_rank_zero

    context, newest = ray.train.get_context(), None
    if context.get_world_rank() == 0:
        with storage_failures(folder.url, "the checkpoints cannot be read"):
            newest = newest_checkpoint(folder, resumable=True)
    newest = broadcast_from_rank_zero(newest)
    if newest is None:
        yield None
    elif folder.is_local:
        yield folder.local_path(newest)
    else:
        # Attempts at a trial have different names, so none finds what another left here.
        target = Path(tempfile.gettempdir()) / f"lipsum-tune-{context.get_experiment_name()}"
        try:
            if context.get_local_rank() == 0:
                fetch_checkpoint(folder.at(newest), target, (STATE, WEIGHTS))
            barrier()
            yield target
        finally:
            if context.get_local_rank() == 0:
                shutil.rmtree(target, ignore_errors=True)


class _PreemptionNotice:
    """True once for each node of the training that announces its end; for `save_now`.

    Ray's own check is a message to a process that all workers wait for, so it is made about once a
    second. The workers agree on the number of steps in between.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._known = device, set[str]()
        self._steps, self._interval, self._began = 0, 1, time.monotonic()

    def __call__(self) -> bool:
        from trainers.loop.distributed import averaged

        self._steps += 1
        if self._steps < self._interval:
            return False
        info = ray.train.get_preemption_info()
        now = time.monotonic()
        step_s = torch.tensor((now - self._began) / self._steps, device=self._device)
        self._interval = max(1, min(NOTICE_STEPS, round(NOTICE_S / float(averaged(step_s)))))
        self._steps, self._began = 0, now
        leaving = set(info.preempted_node_ids) if info is not None else set()
        is_new = not leaving <= self._known
        self._known |= leaving
        return is_new


def save_and_report(report: Report, folder: Store) -> None:
    """Write the checkpoint of a report into the storage, then report; all workers must call it.

    Raises:
        StorageFailed: the storage cannot be written, or the folder for temporary files is full.
    """
    name = None
    with saved_locally(report) as source:
        if ray.train.get_context().get_world_rank() == 0:
            name = write_checkpoint(folder, source)
    if report.metrics:
        ray.train.report({"step": report.step, **report.metrics})
    else:  # only saved; `TuneReports` ignores what has no "step"
        ray.train.report({"saved_step": report.step})
    # All workers have reported now, so none still reads the checkpoint that it continued from.
    if name is not None:
        remove_other_checkpoints(folder, name)


@contextmanager
def saved_locally(report: Report) -> Iterator[Path]:
    """Within the block, the checkpoint of a report in a temporary folder of the first worker."""
    with tempfile.TemporaryDirectory(prefix="lipsum-tune-", ignore_cleanup_errors=True) as name:
        try:
            report.save(Path(name))
        except (OSError, StorageFailed) as error:
            message = system_words(error) if isinstance(error, OSError) else str(error)
            raise StorageFailed(
                f"node {ray.util.get_node_ip_address()}: {message}; TMPDIR selects another folder "
                "for temporary files"
            ) from None
        yield Path(name)
