"""The interface of a fine-tuning method: what trains, what a step minimises, what is kept.

A method is an immutable value: its own configuration. The state of training (weights, their
average, the optimiser) belongs to the loop.

The modules of methods are part of every configuration, so they import torch in the functions that
compute: commands that only read a configuration start in a second.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from pydantic import Field

from trainers.config_model import Frozen
from trainers.seeding import generator
from trainers.texts import Prompts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.models.config import ModelConfig
    from trainers.models.student import Outputs, Student
    from trainers.models.zero_shot import ZeroShotModel

Weights: TypeAlias = "Mapping[str, Tensor]"
"""Trained parameters by their names in the student."""

Texts: TypeAlias = Sequence[Sequence[str]]
"""G kinds of text, each with one text for every image."""

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Batch:
    """Inputs of a loss: B images, D features, K classes, G kinds of text for each image.

    For a loss that is a mean over images (`Method.per_image`) it is one worker's share of a step,
    or a part of it; for a loss that compares images it has the images of all workers.
    """

    labels: Tensor
    """(B,) int64."""
    student: Outputs
    """Outputs under the current parameters."""
    zero_shot: Outputs | None = None
    """Outputs of the zero-shot model for the same views and texts, if `needs_zero_shot`."""
    average: Outputs | None = None
    """Outputs under the average of the parameters so far, if there is an `average_decay`."""
    class_weights: Tensor | None = None
    """(K,) weights of `class_weights`, which `cross_entropy` applies."""


class RandomTextFeatures(Protocol):
    """The zero-shot model's features of random texts, which all trials of a machine share."""

    def of_random_texts(self, count: int, length: int, step: int) -> Tensor:
        """L2-normalised features (count, D) of a step's random texts of `length` tokens."""


@dataclass(frozen=True)
class Step:
    """Position in training, and inputs of a loss besides the batch."""

    zero_shot: ZeroShotModel
    zero_shot_features: RandomTextFeatures
    number: int
    """Index of the optimiser step, from 0."""
    steps: int
    """Number of steps of the whole run."""
    seed: int
    weights: Mapping[str, nn.Parameter]
    """The parameters that train, by their names in the student, with gradients."""
    initial: Weights
    """Their values before the first step."""


@dataclass(frozen=True)
class StepRandom:
    """Random numbers of one step, for one worker's share of the images.

    The value of an image depends on (seed, step) and its position in the whole batch, so it is the
    same for any number of workers.
    """

    seed: int
    step: int
    batch_size: int
    """Images of all workers."""
    rank: int = 0
    world_size: int = 1

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers of this step, the same on every worker."""
        return generator(self.seed, purpose, self.step)

    def choose(self, purpose: str, number: int) -> list[int]:
        """One of 0 .. number - 1 for each of the worker's images, uniformly."""
        drawn = self.generator(purpose).integers(number, size=self.batch_size)
        return drawn[self.rank :: self.world_size].tolist()


@dataclass(frozen=True)
class Loss:
    """The terms of a loss, each a scalar."""

    task: Tensor
    reg: Tensor | None = None
    """The regulariser; None is 0."""
    reg_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, term in (("task", self.task), ("reg", self.reg)):
            if term is not None and term.ndim:
                shape = tuple(term.shape)
                raise ValueError(f"{name} of the Loss has shape {shape}; it must be a scalar")

    @property
    def total(self) -> Tensor:
        """The minimised value: ``task + reg_weight * reg``."""
        return self.task if self.reg is None else self.task + self.reg_weight * self.reg


@dataclass(frozen=True)
class Stage:
    """A part of a run with its own learning-rate schedule and optimiser."""

    first: int
    """Its first step."""
    steps: int
    lr: float | None = None
    """Peak learning rate; None uses `optim.lr`."""
    head_alone: bool = False
    """Whether only the head trains."""


