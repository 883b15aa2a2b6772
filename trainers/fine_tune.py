"""One fine-tuning in plain PyTorch: a generator of reports, with no Ray and no search in sight.

Works in a notebook, under `torchrun`, and inside the Ray Train workers of `torch_trainer`: where a
process group exists, the model is wrapped in DistributedDataParallel and figures are reduced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.checkpoint import save_checkpoint
from trainers.clock import Clock
from trainers.config import OptimConfig, TrialConfig
from trainers.data.pictures import Pictures, train_batches
from trainers.data.sampler import StepSampler
from trainers.data.views import normalise
from trainers.errors import TrainingDiverged
from trainers.methods import Batch, LipsumFineTuning
from trainers.models import ModelConfig, text_facts
from trainers.random_texts import random_text_rank
from trainers.run import Run, load_split, open_pictures, start

RANDOM_TEXT_RANK = "random_text/effective_rank"

REPORTED = (
    "train/loss",
    "train/task_loss",
    "train/reg",
    "train/grad_norm",
    "train/lr",
    "train/images_per_s",
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
    """What a run has to say at an evaluation."""

    step: int
    """Optimiser steps done."""
    metrics: dict[str, float]
    """Flat, the same on every worker; accuracies in percent, costs in seconds."""
    run: Run
    """The run as it stands: to be saved or evaluated before the next report is asked for."""

    def save(self, folder: Path) -> None:
        """Write a checkpoint from which `fine_tune` goes on bit for bit."""
        run = self.run
        save_checkpoint(
            folder, run.student, run.optimizer, run.progress, self.metrics, run.class_names
        )


def fine_tune(
    config: TrialConfig,
    *,
    device: torch.device | str | None = None,
    resume_from: Path | None = None,
) -> Iterator[Report]:
    """Fine-tune, and report at every evaluation and at the last step.

    Args:
        config: the whole of what is run.
        device: where; by default a GPU if there is one.
        resume_from: a folder that `Report.save` wrote. The run repeats the report that was saved,
            for it may have been lost, and goes on after that step with the same batches, views and
            random texts as if it had never stopped.

    Raises:
        ConfigError: the data or the model do not fit the configuration.
        TrainingDiverged: the loss is no longer a number.
    """
    run = start(config, device=device, resume_from=resume_from)
    train = open_pictures(config.data, config.data.id_domain, "train")
    held_out = load_split(config, "val")
    run.class_maps(held_out)  # a domain that does not fit is told now, not at an evaluation
    fixed = random_text_diagnostic(run)
    clock = Clock(run)
    if run.saved_metrics is not None:
        yield Report(run.progress.step, run.saved_metrics, run)
    sums = torch.zeros(4, dtype=torch.float64, device=run.device)
    model = _distributed(run)
    for step, (views, labels) in enumerate(_batches(run, train), start=run.progress.step):
        sums += _step(run, model, step, views, labels)
        run.progress.step = step + 1
        last = run.progress.step == config.steps
        due = last or run.progress.step % config.eval.every == 0
        if due or run.progress.step % CHECK_EVERY == 0:
            _check_finite(sums, run.progress.step)
        if due:
            yield Report(
                step=run.progress.step,
                metrics=clock.training(sums, config.optim.batch_size)
                | {"train/lr": learning_rate(step, config.steps, config.optim)}
                | fixed
                | clock.evaluate(held_out)
                | clock.cost(),
                run=run,
            )
            sums.zero_()


def random_text_diagnostic(run: Run) -> dict[str, float]:
    """The effective rank of random texts; nothing where the model has none.

    Their length is the method's own, or Lipsum-FT's default as far as the model's context holds it.
    """
    if not run.zero_shot.has_random_texts:
        return {}
    method = run.config.method
    lipsum = method if isinstance(method, LipsumFineTuning) else LipsumFineTuning()
    length = min(lipsum.text_length, run.zero_shot.text.context_length - 2)
    return {RANDOM_TEXT_RANK: random_text_rank(run.zero_shot, length)}


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """Linear warm-up over the first steps, then a cosine to 0; `step` counts from 0."""
    warmup = round(optim.warmup_fraction * steps)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _batches(run: Run, train: Pictures) -> Iterator[tuple[Tensor, Tensor]]:
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


def _distributed(run: Run) -> nn.Module:
    if run.world_size == 1:
        return run.student
    device_ids = [run.device] if run.device.type == "cuda" else None
    return DistributedDataParallel(run.student, device_ids=device_ids)


def _step(run: Run, model: nn.Module, step: int, views: Tensor, labels: Tensor) -> Tensor:
    """One optimiser step; returns loss, task loss, regulariser and gradient norm, (4,)."""
    config, method = run.config, run.config.method
    images = normalise(views.to(run.device, non_blocking=True), run.zero_shot.image_input)
    with run.autocast():
        features, logits = model(images)
        zero_shot_features = None
        if method.needs_zero_shot_features:
            with torch.no_grad():
                zero_shot_features = run.zero_shot.image_features(images)
    batch = Batch(labels.to(run.device), features, logits, zero_shot_features)
    loss = method.loss(batch, run.zero_shot, seed=config.seed, step=step)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(step, config.steps, config.optim)
    run.optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    gradients = [p.grad for p in run.student.parameters() if p.grad is not None]
    grad_norm = nn.utils.get_total_norm(gradients)
    run.optimizer.step()
    return torch.stack([loss.total, loss.task, loss.reg, grad_norm]).detach().double()


def _check_finite(sums: Tensor, step: int) -> None:
    if not bool(sums.isfinite().all()):
        raise TrainingDiverged(f"the training loss is not a finite number at step {step}")
