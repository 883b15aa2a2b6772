"""Short real trials on the real machine, timed: the measurements that an estimate is made from.

A probe is a trial like any other, a `TorchTrainer` with a driver process of its own, so it includes
everything that makes the start of a trial slow. As many probes run side by side as the search will
run trials at once (up to `MAX_PROBES`), because trials slow each other down.

The images are opened once before anything is timed: a machine fills its cache of Arrow files for
its first trial only, which may take longer than the trial.

The workers of a probe import this module, so it imports little, like `trainers.ray_trainer`.
"""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.collective import barrier, broadcast_from_rank_zero

from trainers.checkpoints.format import WEIGHTS
from trainers.checkpoints.storage import newest_checkpoint
from trainers.errors import ConfigError
from trainers.ray_trainer import limit_gpu_memory, open_storage, save
from tuning.config.schema import ResourcesConfig
from tuning.execution.cluster_resources import DRIVER
from tuning.execution.retries import TrainingDriver
from tuning.execution.tasks import run_tasks

WARM_UP_STEPS, TIMED_STEPS = 5, 5
"""Steps between two evaluations. The first ones may use batches that were decoded ahead."""
INTERVALS = 4
"""Each ends with an evaluation and a checkpoint; the first one is not measured."""
OVERRIDES = {
    "steps": INTERVALS * (WARM_UP_STEPS + TIMED_STEPS),
    "eval.every": WARM_UP_STEPS + TIMED_STEPS,
    "eval.rung_images": 0,
    "eval.line": "off",
}
"""What a probe changes of the base trial."""
LIMIT_S = 120.0
"""No further interval begins after this time, but two are always done."""
MAX_PROBES = 4


@dataclass(frozen=True)
class Probe:
    """Measurements, in seconds, over all probes that ran side by side."""

    device: str
    """Name of the GPU or CPU."""
    startup_s: float
    """Mean duration of a trial without its steps, evaluations and checkpoints, in processes of its
    own: what the first trial of each slot waits for."""
    restart_s: float
    """Mean time in which kept workers start a further trial."""
    cache_s: float
    """Time in which a machine fills its cache of images, once."""
    load_s: float
    """Part of `startup_s`: imports, model and images in the worker."""
    first_eval_s: float
    """The first evaluation, which decodes the images."""
    step_s: float
    """Median over the intervals."""
    step_spread: float
    """Standard deviation over the intervals, relative to their mean."""
    eval_s: float
    """Median of evaluations of all images, without the first one."""
    val_images: tuple[int, ...]
    """Number of validation images of each domain."""
    view_bytes: int
    """Memory of one decoded evaluation image."""
    save_s: float
    """Median time to write a checkpoint and report it."""
    checkpoint_bytes: int
    """With the optimiser's state."""
    weights_bytes: int
    """Without it."""
    memory_bytes: int
    """Peak resident memory of a trial's workers."""
    head_bytes: int
    """Peak resident memory of a trial's driver, which runs on the head."""
    gpu_memory_bytes: int
    """Peak that PyTorch reserved on the GPU of the first worker; 0 on CPUs."""
    gpu_total_bytes: int
    """Memory of that GPU; 0 on CPUs."""


def probe_trials(trial: str, resources: ResourcesConfig, folder: Path, probes: int) -> Probe:
    """Run short trials side by side on the connected Ray cluster.

    Args:
        trial: a `TrialConfig` as JSON, with `OVERRIDES`.
        folder: for their checkpoints; every node reaches it.
        probes: no more than fit into the cluster at once.

    Raises:
        ConfigError: the trial fails.
    """
    driver: Any = ray.remote(num_cpus=0, resources=DRIVER)(_Driver)
    began = time.perf_counter()
    timings: list[dict[str, Any]] = []

    def submit(number: int) -> Any:
        name = f"probe-{number}"
        # Its own environment, so that it starts a fresh process as a trial does.
        fresh = driver.options(runtime_env={"env_vars": {"LIPSUM_TUNE_PROBE": name}})
        return fresh.remote().fit.remote(
            trial, name=name, storage_path=folder, loop=_probe_loop, resources=resources
        )

    def on_end(_: int, ended: Any) -> None:
        try:
            measured: dict[str, Any] = ray.get(ended)
        except ray.exceptions.RayTaskError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[-1] if lines else type(error).__name__
            raise ConfigError(f"trial: it fails on this machine: {reason}") from error
        timings.append(measured | {"seconds": time.perf_counter() - began})

    run_tasks(range(probes), submit, on_end, at_once=probes)
    return summarise(timings, resources.workers)


