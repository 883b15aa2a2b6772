"""One fine-tuning in plain PyTorch: a generator of reports, independent of Ray and of a search.

Works in a notebook, under `torchrun`, and in the Ray Train workers of `ray_trainer`. If a process
group exists, the model is wrapped in DistributedDataParallel and metrics are reduced over workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from trainers.checkpoints.format import TrainCurve
from trainers.config import TrialConfig
from trainers.data.dataset import ImageDataset
from trainers.data.loaders import StepSampler, train_batches
from trainers.hang import alive, pause
from trainers.loop.evaluated import Evaluated, evaluate, evaluate_final, resume, save
from trainers.loop.images import Images, load_split, open_images
from trainers.loop.setup import KeptModel
from trainers.loop.timing import Clock
from trainers.loop.training import Training, start


@dataclass(frozen=True)
class Report:
    """A training at an evaluation; use it before asking for the next report."""

    training: Training
    evaluated: Evaluated
    train_curve: TrainCurve = field(default_factory=dict)
    """Loss, learning rate and images per second since the last report: means over the steps between
    two points. The last point is at this report, whose metrics have its values."""

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.evaluated.step

    @property
    def metrics(self) -> dict[str, float]:
        """Flat, the same on every worker; accuracies in percent, costs in seconds."""
        return self.evaluated.metrics

    @property
    def is_last(self) -> bool:
        """Whether the training has done all its steps."""
        return self.step == self.training.setup.config.steps

    def tested(self, images: Images) -> Report:
        """The report with the metrics of a final split, which later checkpoints contain, too."""
        return replace(self, evaluated=evaluate_final(self.training, self.evaluated, images))

    def save(self, folder: Path) -> None:
        """Write a checkpoint from which `fine_tune` resumes.

        On CPUs, a run of one or two workers resumes bit for bit. With more, results may differ by
        rounding: DDP adds the gradients of the first step of a process up in another order.

        Only the first worker writes.
        """
        if self.training.setup.rank == 0:
            save(folder, self.training, self.evaluated)


def fine_tune(
    config: TrialConfig,
    *,
    device: torch.device | str | None = None,
    resume_from: Path | None = None,
    gpus: float = 1.0,
    on_progress: Callable[[TrainCurve], object] | None = None,
    kept: KeptModel | None = None,
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
        kept: has the zero-shot model for several trainings in one process.

    Raises:
        TrainingDiverged: the loss is no longer a finite number.
        MicroBatchTooLarge: one of several workers has run out of memory.
    """
    training = start(config, device=device, kept=kept)
    evaluated = None if resume_from is None else resume(training, resume_from)
    train = open_images(config.data, config.data.id_domain, "train")
    validation = load_split(config, "val")
    training.setup.class_maps(validation)  # raises for a domain that does not fit
    if evaluated is not None and training.reports:
        yield Report(training, evaluated, *training.train_curves[-1:])
        evaluated = None  # its weights may be a copy

    clock = Clock(training, gpus if training.setup.device.type == "cuda" else 0.0)
    # What is compiled by a first step or evaluation may take long.
    begin_phase = pause if config.compile else alive
    begin_phase()
    for views, labels in training_batches(training, train):
        training.enter_stage()
        figures = training.step(views, labels)
        alive()
        has_point = clock.add(figures)
        if training.is_due:
            begin_phase()
            metrics, train_curve = clock.training()
            evaluated = evaluate(training, validation)
            metrics |= evaluated.metrics | clock.cost()
            training.reports.append({"step": training.progress.step, **metrics})
            training.train_curves.append(train_curve)
            yield Report(training, replace(evaluated, metrics=metrics), train_curve)
            evaluated = None
            clock.restart()
            alive()
        elif has_point and on_progress is not None:
            on_progress(clock.training()[1])


def training_batches(training: Training, train: ImageDataset) -> Iterator[tuple[Tensor, Tensor]]:
    """This worker's share of the batches of the remaining steps: views (B, 3, H, W) and labels."""
    setup = training.setup
    config = setup.config
    sampler = StepSampler(
        len(train),
        config.optim.batch_size,
        seed=config.seed,
        steps=range(training.progress.step, config.steps),
        rank=setup.rank,
        world_size=setup.world_size,
    )
    pin_memory = setup.device.type == "cuda"
    image_input = setup.zero_shot.image_input
    return train_batches(train, sampler, image_input, config.data, pin_memory=pin_memory)
