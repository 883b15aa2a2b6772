"""Short real trials on the real machine, timed: the figures that an estimate rests on.

A probe is a trial like any other, a `TorchTrainer` driven by a process of its own, so that whatever
makes a trial's start slow is in it: three kinds of processes, their imports, the model, the first
look at every image. What a trial takes beyond its steps, evaluations and checkpoints is its
start-up; nothing of it need be known by name. As many probes run side by side as the search will
have trials at once (up to `MAX_PROBES`), because trials get into each other's way.

The images are opened once before anything is timed: a machine fills its cache of Arrow files for
its first trial only, which may take longer than the trial, and the probes have then done it.

Of this module the workers of a probe read all, so it imports little, as `torch_trainer` does.
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
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.torch
from ray.train.collective import barrier, broadcast_from_rank_zero

from trainers.checkpoints.format import WEIGHTS
from trainers.checkpoints.storage import newest_checkpoint
from trainers.data.storage import Store
from trainers.errors import ConfigError
from trainers.ray_trainer import open_storage, save_and_report
from tuning.execution.retries import fit
from tuning.execution.trainable import driver_options
from tuning.planning.step_timing import StepWatch

if TYPE_CHECKING:
    from trainers.config import TrialConfig
    from trainers.fine_tune import Report

LIMIT_S = 120.0
"""Where evaluations are long, no further interval is begun after this time, but two are done."""
MAX_PROBES = 4


@dataclass(frozen=True)
class Probe:
    """What was measured; times in seconds, over all probes that ran side by side."""

    device: str
    """Name of the GPU or CPU."""
    startup_s: float
    """What a trial takes beyond its steps, evaluations and checkpoints; the mean of the probes."""
    cache_s: float
    """Opening the images before that: what it takes a machine once to fill its cache of them."""
    load_s: float
    """Of the start-up, imports, model and images in the worker."""
    first_eval_s: float
    """The first evaluation, which decodes the images."""
    step_s: float
    """Median of the intervals' means."""
    step_spread: float
    """Standard deviation of the intervals' means over their mean."""
    samples: int
    """Intervals measured."""
    eval_s: float
    """Median, the first ones left out."""
    save_s: float
    """Median time to write a checkpoint and hand it over with the report."""
    checkpoint_bytes: int
    """With the optimiser's state."""
    weights_bytes: int
    """Without it."""
    memory_bytes: int
    """Peak resident memory of a trial: its workers, and the two processes that drive them."""
    gpu_memory_bytes: int
    """Peak that PyTorch reserved on the GPU of the first worker; 0 on CPUs."""
    gpu_total_bytes: int
    """What that GPU has; 0 on CPUs."""


def probe_trials(trial: str, resources: Mapping[str, Any], folder: Path, probes: int) -> Probe:
    """Run `probes` short trials side by side on the connected Ray cluster.

    Args:
        trial: a `TrialConfig` as JSON, `overrides` laid over it.
        resources: as of `tuning.execution.retries.fit`.
        folder: for their checkpoints; every node reaches it.
        probes: no more than fit into the cluster at once.

    Raises:
        ConfigError: the trial fails.
    """
    task = ray.remote(num_cpus=0, max_retries=0, **driver_options())(_drive)
    began = time.perf_counter()
    running = {}
    for number in range(probes):
        name = f"probe-{number}"
        # An environment of its own: as for a trial, no process stands ready that would fit.
        fresh = task.options(runtime_env={"env_vars": {"LIPSUM_TUNE_PROBE": name}})
        running[fresh.remote(trial, name, folder, dict(resources))] = name
    timings: list[dict[str, Any]] = []
    while running:
        (ready, *_), _ = ray.wait(list(running))
        del running[ready]
        try:
            measured: dict[str, Any] = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            for other in running:
                ray.cancel(other)
            raise ConfigError(f"trial: it fails on this machine: {_last_line(error)}") from error
        timings.append(measured | {"seconds": time.perf_counter() - began})
    return summarise(timings, int(resources["workers"]))


