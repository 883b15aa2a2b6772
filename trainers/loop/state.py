"""The state of one fine-tuning: how it starts, and how it is evaluated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.func import functional_call
from torch.nn import functional

from trainers.checkpoints.format import Progress, TrainCurve
from trainers.config import DataConfig, TrialConfig
from trainers.data.class_map import ClassMap, domain_class_map
from trainers.data.data_root import domain_files, resolve_root
from trainers.data.dataset import ImageDataset, eval_samples
from trainers.data.sampler import StepSampler
from trainers.data.schema import read_header
from trainers.data.transforms import normalise
from trainers.errors import ConfigError
from trainers.evaluation.accumulators import DomainSums
from trainers.evaluation.evaluate import evaluate, summarise
from trainers.evaluation.line import LineGoal, choose_point
from trainers.evaluation.metrics import ID_ACC, MEAN_ACC, OOD_MEAN_ACC
from trainers.evaluation.predictions import Predictions, parquet_of
from trainers.loop.distributed import as_sharded, gather, shard, world
from trainers.loop.precision import Precision
from trainers.loop.zero_shot_features import ZeroShotFeatures
from trainers.methods.base import Stage, Trained, Weights, check_method_fits
from trainers.models.activations import keep_no_activations
from trainers.models.student import Outputs, Student
from trainers.models.text_head import heads_of
from trainers.models.zero_shot import ZeroShotModel, load_zero_shot
from trainers.weights.averaging import interpolate, swapped_in

LINE_METRICS = (ID_ACC, OOD_MEAN_ACC, MEAN_ACC)
"""Reported for each measured point of the line, if the data have them."""

LOSS_BATCH_SIZE = 64
"""Images of all workers for each value of the validation loss."""


@dataclass(frozen=True)
class Mark:
    """Where one worker was at a point of the training curve."""

    step: int
    lr: float
    """Of the last step."""
    seconds: float
    """Training time since the last report."""
    sums: Tensor
    """As `SinceReport.sums`, up to this step."""


@dataclass
class SinceReport:
    """What one worker has done since the last report of the run, or since its start."""

    step: int
    """Step of that report."""
    sums: Tensor
    """(4,) float64: loss, task loss, regulariser and gradient norm, summed over the steps since."""
    seconds: float = 0.0
    """Training time since, as far as earlier processes of the run measured it."""
    marks: list[Mark] = field(default_factory=list)
    all_sums: Tensor | None = None
    """(W, 1 + M, 4), the sums of all workers and of their M marks; set only around save and
    restore."""

    @classmethod
    def now(cls, step: int, device: torch.device) -> SinceReport:
        """The state right after a report."""
        return cls(step, torch.zeros(4, dtype=torch.float64, device=device))


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
    since: SinceReport
    average: dict[str, Tensor] | None = None
    """Moving average of the trained parameters, if the method has one."""
    rung_average: dict[str, Tensor] | None = None
    """Moving average that is evaluated before the last step (`eval.rung_weights`)."""
    eval_weights: Weights | None = None
    """Weights used by the last validation (EMA, WiSE, ...). None if they are the raw training
    weights."""
    eval_head: Tensor | None = None
    """(K, D) head of the last validation, if the text encoder makes it."""
    micro_batch_size: int = 0
    """Images of a worker that go through the model at once."""
    temperature: float | None = None
    """Calibration temperature, fitted by the last evaluation of the ID validation split."""
    reports: list[dict[str, float]] = field(default_factory=list)
    """All reports so far, each with its `step`."""
    train_curves: list[TrainCurve] = field(default_factory=list)
    """The training curve before each report."""
    predictions: bytes | None = None
    """Predictions on the validation splits after the last step, as a Parquet file."""

    @property
    def is_between_reports(self) -> bool:
        """Whether it has trained since its last report."""
        return self.progress.step != self.since.step

    @property
    def weights(self) -> dict[str, Tensor]:
        """The trained parameters as they are now."""
        return {name: p.detach() for name, p in self.student.trained.items()}

    @torch.no_grad()
    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, K) of normalised images under the current parameters."""
        with self.precision.autocast():
            outputs = self.student(images)
        return outputs.features, outputs.logits

    def class_maps(self, images: Mapping[str, ImageDataset]) -> dict[str, ClassMap]:
        """Mappings from the head's classes to those of each domain.

        Raises:
            ConfigError: a domain has classes that the head lacks.
        """
        return {
            domain: domain_class_map(self.config.data, self.class_names, domain, of_domain)
            for domain, of_domain in images.items()
        }

    def evaluate(
        self,
        split: str,
        images: Mapping[str, ImageDataset],
        *,
        averaged: bool = False,
        keep_predictions: bool = False,
        line_sample: Mapping[str, ImageDataset] | None = None,
    ) -> dict[str, float]:
        """The flat metrics of a split: of the ID domain, and of the OOD domains in `images`.

        Evaluate the validation split first: it determines the evaluated weights and the calibration
        temperature, which other splits then use.

        Args:
            averaged: evaluate `rung_average` in place of the trained weights.
            keep_predictions: keep those of each image in `predictions`.
            line_sample: validation images by which a point of the line is chosen, which is then
                evaluated (`eval.line`); by default the trained weights are.
        """
        on_line: dict[str, float] = {}
        if split == "val" and self.progress.step == 0:
            self.eval_weights = None  # still the zero-shot model
        elif split == "val":
            id_loss = self.validation_loss(images[self.config.data.id_domain])
            weights: Weights = self.weights
            trained = self.rung_average if averaged and self.rung_average else weights
            kept = self.config.method.eval_weights(
                Trained(trained, self.initial, self.average, id_loss)
            )
            self.eval_weights = None if kept is weights else kept
            if line_sample is not None:
                on_line = self._go_to_line(line_sample)
        elif self.temperature is None:
            raise ValueError(f"{split}: the validation split has not been evaluated")
        with self.holding(self.weights if self.eval_weights is None else self.eval_weights):
            temperature = None if split == "val" else self.temperature
            metrics = self.measure(split, images, temperature, keep_predictions=keep_predictions)
            if self.student.text is not None:
                self.eval_head = self.student.head
        if split == "val":
            self.temperature = metrics["id_val/temperature"]
        return metrics | on_line

    def _go_to_line(self, sample: Mapping[str, ImageDataset]) -> dict[str, float]:
        """Replace the evaluated weights by those of a point of the line, as `eval.line` says.

        Returns:
            The point as `line/a`, and what was measured on the sample: `line/0.5/id_val/acc` and so
            on; nothing if the line is off.
        """
        evaluation, weights = self.config.eval, self.eval_weights or self.weights
        if evaluation.line == "off" or not self.config.method.has_line:
            return {}
        initial, measured = self._line_start(weights), dict[float, dict[str, float]]()
        if evaluation.line_points:
            measured[0.0] = self.measure("val", sample, None, zero_shot=True)
            for a in sorted({*evaluation.line_points, 1.0}):
                with self.holding(interpolate(initial, weights, a)):
                    measured[a] = self.measure("val", sample, None)
            metric = MEAN_ACC if self.config.data.ood_domains else ID_ACC
            goal = evaluation.line_goal or LineGoal(objectives=((metric, "max"),))
            chosen = choose_point(measured, goal)
        else:
            chosen = float(evaluation.line)  # type: ignore[arg-type]  # a fixed point
        if chosen != 1:
            self.eval_weights = interpolate(initial, weights, chosen)
        shown = {
            f"line/{a:g}/{name}": metrics[name]
            for a, metrics in sorted(measured.items())
            for name in LINE_METRICS
            if name in metrics
        }
        return {"line/a": chosen, **shown}

    def measure(
        self,
        split: str,
        images: Mapping[str, ImageDataset],
        temperature: float | None,
        *,
        keep_predictions: bool = False,
        zero_shot: bool = False,
    ) -> dict[str, float]:
        """The flat metrics of the student's present weights; see `summarise`.

        Args:
            zero_shot: of the zero-shot model instead, from its features.
        """
        self.student.eval()
        maps, by_domain = self.class_maps(images), dict[str, DomainSums]()
        predictions = {
            domain: Predictions(
                of_domain,
                maps[domain],
                lambda features: self.zero_shot.logit_scale * features @ self.zero_shot.head.T,
                self.device,
                self.rank,
                self.world_size,
            )
            for domain, of_domain in (images if keep_predictions else {}).items()
        }
        for domain, of_domain in images.items():
            drift = self.zero_shot_features.drift(of_domain)
            by_domain[domain] = evaluate(
                self._replayed(drift.zero_shot_features) if zero_shot else self.classify,
                of_domain,
                self.zero_shot_features.batches,
                class_map=maps[domain],
                drift=drift,
                predictions=predictions.get(domain),
            )
        self.student.train()
        if keep_predictions:
            self.predictions = parquet_of(predictions)
        return summarise(by_domain, self.config.data, split, temperature)

    def measure_end(
        self, split: str, images: Mapping[str, ImageDataset], point: float
    ) -> dict[str, float]:
        """The accuracies at the end of the line, as `line/1/...`.

        Args:
            point: of the evaluated weights, from which the line goes on to its end.
        """
        weights = self.eval_weights or self.weights
        with self.holding(interpolate(self._line_start(weights), weights, 1 / point)):
            metrics = self.measure(split, images, self.temperature)
        return {f"line/1/{name}": v for name, v in metrics.items() if name.endswith("acc")}

    def _line_start(self, weights: Weights) -> dict[str, Tensor]:
        """The zero-shot weights, as the line to these weights begins with them.

        The gains of adapters stay, so that the line is that of the merged weights. With maps of 0
        the model is the zero-shot one under any gains.
        """
        gains = {n: v for n, v in weights.items() if n.endswith("_adapters.gains")}
        return {**self.initial, **gains}

    def _replayed(self, features: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """As `classify`, for the zero-shot model, of images whose features (n, D) are known."""
        remaining = features.to(self.device)

        def classify(images: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal remaining
            now, remaining = remaining[: len(images)], remaining[len(images) :]
            if not len(now):  # a worker without images repeats a blank one, which nobody counts
                now = self.zero_shot.head.new_zeros(len(images), self.zero_shot.head.shape[1])
            return now, self.zero_shot.logit_scale * now @ self.zero_shot.head.T

        return classify

    @contextmanager
    def holding(self, weights: Weights) -> Iterator[None]:
        """Within the block, the student has these weights, and a head that goes with them."""

        def encode(tokens: Tensor) -> Tensor:
            features: Tensor = self.student(None, tokens.to(self.device)[None]).text_features[0]
            return features

        with swapped_in(self.student.trained, weights):
            if self.student.text is not None:
                heads = heads_of(encode, self.zero_shot.tokenize, self.zero_shot.prompts)
                self.student.head = heads.classes
            yield

    def validation_loss(self, images: ImageDataset) -> Callable[[Weights], Tensor]:
        """The mean cross-entropy of given weights on the next ID validation images at each call.

        Differentiable with respect to the weights. The images are centre crops, shuffled (the files
        are sorted by class), every one once before any comes again. Every worker computes the loss
        over the images of all workers, so that the mean of the workers' gradients is the gradient.
        """
        config, image_input = self.config, self.zero_shot.image_input
        class_map = self.class_maps({config.data.id_domain: images})[config.data.id_domain]
        sampler = StepSampler(
            len(images),
            self.world_size * max(1, LOSS_BATCH_SIZE // self.world_size),  # same for each worker
            seed=config.seed,
            steps=range(sys.maxsize),
            rank=self.rank,
            world_size=self.world_size,
        )
        samples = ([sample for _, sample in batch] for batch in sampler)
        batches = eval_samples(images, samples, image_input, config.data.workers)

        def loss(weights: Weights) -> Tensor:
            views, labels = next(batches)
            pixels = normalise(views.to(self.device), image_input)
            with self.precision.autocast():
                outputs: Outputs = functional_call(self.student, dict(weights), (pixels,))
            logits, labels = class_map.score(gather(outputs.logits), gather(labels.to(self.device)))
            return functional.cross_entropy(logits, labels)

        return loss


def start(config: TrialConfig, *, device: torch.device | str | None = None) -> TrainState:
    """The state before the first step; `TrainState.evaluate` then measures the zero-shot model.

    Raises:
        ConfigError: the data or the model do not fit the configuration.
    """
    rank, world_size = world()
    if config.optim.batch_size % world_size:
        raise ConfigError(
            f"not divisible by {world_size} workers",
            key="optim.batch_size",
            value=config.optim.batch_size,
        )
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    names = id_classes(config.data)
    check_method_fits(config.method, config.model)
    zero_shot = load_zero_shot(config.model, config.data.rules.prompts(names), where)

    student = Student(zero_shot)
    config.method.prepare(student)
    student.to(where)
    precision = Precision(config.precision, where)
    compiled = config.compile and student.visual is zero_shot.visual
    features = ZeroShotFeatures(zero_shot, config, precision, rank, world_size, compiled=compiled)
    if config.activation_checkpointing:
        keep_no_activations(student.visual)
        if student.text is not None:
            keep_no_activations(student.text)
    if config.parallel == "fsdp" and world_size > 1:
        shard(student, zero_shot)
    if config.compile:
        for encoder in (student.visual, student.text):
            if encoder is not None:
                encoder.compile()

    share = config.optim.batch_size // world_size
    initial = {n: as_sharded(v, student.trained[n]) for n, v in student.initial().items()}
    averages = config.method.average_decay(0, config.steps) is not None
    evaluates_average = averages and not config.method.needs_average
    averages_for_rungs = config.eval.rung_weights == "averaged" and not evaluates_average
    return TrainState(
        config=config,
        zero_shot=zero_shot,
        zero_shot_features=features,
        student=student,
        optimizer=optimizer_of(student, config, config.method.stage(0, config.steps)),
        scaler=precision.scaler(),
        precision=precision,
        device=where,
        rank=rank,
        world_size=world_size,
        progress=Progress(),
        class_names=names,
        initial=initial,
        since=SinceReport.now(0, where),
        average={n: v.clone() for n, v in initial.items()} if averages else None,
        rung_average={n: v.clone() for n, v in initial.items()} if averages_for_rungs else None,
        micro_batch_size=min(config.optim.micro_batch_size or share, share),
    )


def optimizer_of(student: Student, config: TrialConfig, stage: Stage) -> torch.optim.Optimizer:
    """AdamW on the parameters that train; the head, which is their first, has its own rate.

    AdamW decays a weight by the product of learning rate and weight decay. The factor of the head's
    rate divides its weight decay, so that it changes the head's updates but not its decay.
    """
    optim = config.optim
    factor = 1.0 if stage.head_alone else optim.head_lr_factor
    head = {"params": [p for n, p in student.trained.items() if n == "head"]}
    others = {"params": [p for n, p in student.trained.items() if n != "head"]}
    groups: list[dict[str, Any]] = [
        {**head, "lr_factor": factor, "weight_decay": optim.weight_decay / factor},
        {**others, "lr_factor": 1.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def load_split(config: TrialConfig, split: str) -> dict[str, ImageDataset]:
    """The images of all domains of the configuration, the ID domain first."""
    return {domain: open_images(config.data, domain, split) for domain in config.data.domains}


def id_classes(data: DataConfig, split: str = "train") -> tuple[str, ...]:
    """The classes of the head, read from the footer of a Parquet file.

    Raises:
        ConfigError: the ID domain has no such split.
    """
    store = resolve_root(data.root)
    return read_header(store, domain_files(store, data.id_domain, split)[0]).class_names


def open_images(data: DataConfig, domain: str, split: str) -> ImageDataset:
    """The images of one domain and split.

    Raises:
        ConfigError: they are missing or cannot be read.
    """
    return ImageDataset(resolve_root(data.root), domain, split, crop_pct=data.crop_pct)