class Method(Frozen):
    """Base class of methods: a frozen configuration, identified by its `name` field."""

    name: str

    has_line: ClassVar[bool] = True
    """Whether `eval.line` chooses a point between its weights and the zero-shot ones."""
    line_keeps: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of trained parameters that keep their values along the line, so that the
    merged weights are linear in the others: of a product, one factor."""

    def prepare(self, student: Student) -> None:
        """Choose what trains, and insert modules if the method has any; called once at the start.

        By default the image encoder and the head train. Nothing is trainable before. Insert changes
        of weights with `torch.nn.utils.parametrize`: checkpoints and exports have them merged.
        PyTorch's random numbers are those of the trial's seed.
        """
        student.train_image_encoder()

    def during_step(self, student: Student, draw: StepRandom) -> AbstractContextManager[object]:
        """A context around the forward and backward passes of a step; by default without effect.

        Whatever is random must come from `draw.generator`, so that all workers agree.
        """
        return nullcontext()

    def updating(
        self, weights: Mapping[str, nn.Parameter], initial: Weights
    ) -> AbstractContextManager[object]:
        """A context around the optimiser's update of the weights, with their final gradients."""
        return nullcontext()

    def add_penalty(
        self,
        gradients: list[Tensor],
        weights: list[Tensor],
        initial: list[Tensor],
    ) -> tuple[Tensor, float] | None:
        """Add the gradient of a term of the weights alone to those of a step, which are of all
        workers and without the scale of float16; by default there is no such term.

        `loss` may hold one, too, at the price of some kernels for each tensor in the forward and in
        the backward pass.

        Args:
            gradients: of the trained parameters that have one.
            weights: the values of the same ones.
            initial: their values before the first step.

        Returns:
            The term's value, a scalar, and its weight in the loss, as `reg` and `reg_weight` of a
            `Loss`.
        """
        return None

    @property
    def per_image(self) -> bool:
        """Whether the loss is a mean over independent images, plus terms of the parameters alone.

        Then a batch may be split, and the losses of its parts averaged.
        """
        return True

    @property
    def needs_zero_shot(self) -> bool:
        """Whether `loss` reads `Batch.zero_shot`."""
        return False

    @property
    def ema(self) -> float | None:
        """d of a moving average that is evaluated in place of the weights, as `eval.ema`: the field
        `ema_decay`, if the method has one."""
        return getattr(self, "ema_decay", None)

    def check(self, model: ModelConfig) -> None:
        """Raise a `ConfigError` if the method cannot train this model."""

    def stage(self, step: int, steps: int) -> Stage:
        """The stage that a step belongs to; by default the run has one stage."""
        return Stage(0, steps)

    def texts(self, labels: Sequence[int], prompts: Prompts, draw: StepRandom) -> Texts:
        """The texts of a worker's images, whose labels are given; none by default.

        Everything random must come from `draw`.
        """
        return ()

    def loss(self, batch: Batch, step: Step) -> Loss:
        """The loss of a batch; by default cross-entropy.

        Everything random must depend on (seed, step) alone, so that all workers agree.
        """
        return Loss(cross_entropy(batch))

    @property
    def weighs_classes(self) -> bool:
        """Whether the loss uses `cross_entropy` of this module, which applies `class_weights`."""
        return type(self).loss in (Method.loss, ZeroShotRegulariser.loss)

    def average_decay(self, step: int, steps: int) -> float | None:
        """d of ``average <- d average + (1 - d) weights`` after a step; None for no average.

        The average starts as the initial weights, and the loss reads its outputs (`Batch.average`).
        """
        return None

    def eval_weights(
        self, trained: Weights, initial: Weights, id_gradient: Callable[[Weights], Weights]
    ) -> Weights:
        """The weights that are evaluated, saved and exported; by default the trained ones.

        Args:
            trained: the last ones, or their moving average (`ema`, `eval.ema`).
            initial: those before the first step.
            id_gradient: the gradient, by weights, of the mean cross-entropy on a batch of ID
                validation images, the next one at each call.
        """
        return trained


class ZeroShotRegulariser(Method, ABC):
    """Base of classifiers whose regulariser compares with the zero-shot model on the same views."""

    reg_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the regulariser."""

    @property
    def needs_zero_shot(self) -> bool:
        return self.reg_weight > 0

    def loss(self, batch: Batch, step: Step) -> Loss:
        task = cross_entropy(batch)
        if batch.zero_shot is None:
            return Loss(task)
        reg = self.regulariser(batch.student, batch.zero_shot, step)
        return Loss(task, reg, self.weight_at(step))

    def weight_at(self, step: Step) -> float:
        """The regulariser's weight at a step."""
        return self.reg_weight

    @abstractmethod
    def regulariser(self, student: Outputs, zero_shot: Outputs, step: Step) -> Tensor:
        """The distance of the student from the zero-shot model, a scalar."""


def cross_entropy(batch: Batch) -> Tensor:
    """The task term of a classifier: the mean cross-entropy of the student's logits, a scalar."""
    from torch.nn import functional

    if batch.class_weights is None:
        return functional.cross_entropy(batch.student.logits, batch.labels)
    losses = functional.cross_entropy(batch.student.logits, batch.labels, reduction="none")
    return (batch.class_weights[batch.labels] * losses).mean()


def sums(tensors: tuple[Tensor, ...]) -> Tensor:
    """The sum of the elements of each tensor, (n,), in a few kernels for all of them.

    PyTorch has no such operation for lists. The 1-norm of what is positive is its sum.
    """
    import torch

    positive = torch._foreach_norm(torch._foreach_clamp_min(tensors, 0), 1)
    negative = torch._foreach_norm(torch._foreach_clamp_max(tensors, 0), 1)
    return torch.stack(positive) - torch.stack(negative)


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
    from torch.nn import functional

    return functional.kl_div(
        from_logits.log_softmax(dim=-1),
        of_logits.log_softmax(dim=-1),
        reduction="batchmean",
        log_target=True,
    )