def summarise(timings: Sequence[Mapping[str, Any]], workers: int) -> Probe:
    """The figures of probes that ran side by side."""
    steps = [s for timing in timings for s in timing["steps_s"][1:]]
    evals = [s for timing in timings for s in timing["evals_s"][1:]]
    save_s = statistics.median(s for timing in timings for s in timing["saves_s"])
    step_s, eval_s = statistics.median(steps), statistics.median(evals)

    def startup(timing: Mapping[str, Any]) -> float:
        steps_s = sum(timing["intervals_s"]) - load(timing)
        others_s = len(timing["intervals_s"]) * (eval_s + save_s)
        return timing["seconds"] - timing["cache_s"] - steps_s - others_s

    def load(timing: Mapping[str, Any]) -> float:
        return timing["intervals_s"][0] - timing["interval_steps"] * step_s

    first = timings[0]
    return Probe(
        device=first["device"],
        startup_s=max(0.0, statistics.fmean(map(startup, timings))),
        cache_s=max(timing["cache_s"] for timing in timings),
        load_s=max(0.0, statistics.fmean(map(load, timings))),
        first_eval_s=statistics.fmean(timing["evals_s"][0] for timing in timings),
        step_s=step_s,
        step_spread=statistics.stdev(steps) / statistics.fmean(steps) if len(steps) > 1 else 0.0,
        samples=len(steps),
        eval_s=eval_s,
        save_s=save_s,
        checkpoint_bytes=first["checkpoint_bytes"],
        weights_bytes=first["weights_bytes"],
        # Tune's process and Ray Train's controller import the same, so they are as large.
        memory_bytes=max(workers * t["memory_bytes"] + 2 * t["driver_bytes"] for t in timings),
        gpu_memory_bytes=max(timing["gpu_memory_bytes"] for timing in timings),
        gpu_total_bytes=first["gpu_total_bytes"],
    )


def _drive(config: str, name: str, folder: Path, resources: dict[str, Any]) -> dict[str, Any]:
    """In Tune's place: drive one trial and wait for it."""
    timing = fit(config, name=name, storage_path=folder, loop=_probe_loop, resources=resources)
    return {**timing, "driver_bytes": _peak_memory()}


def _probe_loop(values: dict[str, Any]) -> dict[str, Any]:
    """What `trainers.ray_trainer.train_loop` does, with a clock beside it."""
    began = time.perf_counter()
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from trainers.config import TrialConfig
    from trainers.fine_tune import fine_tune

    config = TrialConfig.model_validate_json(values["trial"])
    folder = open_storage(values["folder"])
    device = ray.train.torch.get_device()
    cache_s = _open_images(config)
    began += cache_s
    watch = StepWatch(config.data.workers, device, began)
    register_optimizer_step_post_hook(watch)
    timing: dict[str, Any] = {"device": _name(device), "interval_steps": config.eval.every}
    timing |= {"cache_s": cache_s, "intervals_s": [], "steps_s": [], "evals_s": [], "saves_s": []}
    for report in fine_tune(config, device=device):
        reported = time.perf_counter()
        eval_s = report.metrics["cost/eval_seconds"] - sum(timing["evals_s"])
        timing["evals_s"].append(eval_s)
        timing["intervals_s"].append(reported - eval_s - watch.began)
        timing["steps_s"].append(watch.step_s(reported - eval_s))
        gpu = device.type == "cuda"
        timing |= {
            "memory_bytes": _peak_memory(),
            "gpu_memory_bytes": torch.cuda.max_memory_reserved(device) if gpu else 0,
            "gpu_total_bytes": torch.cuda.mem_get_info(device)[1] if gpu else 0,
        }
        _save(report, folder, timing)
        resumed = time.perf_counter()
        timing["saves_s"].append(resumed - reported)
        late = resumed - began > LIMIT_S and len(timing["saves_s"]) > 1
        if broadcast_from_rank_zero(late):
            break
        watch.restart(time.perf_counter())
    return timing


def _open_images(config: TrialConfig) -> float:
    """Have the machines of all workers fill their caches; returns the seconds that it took."""
    from trainers.loop.state import load_split, open_images

    began = time.perf_counter()
    open_images(config.data, config.data.id_domain, "train")
    load_split(config, "val")
    barrier()
    return time.perf_counter() - began


def _save(report: Report, folder: Store, timing: dict[str, Any]) -> None:
    """Save and report as a trial does; the first worker adds the sizes of the files to `timing`."""
    save_and_report(report, folder)
    if ray.train.get_context().get_world_rank() == 0:
        files = {info.base_name: info.size for info in folder.list(newest_checkpoint(folder) or "")}
        timing["checkpoint_bytes"] = sum(size for size in files.values() if size)
        timing["weights_bytes"] = files[WEIGHTS]


def _peak_memory() -> int:
    """Of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _name(device: Any) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
