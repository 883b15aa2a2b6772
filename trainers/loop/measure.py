"""Measuring of weights on the images that are given. Nothing is chosen here: see `choose`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from trainers.evaluation.evaluate import Classify, measure_domain
from trainers.evaluation.metrics import flat_metrics
from trainers.evaluation.predictions import Predictions, parquet_of
from trainers.hang import alive
from trainers.loop.images import Images
from trainers.loop.setup import Setup
from trainers.methods.base import Weights
from trainers.models.averaging import swapped_in
from trainers.models.student import Student
from trainers.models.text_head import heads_of


def measure(setup: Setup, student: Student, images: Images) -> dict[str, float]:
    """The metrics of a student's present weights, by the names of `MetricKey`."""
    (metrics,) = measure_each(setup, [partial(classify, setup, student)], images)
    return metrics


def measure_with_predictions(
    setup: Setup, student: Student, images: Images
) -> tuple[dict[str, float], bytes]:
    """The metrics of a student's present weights, and a Parquet file of its predictions."""
    predictions = {
        domain: Predictions(images[domain], class_map, setup.batches)
        for domain, class_map in setup.class_maps(images).items()
    }
    models = [partial(classify, setup, student)]
    _, metrics = measure_each(setup, models, images, with_zero_shot=True, predictions=predictions)
    return metrics, parquet_of(predictions)


def measure_zero_shot(setup: Setup, images: Images) -> dict[str, float]:
    """The metrics of the zero-shot model, whose features are stored for later trainings."""
    (metrics,) = measure_each(setup, [], images, with_zero_shot=True)
    return metrics


def measure_each(
    setup: Setup,
    models: Sequence[Classify],
    images: Images,
    *,
    with_zero_shot: bool = False,
    predictions: Mapping[str, Predictions] | None = None,
) -> list[dict[str, float]]:
    """The metrics of each model, after those of the zero-shot model if wanted.

    Each image is read once for all of them. `predictions` by domain are filled in.
    """
    by_domain = dict[str, list[dict[str, float]]]()
    for domain, class_map in setup.class_maps(images).items():
        stored = None
        if with_zero_shot:
            features = setup.zero_shot_features.of_images(images[domain])
            stored = features, setup.zero_shot.logits
        _, by_domain[domain] = measure_domain(
            models,
            images[domain],
            setup.batches,
            class_map=class_map,
            stored=stored,
            note=None if predictions is None else predictions[domain].add,
        )
    return [
        flat_metrics(dict(zip(by_domain, of_model, strict=True)), setup.config.data, images.split)
        for of_model in zip(*by_domain.values(), strict=True)
    ]


@torch.no_grad()
def classify(setup: Setup, student: Student, images: Tensor) -> Tensor:
    """Logits (B, K) of normalised images under the present weights."""
    with setup.precision.autocast():
        return student(images).logits


def classifier_of(setup: Setup, student: Student, weights: Callable[[], Weights]) -> Classify:
    """`classify` with the weights that a function returns.

    It is called for each batch: the weights of several models may not fit into memory.
    """
    with holding(setup, student, weights()):
        head = student.head

    def classify_there(images: Tensor) -> Tensor:
        with swapped_in(student.trained, weights()):
            if student.text is not None:
                student.head = head
            return classify(setup, student, images)

    return classify_there


@contextmanager
def holding(setup: Setup, student: Student, weights: Weights) -> Iterator[None]:
    """Within the block, the student has these weights, and a head that goes with them."""

    def encode(tokens: Tensor) -> Tensor:
        features: Tensor = student(None, tokens.to(setup.device)[None]).text_features[0]
        alive()  # all prompts may take longer than a batch of images
        return features

    with swapped_in(student.trained, weights):
        if student.text is not None:
            zero_shot = setup.zero_shot
            student.head = heads_of(encode, zero_shot.tokenize_once, zero_shot.prompts).classes
        yield
