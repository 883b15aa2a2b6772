"""The choice of the weights that are evaluated and kept, by validation images alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from trainers.data.dataset import ImageDataset
from trainers.data.loaders import StepSampler, eval_samples
from trainers.data.transforms import normalise
from trainers.evaluation.line import LineGoal, choose_point
from trainers.evaluation.metrics import ID_ACC, MEAN_ACC, OOD_MEAN_ACC
from trainers.hang import alive
from trainers.loop.images import ValidationImages
from trainers.loop.measure import classifier_of, measure_each
from trainers.loop.training import Training
from trainers.methods.base import Weights
from trainers.models.averaging import interpolate, swapped_in

LINE_METRICS = (ID_ACC, OOD_MEAN_ACC, MEAN_ACC)
"""Reported for each measured point of the line, if the data have them."""

LOSS_BATCH_SIZE = 64
"""Images of all workers for each value of the validation loss."""


@dataclass(frozen=True)
class Choice:
    """The weights that are evaluated."""

    weights: Weights
    end: Weights
    """The end of the line, on which they are a point."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The point as `line/a`, and what was measured on the line: `line/0.5/id_val/acc`."""


def choose(training: Training, images: ValidationImages) -> Choice:
    """The weights of the method, and after the last step a point of the line to them.

    All workers must call it.
    """
    config = training.setup.config
    trained = training.student.weights if training.ema is None else training.ema
    gradient = validation_gradient(training, images[config.data.id_domain])
    end = config.method.eval_weights(trained, training.initial, gradient)
    if not training.is_done or config.eval.line == "off" or not config.method.has_line:
        return Choice(end, end)
    # One factor of a product, such as the gains of adapters, stays, so that the line is that of the
    # merged weights. With the other one 0, the model is the zero-shot one.
    keeps = config.method.line_keeps
    start = {**training.initial, **{n: v for n, v in end.items() if n.endswith(keeps)}}
    measured = dict[float, dict[str, float]]()
    if config.eval.line_points:
        measured = _measured_line(training, start, end, images.sampled(config.eval.line_images))
        metric = MEAN_ACC if config.data.ood_domains else ID_ACC
        goal = config.eval.line_goal or LineGoal(objectives=((metric, "max"),))
        point = choose_point(measured, goal)
    else:
        point = float(config.eval.line)  # type: ignore[arg-type]  # a fixed point
    shown = {
        f"line/{a:g}/{name}": metrics[name]
        for a, metrics in sorted(measured.items())
        for name in LINE_METRICS
        if name in metrics
    }
    weights = end if point == 1 else interpolate(start, end, point)
    return Choice(weights, end, {"line/a": point, **shown})


def _measured_line(
    training: Training, start: Weights, end: Weights, images: ValidationImages
) -> dict[float, dict[str, float]]:
    """The metrics at the points of `eval.line` and at both ends: at 0 of the zero-shot model."""
    setup, student = training.setup, training.student
    points = sorted({*setup.config.eval.line_points, 1.0})
    models = [classifier_of(setup, student, partial(interpolate, start, end, a)) for a in points]
    found = measure_each(setup, models, images, with_zero_shot=True)
    return dict(zip((0.0, *points), found, strict=True))


def validation_gradient(
    training: Training, images: ImageDataset
) -> Callable[[Weights], dict[str, Tensor]]:
    """The gradient, by weights, of the mean cross-entropy on the next ID validation images.

    The images are centre crops, shuffled (the files are sorted by class), every one once before any
    comes again. Every worker has as many: the mean of the workers' gradients is the gradient.
    """
    setup, student = training.setup, training.student
    image_input = setup.zero_shot.image_input
    class_map = setup.class_map(setup.config.data.id_domain, images)
    sampler = StepSampler(
        len(images),
        setup.world_size * max(1, LOSS_BATCH_SIZE // setup.world_size),  # same for each worker
        seed=setup.config.seed,
        steps=range(sys.maxsize),
        rank=setup.rank,
        world_size=setup.world_size,
    )
    samples = ([sample for _, sample in batch] for batch in sampler)
    decoded = setup.batches.decoded
    batches = eval_samples(images, samples, image_input, setup.loader_processes, decoded=decoded)

    def gradient(weights: Weights) -> dict[str, Tensor]:
        views, labels = (part.to(setup.device) for part in next(batches))
        found = [torch.zeros_like(parameter) for parameter in student.trained.values()]
        with swapped_in(student.trained, weights):
            for first in range(0, len(labels), training.micro_batch_size):
                alive()
                rows = slice(first, first + training.micro_batch_size)
                with setup.precision.autocast():
                    outputs = student(normalise(views[rows], image_input))
                logits = class_map.project(outputs.logits)
                columns = class_map.columns(labels[rows])
                loss = functional.cross_entropy(logits, columns, ignore_index=-1, reduction="sum")
                loss = loss / len(labels)
                own = torch.autograd.grad(loss, list(student.trained.values()))
                torch._foreach_add_(found, own)
        return dict(zip(student.trained, found, strict=True))

    return gradient
