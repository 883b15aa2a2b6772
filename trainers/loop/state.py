"""The state of one fine-tuning: what it starts from, and how it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from trainers.checkpoints.format import Progress
from trainers.config import DataConfig, TrialConfig
from trainers.data.class_map import ClassMap, domain_class_map
from trainers.data.data_root import domain_files, resolve_root
from trainers.data.dataset import ImageDataset
from trainers.data.schema import read_header
from trainers.errors import ConfigError
from trainers.evaluation.accumulators import DomainSums
from trainers.evaluation.evaluate import evaluate, summarise
from trainers.evaluation.validation_loss import id_losses
from trainers.evaluation.zero_shot_drift import DriftReference
from trainers.loop.distributed import as_sharded, shard, world
from trainers.loop.precision import Precision
from trainers.methods import Trained, Weights, check_method_fits
from trainers.models import keep_no_activations
from trainers.models.student import Student
from trainers.models.text_head import heads_of
from trainers.models.zero_shot import ZeroShotModel, load_zero_shot
from trainers.weights.averaging import interpolate, swapped_in


@dataclass
class SinceReport:
    """What a worker has done since the run last reported, or since it began."""

    step: int
    """Of that report."""
    sums: Tensor
    """(4,) float64, of loss, task loss, regulariser and gradient norm over the steps since."""
    seconds: float = 0.0
    """Of training, as far as processes that are gone did it."""
    all_sums: Tensor | None = None
    """(W, 4), the sums of all workers, where the run is about to be saved or was just restored."""

    @classmethod
    def now(cls, step: int, device: torch.device) -> SinceReport:
        """Nothing yet."""
        return cls(step, torch.zeros(4, dtype=torch.float64, device=device))


@dataclass
class TrainState:
    """The state of one fine-tuning on one worker."""

    config: TrialConfig
    zero_shot: ZeroShotModel
    student: Student
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    precision: Precision
    device: torch.device
    rank: int
    world_size: int
    progress: Progress
    class_names: tuple[str, ...]
    """(K,) of the ID domain, which are the head's."""
    initial: Mapping[str, Tensor]
    """What is trained, before the first step."""
    drift: DriftReference
    since: SinceReport
    average: dict[str, Tensor] | None = None
    """Of what is trained, where the method has one."""
    eval_weights: Weights | None = None
    """What the last validation evaluated; None where that is what is trained, as it is."""
    eval_head: Tensor | None = None
    """(K, D) the head that went with it, where the text encoder makes one."""
    micro_batch_size: int = 0
    """Images of a worker that go through the model at once."""
    temperature: float | None = None
    """Of calibration, as the last evaluation of the ID validation split found it."""
    reports: list[dict[str, float]] = field(default_factory=list)
    """All so far, each with its `step`."""

    @property
    def is_between_reports(self) -> bool:
        """Whether it has trained since it last reported."""
        return self.progress.step != self.since.step

    @property
    def weights(self) -> dict[str, Tensor]:
        """What is trained, as it is now."""
        return {name: p.detach() for name, p in self.student.trained.items()}

    @torch.no_grad()
    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, K) of normalised images under the current parameters."""
        with self.precision.autocast():
            outputs = self.student(images)
        return outputs.features, outputs.logits

    def class_maps(self, images: Mapping[str, ImageDataset]) -> dict[str, ClassMap]:
        """From the head's classes to those of each domain.

        Raises:
            ConfigError: a domain has classes that the head has not.
        """
        return {
            domain: domain_class_map(self.config.data, self.class_names, domain, of_domain)
            for domain, of_domain in images.items()
        }

    def evaluate(self, split: str, images: Mapping[str, ImageDataset]) -> dict[str, float]:
        """The flat metrics of a split: of the ID domain, and of those OOD domains that are there.

        The validation split comes first: on it, what is deployed and its temperature are settled.
        Other splits are evaluated with both as they were settled there.
        """
        data = self.config.data
        if split == "val":
            self._settle(images[data.id_domain])
        elif self.temperature is None:
            raise ValueError(f"{split}: the validation split has not been evaluated")
        with self.holding(self.weights if self.eval_weights is None else self.eval_weights):
            temperature = None if split == "val" else self.temperature
            metrics = self.measure(split, images, temperature)
            if self.student.text is not None:
                self.eval_head = self.student.head
        if split == "val":
            self.temperature = metrics["id_val/temperature"]
        return metrics

    def sweep(self, split: str, images: Mapping[str, ImageDataset]) -> dict[str, float]:
        """Accuracies on the line from the zero-shot model to what is deployed, by `wise_alphas`.

        WiSE-FT's curve (Wortsman et al., CVPR 2022): `wise/0.5/id_val/acc` and so on.
        """
        found: dict[str, float] = {}
        weights = self.weights if self.eval_weights is None else self.eval_weights
        # With adapters' gains as they are, the line is that of the merged weights; maps of 0 are
        # the zero-shot model under any gain.
        gains = {n: v for n, v in weights.items() if n.endswith("_adapters.gains")}
        for alpha in self.config.eval.wise_alphas:
            with self.holding(interpolate({**self.initial, **gains}, weights, alpha)):
                metrics = self.measure(split, images, self.temperature)
            found |= {f"wise/{alpha:g}/{n}": v for n, v in metrics.items() if n in WISE_METRICS}
        return found

    def measure(
        self, split: str, images: Mapping[str, ImageDataset], temperature: float | None
    ) -> dict[str, float]:
        """The flat metrics of the student as it stands, on the ID domain and any others."""
        return summarise(self.sums(images), self.config.data, split, temperature)

    def sums(self, images: Mapping[str, ImageDataset]) -> dict[str, DomainSums]:
        """What `summarise` makes metrics of, of the student as it stands, by domain."""
        self.student.eval()
        maps = self.class_maps(images)
        by_domain = {
            domain: evaluate(
                self.classify,
                of_domain,
                self.zero_shot.image_input,
                batch_size=self.config.eval.batch_size,
                device=self.device,
                class_map=maps[domain],
                drift=self.drift.of(of_domain),
                workers=self.config.data.workers,
                rank=self.rank,
                world_size=self.world_size,
                lockstep=self.config.parallel == "fsdp",
            )
            for domain, of_domain in images.items()
        }
        self.student.train()
        return by_domain

    @contextmanager
    def holding(self, weights: Weights) -> Iterator[None]:
        """Within the block, the student has these weights, and a head that goes with them."""
        with swapped_in(self.student.trained, weights):
            if self.student.text is not None:
                self.student.head = self._head_of_texts()
            yield

    def _settle(self, id_images: ImageDataset) -> None:
        if self.progress.step == 0:  # nothing has moved
            self.eval_weights = None
            return
        weights, losses = self.weights, id_losses(self, id_images)
        deployed = self.config.method.eval_weights(
            Trained(weights, self.initial, self.average, losses)
        )
        self.eval_weights = None if deployed is weights else deployed

    @torch.no_grad()
    def _head_of_texts(self) -> Tensor:
        """(K, D): the zero-shot head that the text encoder makes now."""

        def encode(tokens: Tensor) -> Tensor:
            features: Tensor = self.student(None, tokens.to(self.device)[None]).text_features[0]
            return features

        return heads_of(encode, self.zero_shot.tokenize, self.zero_shot.prompts).classes


WISE_METRICS = ("id_val/acc", "ood_val/mean_acc", "val/mean_acc")
"""What is said of each point of a sweep, where the data have it."""


def start(config: TrialConfig, *, device: torch.device | str | None = None) -> TrainState:
    """A run before its first step: `TrainState.evaluate` is then zero-shot.

    Raises:
        ConfigError: the data or the model do not fit the configuration.
    """
    rank, world_size = world()
    if config.optim.batch_size % world_size:
        raise ConfigError(
            f"optim.batch_size = {config.optim.batch_size}: not divisible by {world_size} workers"
        )
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    names = id_classes(config.data)
    check_method_fits(config.method, config.model)
    config.method.check_files()
    zero_shot = load_zero_shot(config.model, config.data.rules.prompts(names), where)
    student = Student(zero_shot, config.method.trains).to(where)
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
    precision = Precision(config.precision, where)
    share = config.optim.batch_size // world_size
    initial = {n: as_sharded(v, student.trained[n]) for n, v in student.initial(zero_shot).items()}
    averages = config.method.average_decay(0, config.steps) is not None
    return TrainState(
        config=config,
        zero_shot=zero_shot,
        student=student,
        optimizer=optimizer_of(student, config),
        scaler=precision.scaler(),
        precision=precision,
        device=where,
        rank=rank,
        world_size=world_size,
        progress=Progress(),
        class_names=names,
        initial=initial,
        drift=DriftReference(zero_shot, config, precision, rank, world_size),
        since=SinceReport.now(0, where),
        average={n: v.clone() for n, v in initial.items()} if averages else None,
        micro_batch_size=min(config.optim.micro_batch_size or share, share),
    )


def optimizer_of(student: Student, config: TrialConfig) -> torch.optim.Optimizer:
    """AdamW on what the student trains."""
    optim = config.optim
    return torch.optim.AdamW(
        student.trained.values(),
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def load_split(config: TrialConfig, split: str) -> dict[str, ImageDataset]:
    """The images of all the configuration's domains, the ID domain first."""
    return {domain: open_images(config.data, domain, split) for domain in config.data.domains}


def id_classes(data: DataConfig, split: str = "train") -> tuple[str, ...]:
    """The classes of the head, from a footer: no image is read or cached for their sake.

    Raises:
        ConfigError: the ID domain has no such split.
    """
    store = resolve_root(data.root)
    return read_header(store, domain_files(store, data.id_domain, split)[0]).class_names


def open_images(data: DataConfig, domain: str, split: str) -> ImageDataset:
    """The images of one domain and split, as the configuration wants them read.

    Raises:
        ConfigError: they are not there, or cannot be read.
    """
    return ImageDataset(
        resolve_root(data.root), domain, split, cache_gb=data.cache_gb, crop_pct=data.crop_pct
    )
