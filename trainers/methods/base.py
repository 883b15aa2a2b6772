"""The interface of a fine-tuning method: what is trained, what a step minimises, what is kept.

A method is a value: its own configuration and nothing that changes. What does change in training,
the weights, their average, the optimiser, belongs to the loop, which asks the method about it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.frozen import Frozen
from trainers.models import ModelConfig, TextFacts, text_facts
from trainers.models.student import Outputs, Student
from trainers.seeding import generator
from trainers.texts.prompts import Prompts

if TYPE_CHECKING:
    from trainers.models.zero_shot import ZeroShotModel

Weights: TypeAlias = Mapping[str, Tensor]
"""Trained parameters by their names in the student."""

Texts: TypeAlias = Sequence[Sequence[str]]
"""G kinds of text, in each one for every image."""

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Batch:
    """What a loss is made of: B images, D features, K classes, G kinds of text an image.

    It is one worker's share of a step, or a part of it, for a loss that is a mean over images
    (`Method.per_image`), and all workers' images for one that compares them with each other.
    """

    labels: Tensor
    """(B,) int64."""
    student: Outputs
    """Under the current parameters."""
    zero_shot: Outputs | None = None
    """Of the same views and texts under the zero-shot parameters, where asked for."""
    average: Outputs | None = None
    """Of the same under the average of the parameters so far, where asked for."""


@dataclass(frozen=True)
class Step:
    """Where in its training a run is, and what a loss may need besides the batch."""

    zero_shot: ZeroShotModel
    number: int
    """Of the optimiser step, counted from 0."""
    steps: int
    """Of the whole run."""
    seed: int
    weights: Mapping[str, nn.Parameter]
    """What is trained, by its names in the student: the live parameters."""
    initial: Weights
    """The same before the first step."""


@dataclass(frozen=True)
class Trained:
    """What a run has come to."""

    weights: Weights
    initial: Weights
    """Before the first step."""
    average: Weights | None
    """Where the method has one."""
    id_loss: Callable[[Weights], Tensor]
    """The mean cross-entropy, differentiable, of weights on some ID validation images: the next
    ones at every call."""


@dataclass(frozen=True)
class StepRandom:
    """Chance at a step, for one worker's share of the images.

    What falls to an image depends on (seed, step) and its place in the whole batch, so it is the
    same however many workers there are.
    """

    seed: int
    step: int
    batch_size: int
    """Of all workers."""
    rank: int = 0
    world_size: int = 1

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers of this step, the same on every worker."""
        return generator(self.seed, purpose, self.step)

    def choose(self, purpose: str, number: int) -> list[int]:
        """For each of the worker's images one of 0 .. number - 1, uniformly."""
        drawn = self.generator(purpose).integers(number, size=self.batch_size)
        chosen: list[int] = drawn[self.rank :: self.world_size].tolist()
        return chosen


@dataclass(frozen=True)
class Loss:
    """The terms of a loss, each a scalar."""

    task: Tensor
    reg: Tensor
    reg_weight: float = 1.0

    @property
    def total(self) -> Tensor:
        """What is minimised: ``task + reg_weight * reg``."""
        return self.task + self.reg_weight * self.reg


@dataclass(frozen=True)
class Stage:
    """A part of a run with a learning-rate schedule and an optimiser of its own."""

    first: int
    """Its first step."""
    steps: int
    lr: float | None = None
    """Peak learning rate; None is the configuration's."""
    head_alone: bool = False
    """Whether the image encoder is left as it is."""