def summarise(timings: Sequence[Mapping[str, Any]], workers: int) -> Probe:
    """Combine the measurements of probes that ran side by side."""
    steps = [s for timing in timings for s in timing["steps_s"][1:]]
    save_s = statistics.median(s for timing in timings for s in timing["saves_s"])
    step_s = statistics.median(steps)
    eval_s = statistics.median(s for timing in timings for s in timing["evals_s"][1:])
    interval_s = (WARM_UP_STEPS + TIMED_STEPS) * step_s
    startups = [
        # Everything but the cache, the intervals after the first one as long as they really took,
        # and the first one as long as it usually takes.
        t["seconds"] - t["cache_s"] - t["later_s"] - (interval_s + eval_s + save_s)
        for t in timings
    ]
    first = timings[0]
    return Probe(
        device=first["device"],
        startup_s=max(0.0, statistics.fmean(startups)),
        restart_s=statistics.fmean(timing["restart_s"] for timing in timings),
        cache_s=max(timing["cache_s"] for timing in timings),
        load_s=max(0.0, statistics.fmean(t["first_s"] for t in timings) - interval_s),
        first_eval_s=statistics.fmean(timing["evals_s"][0] for timing in timings),
        step_s=step_s,
        step_spread=statistics.stdev(steps) / statistics.fmean(steps) if len(steps) > 1 else 0.0,
        eval_s=eval_s,
        val_images=tuple(first["val_images"]),
        view_bytes=first["view_bytes"],
        save_s=save_s,
        checkpoint_bytes=first["checkpoint_bytes"],
        weights_bytes=first["weights_bytes"],
        memory_bytes=workers * max(timing["memory_bytes"] for timing in timings),
        head_bytes=max(timing["driver_bytes"] for timing in timings),
        gpu_memory_bytes=max(timing["gpu_memory_bytes"] for timing in timings),
        gpu_total_bytes=first["gpu_total_bytes"],
    )


class _Driver(TrainingDriver):
    def fit(self, config: str, **options: Any) -> dict[str, Any]:
        return {**super().fit(config, **options), "driver_bytes": _peak_memory()}


def _probe_loop(values: dict[str, Any]) -> dict[str, Any]:
    """Run `fine_tune` in a worker as `trainers.ray_trainer.train_loop` does, and time it."""
    began = time.perf_counter()
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from trainers.config import TrialConfig
    from trainers.fine_tune import fine_tune
    from trainers.loop.state import load_split, open_images, start

    config = TrialConfig.model_validate_json(values["trial"])
    folder = open_storage(values["folder"])
    device = ray.train.torch.get_device()
    limit_gpu_memory(device)
    opening = time.perf_counter()
    open_images(config.data, config.data.id_domain, "train")
    held_out = load_split(config, "val")
    barrier()
    cache_s = time.perf_counter() - opening
    began += cache_s

    marks: list[float] = []  # times after the warm-up and after the last step of each interval
    num_steps = 0

    def after_step(*_: object) -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps % (WARM_UP_STEPS + TIMED_STEPS) in (WARM_UP_STEPS, 0):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            marks.append(time.perf_counter())

    register_optimizer_step_post_hook(after_step)
    steps_s: list[float] = []
    evals_s: list[float] = []
    saves_s: list[float] = []
    ends: list[float] = []
    for report in fine_tune(config, device=device):
        reported = time.perf_counter()
        steps_s.append((marks[-1] - marks[-2]) / TIMED_STEPS)
        evals_s.append(report.metrics["cost/eval_seconds"] - sum(evals_s))
        save(report, folder)
        ends.append(time.perf_counter())
        saves_s.append(ends[-1] - reported)
        late = ends[-1] - began > LIMIT_S and len(ends) > 1
        if broadcast_from_rank_zero(late):
            break
    del report  # and with it the model
    restarting = time.perf_counter()
    image_size = start(config, device=device).zero_shot.image_input.size
    restart_s = time.perf_counter() - restarting
    gpu = device.type == "cuda"
    files = {info.base_name: info.size for info in folder.list(newest_checkpoint(folder) or "")}
    return {
        "device": torch.cuda.get_device_name(device) if gpu else _cpu_name(),
        "cache_s": cache_s,
        "first_s": marks[1] - began,
        "later_s": ends[-1] - ends[0],
        "restart_s": restart_s,
        "steps_s": steps_s,
        "evals_s": evals_s,
        "val_images": [len(images) for images in held_out.values()],
        "view_bytes": 3 * image_size**2,
        "saves_s": saves_s,
        "memory_bytes": _peak_memory(),
        "gpu_memory_bytes": torch.cuda.max_memory_reserved(device) if gpu else 0,
        "gpu_total_bytes": torch.cuda.mem_get_info(device)[1] if gpu else 0,
        "checkpoint_bytes": sum(size for size in files.values() if size),
        "weights_bytes": files[WEIGHTS],
    }


def _peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
