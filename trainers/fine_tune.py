"""One fine-tuning in plain PyTorch: a generator of reports, with no Ray and no search in sight.

Works in a notebook, under `torchrun`, and inside the Ray Train workers of `torch_trainer`: where a
process group exists, the model is wrapped in DistributedDataParallel and figures are reduced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainers.checkpoints.format import save_checkpoint
from trainers.checkpoints.train_state import restore, snapshot
from trainers.config import OptimConfig, TrialConfig
from trainers.data.dataset import ImageDataset, train_batches
from trainers.data.sampler import StepSampler
from trainers.errors import TrainingDiverged
from trainers.loop.state import (
    SinceReport,
    TrainState,
    load_split,
    open_images,
    optimizer_of,
    start,
)
from trainers.loop.step import Stepper
from trainers.loop.timing import Clock
from trainers.methods import LipsumFineTuning, Stage
from trainers.models import ModelConfig, text_facts
from trainers.texts.random_texts import effective_rank, random_text_moment
from trainers.weights.averaging import update_average

RANDOM_TEXT_RANK = "random_text/effective_rank"

REPORTED = (
    "train/loss",
    "train/task_loss",
    "train/reg",
    "train/grad_norm",
    "train/lr",
    "train/images_per_s",
    "train/micro_batch_size",
    RANDOM_TEXT_RANK,
    "cost/seconds",
    "cost/eval_seconds",
    "cost/gpu_seconds",
    "cost/cpu_seconds",
)
"""Names in every report, besides `evaluation.metric_names`; see `reported`."""

CHECK_EVERY = 10
"""Steps from one look at the loss to the next: each look waits for the GPU."""


def reported(model: ModelConfig) -> tuple[str, ...]:
    """`REPORTED`, without what cannot be said of a model that has no random texts."""
    has_random_texts = text_facts(model).has_random_texts
    return tuple(name for name in REPORTED if has_random_texts or name != RANDOM_TEXT_RANK)


@dataclass(frozen=True)
class Report:
    """What a run has to say at an evaluation; or nothing, where it is only to be saved."""

    step: int
    """Optimiser steps done."""
    metrics: dict[str, float]
    """Flat, the same on every worker; accuracies in percent, costs in seconds. Empty where
    `save_now` of `fine_tune` asked for a checkpoint."""
    run: TrainState
    """The run as it stands: to be saved or evaluated before the next report is asked for."""

    def add(self, metrics: Mapping[str, float]) -> None:
        """Say more, which the checkpoints of the run know of then, too."""
        self.metrics.update(metrics)
        self.run.reports[-1].update(metrics)

    def save(self, folder: Path) -> None:
        """Write a checkpoint from which `fine_tune` goes on bit for bit.

        Every worker must call it; the first one writes.
        """
        if self.run.rank == 0 or self.run.config.parallel == "fsdp":
            checkpoint = snapshot(self.run)
            if checkpoint is not None and self.run.rank == 0:
                save_checkpoint(folder, checkpoint, self.run.class_names)


def fine_tune(
    config: TrialConfig,
    *,
    device: torch.device | str | None = None,
    resume_from: Path | None = None,
    save_now: Callable[[], bool] | None = None,
) -> Iterator[Report]:
    """Fine-tune, and report at every evaluation and at the last step.

    Args:
        config: the whole of what is run.
        device: where; by default a GPU if there is one.
        resume_from: a folder that `Report.save` wrote. The run repeats its last report before that,
            for it may have been lost, and goes on where it was saved with the same batches, views
            and random texts as if it had never stopped.
        save_now: asked after every step between two evaluations, and gives every worker the same
            answer: whether the run is to be saved as it stands, because a machine may be gone
            before the next evaluation. It then yields a report without metrics.

    Raises:
        ConfigError: the data or the model do not fit the configuration.
        TrainingDiverged: the loss is no longer a number.
    """
    run = start(config, device=device)
    if resume_from is not None:
        restore(run, resume_from)
    train = open_images(config.data, config.data.id_domain, "train")
    held_out = load_split(config, "val")
    run.class_maps(held_out)  # a domain that does not fit is told now, not at an evaluation
    fixed = random_text_diagnostic(run)
    if run.reports:  # the report before the checkpoint may have been lost
        last_report = {name: value for name, value in run.reports[-1].items() if name != "step"}
        yield Report(run.since.step, last_report, run)
    clock = Clock(run)
    stepper, first = Stepper(run), run.progress.step
    for step, (views, labels) in enumerate(_batches(run, train), start=first):
        stage = config.method.stage(step, config.steps)
        if step in (first, stage.first):
            _begin(run, stage, step)
        lr = learning_rate(step - stage.first, stage.steps, config.optim, stage.lr)
        run.since.sums += stepper.step(step, views, labels, lr=lr)
        _average(run, step)
        run.progress.step = step + 1
        last = run.progress.step == config.steps
        due = last or run.progress.step % config.eval.every == 0
        asked = not due and save_now is not None and save_now()
        if due or asked or run.progress.step % CHECK_EVERY == 0:
            _check_finite(run.since.sums, run.progress.step)
        if due:
            metrics = (
                clock.training()
                | {"train/lr": lr, "train/micro_batch_size": float(run.micro_batch_size)}
                | fixed
                | clock.evaluate(held_out, sweep=last)
                | clock.cost()
            )
            run.since = SinceReport.now(run.progress.step, run.device)
            run.reports.append({"step": run.progress.step, **metrics})
            yield Report(run.progress.step, metrics, run)
        elif asked:
            clock.pause()
            yield Report(run.progress.step, {}, run)


def _begin(run: TrainState, stage: Stage, step: int) -> None:
    """Enter a stage, or go on in it after a resume."""
    if step == stage.first > 0:
        run.optimizer = optimizer_of(run.student, run.config)
    run.student.head_alone = stage.head_alone


def _average(run: TrainState, step: int) -> None:
    decay = run.config.method.average_decay(step, run.config.steps)
    if decay is not None and run.average is not None:
        update_average(run.average, run.weights, decay)


def random_text_diagnostic(run: TrainState) -> dict[str, float]:
    """The effective rank of random texts; nothing where the model has none.

    Their length is the method's own, or Lipsum-FT's default as far as the model's context holds it.
    """
    if not run.zero_shot.has_random_texts:
        return {}
    method = run.config.method
    lipsum = method if isinstance(method, LipsumFineTuning) else LipsumFineTuning()
    length = min(lipsum.text_length, run.zero_shot.text.context_length - 2)
    return {RANDOM_TEXT_RANK: effective_rank(random_text_moment(run.zero_shot, length))}


def learning_rate(step: int, steps: int, optim: OptimConfig, peak: float | None = None) -> float:
    """Linear warm-up over the first steps, then a cosine to 0; `step` counts from 0.

    The peak is the configuration's, unless another one is given.
    """
    warmup, peak = round(optim.warmup_fraction * steps), optim.lr if peak is None else peak
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _batches(run: TrainState, train: ImageDataset) -> Iterator[tuple[Tensor, Tensor]]:
    sampler = StepSampler(
        len(train),
        run.config.optim.batch_size,
        seed=run.config.seed,
        steps=range(run.progress.step, run.config.steps),
        rank=run.rank,
        world_size=run.world_size,
    )
    return train_batches(
        train,
        sampler,
        image_input=run.zero_shot.image_input,
        crop_area=run.config.data.crop_area,
        workers=run.config.data.workers,
        pin_memory=run.device.type == "cuda",
    )


def _check_finite(sums: Tensor, step: int) -> None:
    if not bool(sums.isfinite().all()):
        raise TrainingDiverged(f"the training loss is not a finite number at step {step}")
