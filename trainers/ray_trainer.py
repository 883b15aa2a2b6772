"""A Ray Train `TorchTrainer` around `fine_tune`: workers, checkpoints, reports.

The only module of this package that imports Ray. Between a trial and its trainer there is little:
the trial is one JSON text, its checkpoints lie in one folder, and its reports reach the search
through `trainers.exchange`. Workers find the newest checkpoint in the folder whenever they start,
be it for a new attempt or after a lost node.

The process of a slot imports this module before a worker does, so it imports neither open_clip nor
the training loop at its top.
"""

from __future__ import annotations

import gc
import os
import secrets
import socket
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.collective import barrier, broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer

from trainers.checkpoints.format import STATE, WEIGHTS
from trainers.checkpoints.storage import (
    fetch_checkpoint,
    newest_checkpoint,
    remove_other_checkpoints,
    write_checkpoint,
)
from trainers.data.store import Store, open_store
from trainers.errors import (
    FULL,
    StorageFailed,
    TrainingDiverged,
    first_line,
    storage_failures,
    system_error,
)
from trainers.exchange import Answer, Failed, Reported, Request, Withdrawn
from trainers.folders import temporary_folder
from trainers.hang import ends_if_it_hangs, pause
from trainers.process_state import restored_state
from trainers.redact import redact

if TYPE_CHECKING:
    from trainers.checkpoints.format import TrainCurve
    from trainers.config import TrialConfig
    from trainers.fine_tune import Report
    from trainers.loop.setup import KeptModel

CONTEXT_BYTES = 600 * 2**20
"""GPU memory that the CUDA context of a process takes, approximately. PyTorch does not count it."""

WORKER_POLL_S = 0.2
"""Interval at which Ray's controller looks at its workers; with its default of 2 s, the end of a
training is noticed late."""

COLLECTIVE_TIMEOUT_S = 1200
"""Time after which workers that wait for another one in a collective operation fail. Filling the
cache of images may take hours, but happens before the first such operation."""

FETCHED = "lipsum-tune-fetched-"
"""Prefix of the temporary folder of a checkpoint to continue from."""

WORKER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(WORKER_POLL_S),
    "RAY_TRAIN_V2_ENABLED": "1",
}
"""Environment that a job of Ray needs for its trainers."""


class _NoProcessGroup(Backend):
    """Of a worker that is alone, and has nobody to listen to."""

    share_cuda_visible_devices = True  # as Ray's own backend for PyTorch


class _AloneConfig(TorchConfig):
    backend_cls = _NoProcessGroup


class _ClosedProcessGroup(TorchConfig().backend_cls):  # type: ignore[misc]  # no public name
    """Ray's backend for PyTorch, with a store that listens on the address of its node alone.

    By default PyTorch 2.13 listens on all interfaces, and anyone who reaches the store can write.
    """

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        on_gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        group = {
            "backend": "nccl" if on_gpu else "gloo",
            "world_size": len(worker_group),
            "timeout": timedelta(seconds=backend_config.timeout_s),
        }
        host, port, listener = worker_group.execute_single(0, _listen)
        joins = [
            worker_group.execute_single_async(rank, _join, host, port, listener, rank, group)
            for rank in range(len(worker_group))
        ]
        ray.get(joins)


class _ClosedConfig(TorchConfig):
    backend_cls = _ClosedProcessGroup


def _listen() -> tuple[str, int, int]:
    """Host, port and file descriptor of a new socket on the address that Ray has for this node."""
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    return host, listener.getsockname()[1], listener.detach()


def _join(host: str, port: int, listener: int, rank: int, group: dict[str, Any]) -> None:
    """Enter the process group of the workers, whose store has the socket of `_listen`."""
    if host in ("127.0.0.1", "::1"):  # the name of the machine may have another address
        for _, name in socket.if_nameindex():
            if name in ("lo", "lo0"):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
                os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
    if "TORCH_NCCL_BLOCKING_WAIT" not in os.environ:  # as Ray's own backend
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host,
        port,
        group["world_size"],
        is_master=rank == 0,
        timeout=group["timeout"],
        master_listen_fd=listener if rank == 0 else None,
    )
    dist.init_process_group(store=store, rank=rank, **group)


def torch_trainer(
    loop: Callable[[dict[str, Any]], Any],
    values: Mapping[str, Any],
    *,
    name: str,
    scratch: Path,
    workers: int = 1,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
) -> TorchTrainer:
    """A trainer whose workers run a loop; `fit()` starts them.

    Args:
        name: of Ray Train's run; unique to the attempt.
        scratch: folder on this machine for the files of Ray Train's run, which nothing reads.
        workers: as all other resources, see `tuning.config.schema.ResourcesConfig`.
    """
    resources = {"CPU": cpus_per_worker}
    if gpus_per_worker:
        resources["GPU"] = gpus_per_worker
    return TorchTrainer(
        loop,
        torch_config=_AloneConfig()
        if workers == 1
        else _ClosedConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        train_loop_config=dict(values),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(scratch),
            # The driver decides which failures are worth another attempt.
            failure_config=FailureConfig(max_failures=0),
        ),
    )


