"""Averages of the training figures since the last report, and the cost of a run."""

from __future__ import annotations

import math
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import fmean

import torch
from torch import Tensor

from trainers.checkpoints.format import TrainCurve
from trainers.distributed import averaged
from trainers.errors import TrainingDiverged
from trainers.loop.training import Training

CHECK_EVERY = 10
"""Steps between two checks of the loss: each one waits for the GPU."""

CURVE_POINTS = 50
"""Limit of the points of a training curve between two reports, which are `CHECK_EVERY` steps or a
multiple of that apart."""

CURVE = ("train/loss", "train/lr", "train/images_per_s")
"""Columns of a training curve, beside `step`."""

LEAST_SCALE = 1e-4
"""Of losses in float16. The scaler halves it at each overflow, 65,536 at first; at less, the loss
itself is no longer finite."""


@dataclass(frozen=True)
class Mark:
    """A point of the training curve."""

    step: int
    lr: float
    """Of the last step."""
    seconds: float
    """Training time since the last report."""
    sums: Tensor
    """(6,) the figures of `Training.step`, summed over the steps since the last report."""


class Clock:
    """Measures what a training reports of itself and its cost, from when it begins or resumes.

    `gpus` are those of each worker, 0.5 if two trainings share one.
    """

    def __init__(self, training: Training, gpus: float = 0.0) -> None:
        self._training, self._setup = training, training.setup
        self._gpus = gpus
        every = self._setup.config.eval.every
        self._mark_every = CHECK_EVERY * math.ceil(every / (CHECK_EVERY * CURVE_POINTS))
        self._wall = time.perf_counter()
        self._cpu = time.process_time()
        self._used: list[int] = []
        self.restart()
        with suppress(OSError):  # the peak of a worker's earlier trials does not count
            Path("/proc/self/clear_refs").write_text("5")
        if self._setup.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._setup.device)

    def restart(self) -> None:
        """Begin to sum up after a report. What happened at the report is no training."""
        self._began = time.perf_counter()
        self._sums = torch.zeros(6, dtype=torch.float64, device=self._setup.device)
        self._marks = [self._mark()]

    def add(self, figures: Tensor) -> bool:
        """Add the figures (6,) of a step. Returned is whether the curve has a new point.

        Raises:
            TrainingDiverged: the loss is no longer a finite number.
        """
        self._sums += figures
        step, is_due = self._training.progress.step, self._training.is_due
        if is_due or step % CHECK_EVERY == 0:
            self._check()
        is_mark = is_due or step % self._mark_every == 0
        if is_mark:
            self._marks.append(self._mark())
            if self._setup.device.type == "cuda":
                # nvidia-ml-py may be missing, and the driver may refuse, as for a slice of a GPU.
                with suppress(Exception):
                    self._used.append(torch.cuda.utilization(self._setup.device))
        return is_mark

    def _check(self) -> None:
        """Raise TrainingDiverged if the loss is no longer a finite number; waits for the GPU."""
        is_finite = self._sums.isfinite().all() & (self._sums[4] > 0)
        if not (bool(is_finite) and self._training.scaler.get_scale() > LEAST_SCALE):
            step = self._training.progress.step
            raise TrainingDiverged(f"the training loss is not a finite number at step {step}")

    def _mark(self) -> Mark:
        """The point of the training curve at the last step, without a wait for the GPU."""
        seconds = time.perf_counter() - self._began
        training = self._training
        return Mark(training.progress.step, training.lr, seconds, self._sums.clone())

    def training(self) -> tuple[dict[str, float], TrainCurve]:
        """The figures at the last point, and the curve of all points since the last report.

        Each is a mean over the steps from the point before, or from the last report, and over all
        workers, each of which must call it. What overflowed in float16 does not count.
        """
        sums = averaged(torch.stack([mark.sums for mark in self._marks])).cpu()
        marks = [replace(own, sums=of_all) for own, of_all in zip(self._marks, sums, strict=True)]
        batch_size = self._setup.config.optim.batch_size
        points = [figures(before, mark, batch_size) for before, mark in pairwise(marks)]
        curve: TrainCurve = {"step": [mark.step for mark in marks[1:]]}
        for name in CURVE:  # six digits, enough for a chart and short in JSON
            curve[name] = [float(f"{point[name]:.6g}") for point in points]
        size = float(self._training.micro_batch_size)
        return points[-1] | {"train/micro_batch_size": size}, curve

    def cost(self) -> dict[str, float]:
        """Wall-clock, GPU and CPU seconds so far, those before a resume included, and memory.

        GPU and CPU seconds are those of all workers, without their processes that decode images; of
        half a GPU they are half as many. Evaluation seconds are those of this worker, as are the
        greatest memory that its process has used and that this run has used on its GPU, in 10^9
        bytes, and the percentage of time in which its GPU has computed.
        """
        progress, setup = self._training.progress, self._setup
        wall, process = time.perf_counter(), time.process_time()
        cpu = torch.tensor(process - self._cpu, dtype=torch.float64, device=setup.device)
        progress.seconds += wall - self._wall
        progress.gpu_seconds += (wall - self._wall) * setup.world_size * self._gpus
        progress.cpu_seconds += float(averaged(cpu)) * setup.world_size
        self._wall, self._cpu = wall, process
        cost = {
            "cost/seconds": progress.seconds,
            "cost/eval_seconds": progress.eval_seconds,
            "cost/gpu_seconds": progress.gpu_seconds,
            "cost/cpu_seconds": progress.cpu_seconds,
            "cost/memory_gb": peak_memory() / 1e9,
        }
        if setup.device.type == "cuda":
            cost["cost/gpu_memory_gb"] = torch.cuda.max_memory_allocated(setup.device) / 1e9
        if self._used:
            cost["cost/gpu_util"] = fmean(self._used)
        return cost


def figures(before: Mark, mark: Mark, batch_size: int) -> dict[str, float]:
    """The means over the steps between two points; if no loss of these counts, over all steps."""
    sums = mark.sums - before.sums
    if not sums[4]:
        sums = mark.sums
    loss, task_loss, reg = (sums[:3] / sums[4]).tolist()
    images = (mark.step - before.step) * batch_size
    return {
        "train/loss": loss,
        "train/lr": mark.lr,
        "train/images_per_s": images / (mark.seconds - before.seconds),
        "train/task_loss": task_loss,
        "train/reg": reg,
        "train/grad_norm": float(sums[3] / sums[5].clamp(min=1)),
    }


def peak_memory() -> int:
    """Bytes of the greatest memory that this process has used."""
    peak = getrusage(RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB
