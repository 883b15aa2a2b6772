"""Averages of the training figures since the last report, and the cost of a run."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import fmean

import torch
import torch.distributed as dist

from trainers.checkpoints.format import TrainCurve
from trainers.distributed import averaged, gather
from trainers.loop.state import Mark, TrainState


class Clock:
    """Measures what a run reports of its training and its cost, from when it begins or resumes."""

    def __init__(self, run: TrainState) -> None:
        self.run = run
        self.since = self.wall = time.perf_counter()
        self.cpu = time.process_time()
        self.used: list[int] = []
        with suppress(OSError):  # the peak of a worker's earlier trials does not count
            Path("/proc/self/clear_refs").write_text("5")
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)

    def mark(self, lr: float) -> None:
        """Note a point of the training curve, without a wait for the GPU."""
        since = self.run.since
        seconds = since.seconds + time.perf_counter() - self.since
        since.marks.append(Mark(self.run.progress.step, lr, seconds, since.sums.clone()))
        if self.run.device.type == "cuda":
            # nvidia-ml-py may be missing, and the driver may refuse, as for a slice of a GPU (MIG).
            with suppress(Exception):
                self.used.append(torch.cuda.utilization(self.run.device))

    def training(self) -> tuple[dict[str, float], TrainCurve]:
        """Means over the steps from the last report to the last mark, and between any two marks;
        over all workers, each of which must call it."""
        since, batch_size = self.run.since, self.run.config.optim.batch_size
        sums = averaged(torch.stack([mark.sums for mark in since.marks]))
        curve: TrainCurve = {"step": [], "train/loss": [], "train/lr": [], "train/images_per_s": []}
        step, seconds, summed = since.step, 0.0, 0.0
        for mark, (loss_sum, *_) in zip(since.marks, sums.tolist(), strict=True):
            steps = mark.step - step
            point = {
                "train/loss": (loss_sum - summed) / steps,
                "train/lr": mark.lr,
                "train/images_per_s": steps * batch_size / (mark.seconds - seconds),
            }
            curve["step"].append(mark.step)
            for name, value in point.items():  # six digits, enough for a chart and short in JSON
                curve[name].append(float(f"{value:.6g}"))
            step, seconds, summed = mark.step, mark.seconds, loss_sum
        loss, task_loss, reg, grad_norm = (sums[-1] / (step - since.step)).tolist()
        return {
            "train/loss": loss,
            "train/task_loss": task_loss,
            "train/reg": reg,
            "train/grad_norm": grad_norm,
            "train/images_per_s": (step - since.step) * batch_size / seconds,
        }, curve

    def pause(self) -> None:
        """Bring the state up to date that is saved between two reports."""
        since = self.run.since
        since.seconds += time.perf_counter() - self.since
        sums = torch.stack([since.sums, *(mark.sums for mark in since.marks)])
        since.all_sums = gather(sums[None])
        self.cost()

    def resume(self) -> None:
        """Begin to measure throughput: what happened at a report is no training."""
        self.since = time.perf_counter()

    def cost(self) -> dict[str, float]:
        """Wall-clock, GPU and CPU seconds so far, those before a resume included, and memory.

        GPU and CPU seconds are those of all workers, without their processes that decode images;
        evaluation seconds are those of this worker, as are the greatest memory that its process has
        used and that this run has used on its GPU, in 10^9 bytes, and the percentage of time in
        which its GPU has computed.
        """
        progress, gpu = self.run.progress, self.run.device.type == "cuda"
        wall, process = time.perf_counter(), time.process_time()
        cpu = torch.tensor(process - self.cpu, dtype=torch.float64, device=self.run.device)
        if self.run.world_size > 1:
            dist.all_reduce(cpu)
        progress.seconds += wall - self.wall
        progress.gpu_seconds += (wall - self.wall) * self.run.world_size if gpu else 0.0
        progress.cpu_seconds += float(cpu)
        self.cpu, self.wall = process, wall
        self.resume()
        cost = {
            "cost/seconds": progress.seconds,
            "cost/eval_seconds": progress.eval_seconds,
            "cost/gpu_seconds": progress.gpu_seconds,
            "cost/cpu_seconds": progress.cpu_seconds,
            "cost/memory_gb": getrusage(RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        }
        if gpu:
            cost["cost/gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.run.device) / 1e9
        if self.used:
            cost["cost/gpu_util"] = fmean(self.used)
        return cost
