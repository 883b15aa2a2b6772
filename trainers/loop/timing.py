"""Averages of the training figures since the last report, and the cost of a run."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import fmean

import torch
from torch import Tensor

from trainers.checkpoints.format import TrainCurve
from trainers.distributed import averaged
from trainers.errors import TrainingDiverged
from trainers.loop.state import TrainState

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
    """(6,) the figures of `Stepper.step`, summed over the steps since the last report."""


class Clock:
    """Measures what a run reports of its training and its cost, from when it begins or resumes.

    `gpus` are those of each worker, 0.5 if two trainings share one.
    """

    def __init__(self, run: TrainState, gpus: float = 0.0) -> None:
        self.run = run
        self._gpus = gpus
        self._wall = time.perf_counter()
        self._cpu = time.process_time()
        self._used: list[int] = []
        self.restart()
        with suppress(OSError):  # the peak of a worker's earlier trials does not count
            Path("/proc/self/clear_refs").write_text("5")
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)

    def restart(self) -> None:
        """Begin to sum up after a report. What happened at the report is no training."""
        self._began = time.perf_counter()
        self._since = self.run.progress.step
        self._sums = torch.zeros(6, dtype=torch.float64, device=self.run.device)
        self._marks: list[Mark] = []

    def add(self, figures: Tensor) -> None:
        """Add the figures (6,) of a step."""
        self._sums += figures

    def check(self) -> None:
        """Raise TrainingDiverged if the loss is no longer a finite number; waits for the GPU."""
        is_finite = self._sums.isfinite().all() & (self._sums[4] > 0)
        if not (bool(is_finite) and self.run.scaler.get_scale() > LEAST_SCALE):
            step = self.run.progress.step
            raise TrainingDiverged(f"the training loss is not a finite number at step {step}")

    def mark(self, lr: float) -> None:
        """Note a point of the training curve, without a wait for the GPU."""
        seconds = time.perf_counter() - self._began
        self._marks.append(Mark(self.run.progress.step, lr, seconds, self._sums.clone()))
        if self.run.device.type == "cuda":
            # nvidia-ml-py may be missing, and the driver may refuse, as for a slice of a GPU (MIG).
            with suppress(Exception):
                self._used.append(torch.cuda.utilization(self.run.device))

    def training(self) -> tuple[dict[str, float], TrainCurve]:
        """The figures at the last mark, and the curve of all marks since the last report.

        Each is a mean over the steps from the mark before, or from the last report, and over all
        workers, each of which must call it. What overflowed in float16 does not count.
        """
        batch_size = self.run.config.optim.batch_size
        sums = averaged(torch.stack([mark.sums for mark in self._marks])).cpu()
        curve: TrainCurve = {"step": [], "train/loss": [], "train/lr": [], "train/images_per_s": []}
        before = Mark(self._since, 0.0, 0.0, sums.new_zeros(6))
        for own, of_all in zip(self._marks, sums, strict=True):
            mark = replace(own, sums=of_all)
            of_steps = mark.sums - before.sums
            if not of_steps[4]:  # no loss since the mark before counts
                of_steps = mark.sums
            loss, task_loss, reg = (of_steps[:3] / of_steps[4]).tolist()
            grad_norm = float(of_steps[3] / of_steps[5].clamp(min=1))
            images = (mark.step - before.step) * batch_size
            point = {
                "train/loss": loss,
                "train/lr": mark.lr,
                "train/images_per_s": images / (mark.seconds - before.seconds),
            }
            curve["step"].append(mark.step)
            for name, value in point.items():  # six digits, enough for a chart and short in JSON
                curve[name].append(float(f"{value:.6g}"))
            before = mark
        more = {"train/task_loss": task_loss, "train/reg": reg, "train/grad_norm": grad_norm}
        more["train/micro_batch_size"] = float(self.run.micro_batch_size)
        return point | more, curve

    def cost(self) -> dict[str, float]:
        """Wall-clock, GPU and CPU seconds so far, those before a resume included, and memory.

        GPU and CPU seconds are those of all workers, without their processes that decode images; of
        half a GPU they are half as many. Evaluation seconds are those of this worker, as are the
        greatest memory that its process has used and that this run has used on its GPU, in 10^9
        bytes, and the percentage of time in which its GPU has computed.
        """
        progress = self.run.progress
        wall, process = time.perf_counter(), time.process_time()
        cpu = torch.tensor(process - self._cpu, dtype=torch.float64, device=self.run.device)
        progress.seconds += wall - self._wall
        progress.gpu_seconds += (wall - self._wall) * self.run.world_size * self._gpus
        progress.cpu_seconds += float(averaged(cpu)) * self.run.world_size
        self._wall, self._cpu = wall, process
        cost = {
            "cost/seconds": progress.seconds,
            "cost/eval_seconds": progress.eval_seconds,
            "cost/gpu_seconds": progress.gpu_seconds,
            "cost/cpu_seconds": progress.cpu_seconds,
            "cost/memory_gb": peak_memory() / 1e9,
        }
        if self.run.device.type == "cuda":
            cost["cost/gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.run.device) / 1e9
        if self._used:
            cost["cost/gpu_util"] = fmean(self._used)
        return cost


def peak_memory() -> int:
    """Bytes of the greatest memory that this process has used."""
    peak = getrusage(RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB
