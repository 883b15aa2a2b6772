"""One fine-tuning in plain PyTorch: a generator of reports, with no Ray and no search in sight.

Works in a notebook, under `torchrun`, and inside the Ray Train workers of `torch_trainer`: where a
process group exists, the model is wrapped in DistributedDataParallel and figures are reduced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.checkpoint import Progress, load_checkpoint, save_checkpoint
from trainers.clock import Clock
from trainers.config import OptimConfig, TrialConfig
from trainers.data.pictures import Pictures, train_batches
from trainers.data.roots import resolve_root
from trainers.data.sampler import StepSampler
from trainers.data.views import normalise
from trainers.errors import ConfigError, TrainingDiverged
from trainers.evaluation import evaluate, summarise
from trainers.methods import Batch, LipsumFineTuning
from trainers.random_texts import random_text_rank
from trainers.student import Student
from trainers.zero_shot import ZeroShotModel, load_zero_shot

REPORTED = (
    "train/loss",
    "train/task_loss",
    "train/reg",
    "train/grad_norm",
    "train/lr",
    "train/images_per_s",
    "random_text/effective_rank",
    "cost/seconds",
    "cost/eval_seconds",
    "cost/gpu_seconds",
    "cost/cpu_seconds",
)
"""Names in every report, besides `evaluation.metric_names`."""

CHECK_EVERY = 10
"""Steps from one look at the loss to the next: each look waits for the GPU."""


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
        save_checkpoint(folder, run.student, run.optimizer, run.progress, self.metrics)


@dataclass
class Run:
    """The state of one fine-tuning on one worker."""

    config: TrialConfig
    zero_shot: ZeroShotModel
    student: Student
    optimizer: torch.optim.Optimizer
    device: torch.device
    rank: int
    world_size: int
    progress: Progress
    saved_metrics: dict[str, float] | None = None
    """Of the report with which the checkpoint was saved that the run was resumed from."""

    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16 autocast where the configuration and the device have it."""
        bf16 = self.config.precision == "bf16" or (
            self.config.precision == "auto"
            and self.device.type == "cuda"
            and torch.cuda.is_bf16_supported()
        )
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def classify(self, images: Tensor) -> Tensor:
        """Logits (B, K) of normalised images under the current parameters."""
        with self.autocast():
            logits: Tensor = self.student(images)[1]
        return logits

    def evaluate(self, split: str, pictures: dict[str, Pictures]) -> dict[str, float]:
        """The flat metrics of the ID and OOD domains on a split."""
        self.student.eval()
        by_domain = {
            domain: evaluate(
                self.classify,
                of_domain,
                self.zero_shot.image_input,
                batch_size=self.config.eval.batch_size,
                device=self.device,
                rank=self.rank,
                world_size=self.world_size,
            )
            for domain, of_domain in pictures.items()
        }
        self.student.train()
        return summarise(by_domain, self.config.data, split)


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
    root = resolve_root(config.data.root)
    train = Pictures(root, config.data.id_domain, "train")
    held_out = load_split(config, "val")
    rank_of_texts = random_text_rank(run.zero_shot, diagnostic_text_length(config))
    clock = Clock(run)
    fixed = {"random_text/effective_rank": rank_of_texts}
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


def start(
    config: TrialConfig,
    *,
    device: torch.device | str | None = None,
    resume_from: Path | None = None,
) -> Run:
    """A run before its first step, or as a checkpoint left it: `Run.evaluate` is then zero-shot.

    Raises:
        ConfigError: the data or the model do not fit the configuration.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if config.optim.batch_size % world_size:
        raise ConfigError(
            f"optim.batch_size = {config.optim.batch_size}: not divisible by {world_size} workers"
        )
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    root = resolve_root(config.data.root)
    names = Pictures(root, config.data.id_domain, "train").class_names
    zero_shot = load_zero_shot(config.model, names, where)
    config.method.check(zero_shot)
    student = Student(zero_shot).to(where)
    optimizer = torch.optim.AdamW(
        student.parameters(),
        lr=config.optim.lr,
        betas=config.optim.betas,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        fused=True,
    )
    progress, saved_metrics = Progress(), None
    if resume_from is not None:
        progress, saved_metrics = load_checkpoint(resume_from, student, optimizer)
    return Run(
        config, zero_shot, student, optimizer, where, rank, world_size, progress, saved_metrics
    )


def load_split(config: TrialConfig, split: str) -> dict[str, Pictures]:
    """The pictures of all the configuration's domains, the ID domain first."""
    root = resolve_root(config.data.root)
    domains = (config.data.id_domain, *config.data.ood_domains)
    return {domain: Pictures(root, domain, split) for domain in domains}


def diagnostic_text_length(config: TrialConfig) -> int:
    """The text length whose effective rank a run reports: its own, or Lipsum-FT's default."""
    method = config.method if isinstance(config.method, LipsumFineTuning) else LipsumFineTuning()
    return method.text_length


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
    return iter(
        train_batches(
            train,
            sampler,
            size=run.zero_shot.image_input.size,
            crop_area=run.config.data.crop_area,
            workers=run.config.data.workers,
            pin_memory=run.device.type == "cuda",
        )
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
                zero_shot_features = run.zero_shot.visual(images)
    if zero_shot_features is not None:
        zero_shot_features = nn.functional.normalize(zero_shot_features.float(), dim=-1)
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