def location(folder: Store) -> str:
    """Path or URL by which workers open the same folder."""
    return folder.root if folder.is_local else folder.url


def serve(values: dict[str, Any]) -> None:
    """Run the trials that a slot of a search asks for, report by report, until it asks for no more.

    The workers start a trial as they started the first one, see `process_state`, and do not go on
    behind a report before the slot has asked for the next. A diverged trial ends without harm to
    the process, and a worker that is alone leaves a trial that the slot has stopped. Any other
    error ends the workers, and so does a hang, see `trainers.hang`.

    `values` are `exchange`, the handle of an actor of `trainers.exchange.Exchange`, and
    `hang_after_s`.
    """
    from trainers.loop.setup import KeptModel

    import_module("trainers.fine_tune")  # before the state of the process is recorded
    kept = KeptModel()
    # Frozen objects are left out of garbage collections, such as the one after each trial.
    gc.freeze()
    exchange = values["exchange"]
    with ends_if_it_hangs(values["hang_after_s"]), _told_to_the_search():
        request = _next_request(exchange)
        while request.trial is not None:
            request = _serve_trial(exchange, request, request.trial, kept)


def _next_request(exchange: Any) -> Request:
    """What the slot asks of all workers; it may take a while."""
    is_first = ray.train.get_context().get_world_rank() == 0
    asked = ray.get(exchange.next_request.remote()) if is_first else None
    request: Request = broadcast_from_rank_zero(asked)
    return request


def _serve_trial(exchange: Any, request: Request, trial: str, kept: KeptModel) -> Request:
    """Answer requests for the reports of a trial, and return the first one that is for another."""
    from trainers.config import TrialConfig
    from trainers.methods.registry import use_texts

    context = ray.train.get_context()
    is_first = context.get_world_rank() == 0
    is_alone = context.get_world_size() == 1
    folder, is_over = request.folder, False
    use_texts(request.plugins)
    config = TrialConfig.model_validate_json(trial)
    if request.micro_batch_size is not None:
        config = with_micro_batch_size(config, request.micro_batch_size)

    def note_progress(train_curve: TrainCurve) -> None:
        if is_first and not ray.get(exchange.set_progress.remote(request, train_curve)):
            raise Withdrawn

    with restored_state():
        fill_cache(config, request.final_split)
        training = train(config, open_store(folder), request.final_split, note_progress, kept)
        with closing(training) as reports:
            while not is_over and request.folder == folder:
                answer: Answer | None = None
                try:
                    answer = _next_answer(reports)
                except (TrainingDiverged, Withdrawn) as error:
                    if not is_alone:  # others may still wait for this worker
                        raise
                    if isinstance(error, TrainingDiverged):
                        answer = Failed(redact(f"TrainingDiverged: {error}"))
                pause()  # until the slot asks for more
                if is_first and answer is not None:
                    ray.get(exchange.answer.remote(request, answer))
                is_over = not isinstance(answer, Reported) or answer.is_last
                if not is_over:
                    request = _next_request(exchange)
    # A trial that is over is gone before the search judges it, and one that early stopping has
    # ended before its last step once the next one is asked for.
    return _next_request(exchange) if is_over else request


def fill_cache(config: TrialConfig, final_split: str | None) -> None:
    """Copy all images of a trial into the cache of this machine, if they are not there.

    It may take hours on one node while others have them. These wait at a barrier of Ray, which does
    not time out.
    """
    from trainers.loop.images import load_split, open_images

    open_images(config.data, config.data.id_domain, "train")
    load_split(config, "val")
    if final_split is not None:
        load_split(config, final_split)
    if ray.train.get_context().get_world_size() > 1:
        barrier()


@contextmanager
def _told_to_the_search() -> Iterator[None]:
    """Within the block, errors carry what they lose when Ray pickles them: traceback and cause.

    The traceback is their attribute `worker_traceback`. A full disk that is the cause, such as one
    of the cache of images, is a `StorageFailed`.
    """
    try:
        yield
    except Exception as error:
        cause = system_error(error)
        if isinstance(error, StorageFailed) or cause is None or cause.errno not in FULL:
            with suppress(Exception):  # of a class that takes no attributes
                error.worker_traceback = traceback.format_exc()  # type: ignore[attr-defined]
            raise
        node = ray.util.get_node_ip_address()
        raise StorageFailed(f"node {node}: {first_line(error)}") from None


