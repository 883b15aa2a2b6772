"""What does not change while a model trains or is evaluated."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trainers.config import TrialConfig
from trainers.data.class_map import ClassMap, domain_class_map
from trainers.data.dataset import ImageDataset
from trainers.data.record_file import RecordFolder
from trainers.distributed import world
from trainers.errors import ConfigError, suggestion
from trainers.evaluation.evaluate import EvalBatches
from trainers.loop.images import Images, id_classes, open_images
from trainers.loop.precision import Precision
from trainers.loop.zero_shot_features import ZeroShotFeatures
from trainers.models.config import ModelConfig
from trainers.models.student import Student
from trainers.models.zero_shot import ZeroShotModel, load_zero_shot
from trainers.texts import Prompts


@dataclass(frozen=True, eq=False)
class Setup:
    """A configuration and its zero-shot model on the device of one worker."""

    config: TrialConfig
    zero_shot: ZeroShotModel
    class_names: tuple[str, ...]
    """(K,) classes of the ID domain, which are those of the head."""
    device: torch.device

    @property
    def rank(self) -> int:
        """Of this worker."""
        return world()[0]

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return world()[1]

    @cached_property
    def precision(self) -> Precision:
        """Of the encoders."""
        return Precision(self.config.precision, self.device)

    @cached_property
    def batches(self) -> EvalBatches:
        """Those of evaluations."""
        data, size = self.config.data, self.config.eval.batch_size
        limit = int(data.decoded_gb * 1e9)
        decoded = RecordFolder(data.cache_path / "lipsum-tune-decoded", limit, "decoded images")
        where = self.device, self.loader_processes
        return EvalBatches(self.zero_shot.image_input, size, *where, decoded if limit else None)

    @property
    def loader_processes(self) -> int:
        """Processes that decode the images of this worker."""
        return self.config.data.loader_processes(on_gpu=self.device.type == "cuda")

    @cached_property
    def zero_shot_features(self) -> ZeroShotFeatures:
        """Features of the zero-shot model, which all trials of a machine share."""
        return ZeroShotFeatures(self.config, self.zero_shot, self.precision, self.batches)

    @cached_property
    def class_weights(self) -> Tensor | None:
        """(K,) of the configuration's `class_weights`; None without."""
        given = self.config.class_weights
        if given is None:
            return None
        train = open_images(self.config.data, self.config.data.id_domain, "train")
        return class_weights(given, train.labels, self.class_names).to(self.device)

    def class_map(self, domain: str, images: ImageDataset) -> ClassMap:
        """The mapping from the head's classes to those of a domain."""
        return domain_class_map(self.config.data, self.class_names, domain, images.class_names)

    def class_maps(self, images: Images) -> dict[str, ClassMap]:
        """The mapping to the classes of each domain."""
        return {domain: self.class_map(domain, of_domain) for domain, of_domain in images.items()}

    def student(self) -> Student:
        """A student as the method prepares it, which still is the zero-shot model."""
        student = Student(self.zero_shot)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            self.config.method.prepare(student)
        if self.device.type != "cpu":  # where all of it is made; fake tensors refuse to move
            student.to(self.device)
        if self.config.compile:
            for encoder in (student.visual, student.text):
                if encoder is not None:
                    encoder.compile()
        return student


class KeptModel:
    """The zero-shot model of the last training of a process, for the next one with the same model.

    Loading takes longer than a short training. One model is kept: it is freed before another one is
    loaded. It is float32 on its device, whatever the precision of a training.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._model: ZeroShotModel | None = None
        self._versions: list[int] = []

    def of(self, model: ModelConfig, prompts: Prompts, device: torch.device) -> ZeroShotModel:
        """The zero-shot model, loaded if it is not the kept one or if its files have changed."""
        stats = [(file, file.stat()) for file in model.files]
        files = [(file, stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
        key = (model, prompts, device, *files)
        # A plug-in may have written into its tensors, which PyTorch counts.
        if self._model is None or key != self._key or _versions(self._model) != self._versions:
            self._model = None
            self._model = load_zero_shot(model, prompts, device)
            self._versions = _versions(self._model)
            self._key = key
        return self._model


def _versions(model: ZeroShotModel) -> list[int]:
    tensors = (model.head, model.contexts, *model.clip.state_dict().values())
    return [tensor._version for tensor in tensors]


def set_up(
    config: TrialConfig,
    *,
    device: torch.device | str | None = None,
    kept: KeptModel | None = None,
) -> Setup:
    """Load the zero-shot model of a configuration; by default on a GPU if there is one."""
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
    zero_shot = (kept or KeptModel()).of(config.model, config.data.rules.prompts(names), where)
    if config.precision == "tf32":  # convolutions are by PyTorch's default
        torch.set_float32_matmul_precision("high")
    return Setup(config, zero_shot, names, where)


def class_weights(
    given: Literal["auto"] | Mapping[str, float],
    labels: np.ndarray,
    class_names: Sequence[str],
) -> Tensor:
    """The (K,) weights, whose mean over the training images is 1.

    The loss of an image times the weight of its class can therefore be averaged over any part of a
    batch, and the learning rate keeps its meaning.

    Args:
        given: `auto` is the inverse of the number of images; of names, others have the weight 1.
        labels: (N,) of the training images.
    """
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