class Method(Frozen, ABC):
    """A method is its own configuration: frozen, and named by its `name` field."""

    name: str

    shardable: ClassVar[bool] = True
    """Whether the weights may be spread over workers."""

    def prepare(self, student: Student) -> None:
        """Choose what trains, and insert modules if the method has any; called once at the start.

        By default the image encoder and the head train. Nothing is trainable before. Changes of
        weights are best inserted with `torch.nn.utils.parametrize`: `merged_state` merges these.
        """
        student.train_image_encoder()

    def merged_state(self, student: Student) -> dict[str, Tensor]:
        """The student's weights under open_clip's names, with all that `prepare` inserted merged.

        `visual.*` and `head`, and `text.*` if the student has a text encoder. Checkpoints hold
        these, and `lipsum-tune export` writes them.
        """
        return student.plain_state()

    def during_step(self, student: Student, draw: StepRandom) -> AbstractContextManager[object]:
        """A context around the forward and backward passes of a step; by default without effect.

        Whatever is random must come from `draw.generator`, so that all workers agree.
        """
        return nullcontext()

    @property
    def per_image(self) -> bool:
        """Whether the loss is a mean over images, each for itself, besides terms of the
        parameters alone. Then a batch may be split and its parts' losses averaged."""
        return True

    @property
    def needs_zero_shot(self) -> bool:
        """Whether `loss` reads `Batch.zero_shot`."""
        return False

    @property
    def needs_average(self) -> bool:
        """Whether `loss` reads `Batch.average`."""
        return False

    def check(self, text: TextFacts) -> None:
        """Raise a `ConfigError` where this method cannot work with a model of such texts."""
        return None

    def check_model(self, model: ModelConfig) -> None:
        """Raise a `ConfigError` where the model lacks a part that this method works on."""
        return None

    def check_files(self) -> None:
        """Raise a `ConfigError` where a file that this method reads is missing or has changed."""
        return None

    @property
    def idle(self) -> frozenset[str]:
        """Fields that change nothing, the others being what they are; they are not searched."""
        return frozenset()

    def stage(self, step: int, steps: int) -> Stage:
        """The part of the run that a step belongs to; by default the run is one."""
        return Stage(0, steps)

    def texts(self, labels: Sequence[int], prompts: Prompts, draw: StepRandom) -> Texts:
        """The texts of a worker's images; none by default.

        Args:
            labels: (B,) of the images.
            prompts: of the classes.
            draw: whatever is random comes from here.
        """
        return ()

    @abstractmethod
    def loss(self, batch: Batch, step: Step) -> Loss:
        """The loss of a batch.

        Whatever is random depends on (seed, step) alone, so that all workers agree on it.
        """

    def average_decay(self, step: int, steps: int) -> float | None:
        """d of ``average <- d average + (1 - d) weights`` after a step; None: nothing is averaged.

        The first average is the initial weights.
        """
        return None

    def eval_weights(self, trained: Trained) -> Weights:
        """What is evaluated, kept and exported; by default the trained weights."""
        return trained.weights


def check_method_fits(method: Method, model: ModelConfig) -> None:
    """Raise a `ConfigError` where the method cannot work with the model; no weights are loaded."""
    method.check(text_facts(model))
    method.check_model(model)


def cross_entropy(batch: Batch) -> Tensor:
    """The task term of a classifier: the mean cross-entropy of the student's logits, a scalar."""
    return functional.cross_entropy(batch.student.logits, batch.labels)


def zero(like: Tensor) -> Tensor:
    """The regulariser of a method that has none."""
    return torch.zeros((), dtype=like.dtype, device=like.device)


def scheduled(weight: float, schedule: Schedule, step: Step) -> float:
    """A regulariser's weight at a step: constant, or falling from its value to 0 over the run."""
    if schedule == "constant":
        return weight
    done = step.number / step.steps
    if schedule == "linear":
        return weight * (1 - done)
    return weight * 0.5 * (1 + math.cos(math.pi * done))


def kl_divergence(of_logits: Tensor, from_logits: Tensor) -> Tensor:
    """``KL(softmax(of_logits) || softmax(from_logits))``, the mean over the rows, a scalar."""
    return functional.kl_div(
        from_logits.log_softmax(dim=-1),
        of_logits.log_softmax(dim=-1),
        reduction="batchmean",
        log_target=True,
    )
