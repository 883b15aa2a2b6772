"""The state of one fine-tuning, and how it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from trainers.checkpoints.format import Progress, TrainCurve
from trainers.config import TrialConfig
from trainers.data.config import DataConfig
from trainers.data.dataset import ImageDataset
from trainers.data.roots import domain_files
from trainers.data.schema import read_header
from trainers.data.store import open_root
from trainers.distributed import world
from trainers.errors import ConfigError, suggestion
from trainers.loop.precision import Precision
from trainers.loop.zero_shot_features import ZeroShotFeatures
from trainers.methods.base import Stage, Weights
from trainers.models.student import Student
from trainers.models.zero_shot import ZeroShotModel, load_zero_shot


@dataclass
class TrainState:
    """The state of one fine-tuning on one worker."""

    config: TrialConfig
    zero_shot: ZeroShotModel
    zero_shot_features: ZeroShotFeatures
    student: Student
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    precision: Precision
    device: torch.device
    rank: int
    world_size: int
    progress: Progress
    class_names: tuple[str, ...]
    """(K,) classes of the ID domain, which are those of the head."""
    initial: Mapping[str, Tensor]
    """Trained parameters before the first step."""
    micro_batch_size: int
    """Images of a worker that go through the model at once."""
    average: dict[str, Tensor] | None
    """Moving average of the trained parameters that the loss reads, if the method has one."""
    ema: dict[str, Tensor] | None
    """Moving average that is evaluated: of the method, or of `eval.ema`."""
    ema_decay: float | None
    eval_weights: Weights | None = None
    """Weights used by the last validation (EMA, WiSE, ...). None if they are the raw training
    weights."""
    end_weights: Weights | None = None
    """What the last validation would have used had no point of the line been chosen: after the last
    step, the end of the training. None if these are the raw training weights."""
    eval_head: Tensor | None = None
    """(K, D) head of the last validation, if the text encoder makes it."""
    reports: list[dict[str, float]] = field(default_factory=list)
    """All reports so far, each with its `step`."""
    train_curves: list[TrainCurve] = field(default_factory=list)
    """The training curve before each report."""
    predictions: bytes | None = None
    """Predictions after the last step, as a Parquet file: on the validation splits, or, once it is
    evaluated, on the final split."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """The trained parameters as they are now."""
        return {name: p.detach() for name, p in self.student.trained.items()}

    @property
    def is_done(self) -> bool:
        """Whether it has done all its steps."""
        return self.progress.step == self.config.steps


def start(config: TrialConfig, *, device: torch.device | str | None = None) -> TrainState:
    """The state before the first step; `evaluate_run` then measures the zero-shot model."""
    if device is None and torch.cuda.is_available():
        # `torchrun` starts a process for each GPU of a machine, of which it may see its own alone.
        index = int(os.environ.get("LOCAL_RANK", 0)) % max(1, torch.cuda.device_count())
        torch.cuda.set_device(index)  # page-locked memory belongs to the current one
        device = torch.device("cuda", index)
    where = torch.device(device or "cpu")
    # A setting of the process, which an earlier run may have changed. Heads are shared by runs of
    # all precisions, so they are made of exact products.
    torch.set_float32_matmul_precision("highest")
    names = id_classes(config.data)
    config.method.check(config.model)
    zero_shot = load_zero_shot(config.model, config.data.rules.prompts(names), where)
    return state_of(config, zero_shot, names, where)


def state_of(
    config: TrialConfig, zero_shot: ZeroShotModel, names: tuple[str, ...], where: torch.device
) -> TrainState:
    """The state before the first step, from a zero-shot model on the device `where`, whose head has
    the (K,) classes `names`."""
    rank, world_size = world()
    method = config.method
    share = config.optim.share(world_size)
    student = Student(zero_shot)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        method.prepare(student)
    if where.type != "cpu":  # where all of it is made; fake tensors refuse to move
        student.to(where)
    precision = Precision(config.precision, where)
    if config.precision == "tf32":  # of the whole process; convolutions are by PyTorch's default
        torch.set_float32_matmul_precision("high")
    features = ZeroShotFeatures(zero_shot, config, precision)
    if config.compile:
        for encoder in (student.visual, student.text):
            if encoder is not None:
                encoder.compile()

    initial = student.initial()
    ema_decay = config.eval.ema if method.ema is None else method.ema
    has_average = method.average_decay(0, config.steps) is not None
    return TrainState(
        config=config,
        zero_shot=zero_shot,
        zero_shot_features=features,
        student=student,
        optimizer=optimizer_of(student, config, method.stage(0, config.steps)),
        scaler=precision.scaler(),
        precision=precision,
        device=where,
        rank=rank,
        world_size=world_size,
        progress=Progress(),
        class_names=names,
        initial=initial,
        micro_batch_size=config.optim.at_once(share),
        average={n: v.clone() for n, v in initial.items()} if has_average else None,
        ema=None if ema_decay is None else {n: v.clone() for n, v in initial.items()},
        ema_decay=ema_decay,
    )


def optimizer_of(student: Student, config: TrialConfig, stage: Stage) -> torch.optim.Optimizer:
    """AdamW on the parameters that train, in groups of the same learning rate.

    AdamW decays a weight by the product of learning rate and weight decay. The factor of the head's
    rate divides its weight decay, so that it changes the head's updates but not its decay.
    """
    optim = config.optim
    depths = student.depths() if optim.layer_decay < 1 else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in student.trained.items():
        factor = optim.layer_decay ** depths.get(name, 0)
        decay = optim.weight_decay
        if name == "head":
            factor = 1.0 if stage.head_alone else optim.head_lr_factor
            decay /= factor
        groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": own, "lr_factor": factor, "weight_decay": decay}
            for (factor, decay), own in groups.items()
        ],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )


def load_split(config: TrialConfig, split: str) -> dict[str, ImageDataset]:
    """The images of all domains of the configuration, the ID domain first."""
    return {domain: open_images(config.data, domain, split) for domain in config.data.domains}


def id_classes(data: DataConfig, split: str = "train") -> tuple[str, ...]:
    """The classes of the head, read from the footer of a Parquet file."""
    store = open_root(data.root)
    return read_header(store, domain_files(store, data.id_domain, split)[0]).class_names


def open_images(data: DataConfig, domain: str, split: str) -> ImageDataset:
    """The images of one domain and split."""
    return ImageDataset(open_root(data.root), domain, split, crop_pct=data.crop_pct)


def class_weights(
    given: Literal["auto"] | Mapping[str, float] | None,
    labels: np.ndarray,
    class_names: Sequence[str],
) -> Tensor | None:
    """The (K,) weights, whose mean over the training images is 1; None without weights.

    The loss of an image times the weight of its class can therefore be averaged over any part of a
    batch, and the learning rate keeps its meaning.

    Args:
        given: `auto` is the inverse of the number of images; of names, others have the weight 1.
        labels: (N,) of the training images.
    """
    if given is None:
        return None
    counts = np.bincount(labels, minlength=len(class_names))
    if given == "auto":
        weights = 1 / np.maximum(counts, 1)
    else:
        check_names(given, class_names)
        weights = np.array([given.get(name, 1.0) for name in class_names])
    return torch.from_numpy(weights * (counts.sum() / (weights * counts).sum())).float()


def check_names(given: Mapping[str, float], class_names: Sequence[str]) -> None:
    """Raise a ConfigError for a name that no class has."""
    for name in given.keys() - {*class_names}:
        hint = suggestion(name, class_names)
        raise ConfigError("no such class", key="class_weights", value=name, hint=hint)