def _next_answer(reports: Iterator[Report]) -> Reported:
    """The metrics of the next report. Nothing refers to the run afterwards, so it can be freed."""
    report = next(reports)
    metrics = {"step": report.step, **report.metrics}
    return Reported(metrics, report.train_curve, is_last=report.is_last)


def train(
    config: TrialConfig,
    folder: Store,
    final_split: str | None = None,
    on_progress: Callable[[TrainCurve], object] | None = None,
    kept: KeptModel | None = None,
) -> Generator[Report]:
    """Run `fine_tune` from the newest checkpoint on, and yield its reports once they are saved."""
    from trainers.data.config import MOST_LOADERS
    from trainers.fine_tune import fine_tune
    from trainers.loop.images import load_split

    device = ray.train.torch.get_device()
    limit_gpu_memory(device)
    if config.data.workers == "auto" and device.type == "cuda":
        # PyTorch has fewer threads than the worker has CPUs where OMP_NUM_THREADS is exported.
        cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))
        data = config.data.model_copy(update={"workers": min(MOST_LOADERS, max(1, cpus))})
        config = config.model_copy(update={"data": data})
    gpus = _reserved_gpus() or 1.0
    with newest_on_this_node(folder) as resume_from:
        reports = fine_tune(
            config,
            device=device,
            resume_from=resume_from,
            gpus=gpus,
            on_progress=on_progress,
            kept=kept,
        )
        for report in reports:
            # A resumed run repeats its last report, which may contain the final split already.
            is_known = f"id_{final_split}/acc" in report.metrics
            if final_split is not None and report.is_last and not is_known:
                save(report, folder)  # a kill during the evaluation costs no training
                report = report.tested(load_split(config, final_split))
            save(report, folder)
            yield report
            del report  # its weights may be a copy


def with_micro_batch_size(config: TrialConfig, images: int) -> TrialConfig:
    """The configuration with at most so many images at once."""
    given = config.optim.micro_batch_size
    size = images if given is None else min(given, images)
    optim = config.optim.model_copy(update={"micro_batch_size": size})
    return config.model_copy(update={"optim": optim})


def task_device() -> torch.device:
    """The GPU that this Ray task has reserved, or the CPU if it has reserved none.

    A task without a GPU sees the GPUs of its node all the same (Ray 2.60), while trials without
    GPUs train on the CPU.
    """
    device = torch.device("cuda", 0) if _reserved_gpus() else torch.device("cpu")
    limit_gpu_memory(device)
    return device


def limit_gpu_memory(device: torch.device) -> None:
    """Keep this process within its share of a GPU, if it has reserved a fraction of one.

    Without a limit, the trial that starts first may take all of the memory, and the next one fails.
    """
    if device.type == "cuda" and 0 < (share := _reserved_gpus()) < 1:
        total = torch.cuda.get_device_properties(device).total_memory
        allowed = max(0.0, share - CONTEXT_BYTES / total)
        torch.cuda.set_per_process_memory_fraction(allowed, device)


def _reserved_gpus() -> float:
    """Number of GPUs that Ray has given to this process, such as 0.5."""
    return float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0))


@contextmanager
def newest_on_this_node(folder: Store) -> Iterator[Path | None]:
    """Within the block, the newest checkpoint in a folder of this machine; None if there is none.

    All workers must enter it. The first one looks, so that all continue from the same checkpoint;
    the first one of each node fetches it.
    """
    context = ray.train.get_context()
    newest = None
    if context.get_world_rank() == 0:
        with storage_failures(folder.url, "the checkpoints cannot be read"):
            newest = newest_checkpoint(folder, resumable=True)
    newest, unique = broadcast_from_rank_zero((newest, secrets.token_hex(4)))
    if newest is None:
        yield None
    elif folder.is_local:
        yield folder.local_path(newest)
    else:
        # A name that is new and, on a disk that nodes share, differs between them.
        name = f"{unique}-{context.get_node_rank()}"
        with ExitStack() as stack:
            if context.get_local_rank() == 0:
                target = stack.enter_context(temporary_folder(FETCHED, name=name))
                fetch_checkpoint(folder.at(newest), target, (STATE, WEIGHTS))
            barrier()
            yield Path(tempfile.gettempdir()) / f"{FETCHED}{name}"


def save(report: Report, folder: Store) -> None:
    """Write the checkpoint of a report into the storage; all workers must call it."""
    name = None
    if ray.train.get_context().get_world_rank() == 0:
        try:
            name = write_checkpoint(folder, report.save)
        except StorageFailed as error:
            raise StorageFailed(f"node {ray.util.get_node_ip_address()}: {error}") from None
    barrier()  # none still reads the checkpoint that it continued from
    if name is not None:
        remove_other_checkpoints(folder, name)
