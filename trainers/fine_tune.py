"""One fine-tuning in plain PyTorch: a generator of reports, independent of Ray and of a search.

Works in a notebook, under `torchrun`, and in the Ray Train workers of `ray_trainer`. If a process
group exists, the model is wrapped in DistributedDataParallel and metrics are reduced over workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from trainers.checkpoints.format import TrainCurve, save_checkpoint
from trainers.config import TrialConfig
from trainers.data.dataset import ImageDataset, StepSampler, train_batches
from trainers.hang import alive, pause
from trainers.loop.evaluate_run import class_maps, evaluate_run
from trainers.loop.snapshot import restore, snapshot
from trainers.loop.state import (
    TrainState,
    class_weights,
    load_split,
    open_images,
    optimizer_of,
    start,
)
from trainers.loop.step import Stepper
from trainers.loop.timing import Clock

CHECK_EVERY = 10
"""Steps between two checks of the loss: each one waits for the GPU."""

CURVE_POINTS = 50
"""Limit of the points of a training curve between two reports, which are `CHECK_EVERY` steps or a
multiple of that apart."""


@dataclass(frozen=True)
class Report:
    """Metrics of a run at an evaluation."""

    step: int
    """Optimiser steps done."""
    metrics: dict[str, float]
    """Flat, the same on every worker; accuracies in percent, costs in seconds."""
    run: TrainState
    """The state of the run; save or evaluate it before asking for the next report."""
    train_curve: TrainCurve = field(default_factory=dict)
    """Loss, learning rate and images per second since the last report: means over the steps between
    two points. The last point is at this report, whose metrics have its values."""

    @property
    def is_last(self) -> bool:
        """Whether the run has done all its steps."""
        return self.run.is_done

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add metrics, which later checkpoints of the run contain, too."""
        self.metrics.update(metrics)
        self.run.reports[-1].update(metrics)

    def save(self, folder: Path) -> None:
        """Write a checkpoint from which `fine_tune` resumes.

        On CPUs, a run of one or two workers resumes bit for bit. With more, results may differ by
        rounding: DDP adds the gradients of the first step of a process up in another order.

        Only the first worker writes.
        """
        if self.run.rank == 0:
            save_checkpoint(folder, *snapshot(self.run))


def fine_tune(
    config: TrialConfig,
    *,
    device: torch.device | str | None = None,
    resume_from: Path | None = None,
    gpus: float = 1.0,
    on_progress: Callable[[TrainCurve], object] | None = None,
) -> Iterator[Report]:
    """Fine-tune, and report at every evaluation and at the last step.

    Args:
        device: where to train; by default a GPU if there is one.
        resume_from: a folder that `Report.save` wrote. The run first repeats its last report before
            that, as it may have been lost, and then continues with the same batches, views and
            random texts as an uninterrupted run.
        gpus: of each worker, for `cost/gpu_seconds`: 0.5 if two trainings share a GPU.
        on_progress: called with the training curve since the last report whenever it has a new
            point between two reports; on every worker or on none.

    Raises:
        TrainingDiverged: the loss is no longer a finite number.
        MicroBatchTooLarge: one of several workers has run out of memory.
    """
    run = start(config, device=device)
    if resume_from is not None:
        restore(run, resume_from)
    train = open_images(config.data, config.data.id_domain, "train")
    held_out = load_split(config, "val")
    sampled = {d: i.sampled(config.eval.rung_images) for d, i in held_out.items()}
    class_maps(run, held_out)  # raises for a domain that does not fit, before the first step
    if run.reports:  # the report before the checkpoint may have been lost
        last_report = {name: value for name, value in run.reports[-1].items() if name != "step"}
        yield Report(run.progress.step, last_report, run, *run.train_curves[-1:])

    mark_every = CHECK_EVERY * math.ceil(config.eval.every / (CHECK_EVERY * CURVE_POINTS))
    clock = Clock(run, gpus if run.device.type == "cuda" else 0.0)
    stepper = Stepper(run, class_weights(config.class_weights, train.labels, train.class_names))
    first = run.progress.step
    # What is compiled by a first step or evaluation may take long.
    begin_phase = pause if config.compile else alive
    begin_phase()
    for step, (views, labels) in enumerate(training_batches(run, train), start=first):
        # A stage has an optimiser and a learning-rate schedule of its own; most methods have one.
        stage = config.method.stage(step, config.steps)
        if step == stage.first > 0:
            run.optimizer = optimizer_of(run.student, config, stage)
        if step in (first, stage.first):
            run.student.head_alone = stage.head_alone
        lr = config.optim.lr_at(step - stage.first, stage.steps, stage.lr)

        clock.add(stepper.step(step, views, labels, lr=lr))
        run.progress.step = step + 1
        alive()

        is_due = run.is_done or run.progress.step % config.eval.every == 0
        if is_due or run.progress.step % CHECK_EVERY == 0:
            clock.check()
        is_mark = is_due or run.progress.step % mark_every == 0
        if is_mark:
            clock.mark(lr)
        if is_due:
            begin_phase()
            training, train_curve = clock.training()
            metrics = training | _evaluation(run, held_out, sampled) | clock.cost()
            run.reports.append({"step": run.progress.step, **metrics})
            run.train_curves.append(train_curve)
            yield Report(run.progress.step, metrics, run, train_curve)
            clock.restart()
            alive()
        elif is_mark and on_progress is not None:
            on_progress(clock.training()[1])


def _evaluation(
    run: TrainState, held_out: dict[str, ImageDataset], sampled: dict[str, ImageDataset]
) -> dict[str, float]:
    """The validation metrics: of the sample, or of all images after the last step."""
    began = time.perf_counter()
    images = held_out if run.is_done else sampled
    line_sample = None
    if run.is_done:
        line_sample = {d: i.sampled(run.config.eval.line_images) for d, i in held_out.items()}
    metrics = evaluate_run(run, "val", images, line_sample=line_sample)
    metrics["eval/images"] = float(sum(len(of_domain.eval_rows) for of_domain in images.values()))
    run.progress.eval_seconds += time.perf_counter() - began
    return metrics


def training_batches(run: TrainState, train: ImageDataset) -> Iterator[tuple[Tensor, Tensor]]:
    """This worker's share of the batches of the remaining steps: views (B, 3, H, W) and labels."""
    sampler = StepSampler(
        len(train),
        run.config.optim.batch_size,
        seed=run.config.seed,
        steps=range(run.progress.step, run.config.steps),
        rank=run.rank,
        world_size=run.world_size,
    )
    pin_memory = run.device.type == "cuda"
    return train_batches(
        train, sampler, run.zero_shot.image_input, run.config.data, pin_memory=pin_memory
    )
