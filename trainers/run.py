"""The state of one fine-tuning: what it starts from, and how it is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.checkpoint import Progress, load_checkpoint
from trainers.config import DataConfig, TrialConfig
from trainers.data.class_map import ClassMap, domain_class_map
from trainers.data.pictures import Pictures
from trainers.data.roots import domain_files, resolve_root
from trainers.data.schema import read_header
from trainers.errors import ConfigError
from trainers.evaluation import evaluate, summarise
from trainers.methods import check_method_fits
from trainers.student import Student
from trainers.zero_shot import ZeroShotModel, load_zero_shot


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
    class_names: tuple[str, ...]
    """(K,) of the ID domain, which are the head's."""
    saved_metrics: dict[str, float] | None = None
    """Of the report with which the checkpoint was saved that the run was resumed from."""

    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16 autocast where the configuration and the device have it."""
        return autocast(self.config, self.device)

    def classify(self, images: Tensor) -> Tensor:
        """Logits (B, K) of normalised images under the current parameters."""
        with self.autocast():
            logits: Tensor = self.student(images)[1]
        return logits

    def class_maps(self, pictures: Mapping[str, Pictures]) -> dict[str, ClassMap]:
        """From the head's classes to those of each domain.

        Raises:
            ConfigError: a domain has classes that the head has not.
        """
        return {
            domain: domain_class_map(self.config.data, self.class_names, domain, of_domain)
            for domain, of_domain in pictures.items()
        }

    def evaluate(self, split: str, pictures: Mapping[str, Pictures]) -> dict[str, float]:
        """The flat metrics of the ID and OOD domains on a split."""
        self.student.eval()
        data, maps = self.config.data, self.class_maps(pictures)
        by_domain = {}
        for domain, of_domain in pictures.items():
            by_domain[domain] = evaluate(
                self.classify,
                of_domain,
                self.zero_shot.image_input,
                batch_size=self.config.eval.batch_size,
                device=self.device,
                class_map=maps[domain],
                workers=data.workers,
                rank=self.rank,
                world_size=self.world_size,
            )
        self.student.train()
        return summarise(by_domain, data, split)


def autocast(config: TrialConfig, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast where the configuration and the device have it."""
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def start(
    config: TrialConfig,
    *,
    device: torch.device | str | None = None,
    resume_from: Path | None = None,
) -> Run:
    """A run before its first step, or as a checkpoint left it: `Run.evaluate` is then zero-shot.

    Raises:
        ConfigError: the data or the model do not fit the configuration, or the checkpoint the data.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if config.optim.batch_size % world_size:
        raise ConfigError(
            f"optim.batch_size = {config.optim.batch_size}: not divisible by {world_size} workers"
        )
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    names = id_classes(config.data)
    check_method_fits(config.method, config.model)
    zero_shot = load_zero_shot(config.model, config.data.rules.prompts(names), where)
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
        progress, saved_metrics = load_checkpoint(resume_from, student, optimizer, names)
    return Run(
        config=config,
        zero_shot=zero_shot,
        student=student,
        optimizer=optimizer,
        device=where,
        rank=rank,
        world_size=world_size,
        progress=progress,
        class_names=names,
        saved_metrics=saved_metrics,
    )


def load_split(config: TrialConfig, split: str) -> dict[str, Pictures]:
    """The pictures of all the configuration's domains, the ID domain first."""
    return {domain: open_pictures(config.data, domain, split) for domain in config.data.domains}


def id_classes(data: DataConfig, split: str = "train") -> tuple[str, ...]:
    """The classes of the head, from a footer: no picture is read or cached for their sake.

    Raises:
        ConfigError: the ID domain has no such split.
    """
    store = resolve_root(data.root)
    return read_header(store, domain_files(store, data.id_domain, split)[0]).class_names


def open_pictures(data: DataConfig, domain: str, split: str) -> Pictures:
    """The pictures of one domain and split, as the configuration wants them read.

    Raises:
        ConfigError: they are not there, or cannot be read.
    """
    return Pictures(
        resolve_root(data.root), domain, split, cache_gb=data.cache_gb, crop_pct=data.crop_pct
    )
