"""Evaluation of a run: which weights, on which images, and the choice of a point of the line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from trainers.data.class_map import ClassMap, domain_class_map
from trainers.data.dataset import ImageDataset, StepSampler, eval_samples
from trainers.data.transforms import normalise
from trainers.evaluation.evaluate import Classify, evaluate
from trainers.evaluation.line import LineGoal, choose_point
from trainers.evaluation.metrics import ID_ACC, MEAN_ACC, OOD_MEAN_ACC, flat_metrics
from trainers.evaluation.predictions import Predictions, parquet_of, with_end
from trainers.hang import alive
from trainers.loop.state import TrainState
from trainers.methods.base import Weights
from trainers.models.averaging import interpolate, swapped_in
from trainers.models.text_head import heads_of

LINE_METRICS = (ID_ACC, OOD_MEAN_ACC, MEAN_ACC)
"""Reported for each measured point of the line, if the data have them."""

LOSS_BATCH_SIZE = 64
"""Images of all workers for each value of the validation loss."""

Images = Mapping[str, ImageDataset]
"""The images of a split by their domain."""


def evaluate_run(
    run: TrainState, split: str, images: Images, *, line_sample: Images | None = None
) -> dict[str, float]:
    """The flat metrics of a split: of the ID domain, and of the OOD domains in `images`.

    Before the first step they are those of the zero-shot model, whose features are stored then, so
    that no later training computes them.

    Evaluate the validation split first: it determines the evaluated weights. The run keeps the
    predictions on it after the last step, and those on any other split in their place.

    Args:
        line_sample: after the last step, validation images by which a point of the line is chosen,
            which is then evaluated (`eval.line`).
    """
    if run.progress.step == 0:
        (metrics,) = measure_each(run, [], split, images)
        return metrics
    on_line = choose_weights(run, images, line_sample) if split == "val" else {}
    with holding(run, run.eval_weights or run.weights):
        keeps = split != "val" or line_sample is not None
        metrics = measure(run, split, images, keep_predictions=keeps)
        if run.student.text is not None:
            run.eval_head = run.student.head
    return metrics | on_line


def choose_weights(
    run: TrainState, images: Images, line_sample: Images | None = None
) -> dict[str, float]:
    """Set the evaluated weights: those of the method, or of a point of the line to them.

    `images` are of the validation split, `line_sample` as in `evaluate_run`. Returned is what was
    measured on the line.
    """
    now: Weights = run.weights
    trained = now if run.ema is None else run.ema
    gradient = validation_gradient(run, images[run.config.data.id_domain])
    chosen = run.config.method.eval_weights(trained, run.initial, gradient)
    run.eval_weights = run.end_weights = None if chosen is now else chosen
    return {} if line_sample is None else go_to_line(run, line_sample)


def measure(
    run: TrainState, split: str, images: Images, *, keep_predictions: bool = False
) -> dict[str, float]:
    """The flat metrics of the student's present weights."""
    models = [partial(classify, run)]
    *_, metrics = measure_each(run, models, split, images, keep_predictions, keep_predictions)
    return metrics


def measure_each(
    run: TrainState,
    models: Sequence[Classify],
    split: str,
    images: Images,
    with_zero_shot: bool = True,
    keep_predictions: bool = False,
) -> list[dict[str, float]]:
    """The flat metrics of the zero-shot model, if wanted, and of each model after it.

    Each image is read once for all, see `evaluate`.
    """
    batches = run.zero_shot_features.batches
    measured = dict[str, list[dict[str, float]]]()
    predictions = dict[str, Predictions]()
    for domain, class_map in class_maps(run, images).items():
        zero_shot = [run.zero_shot_features.classifier(images[domain])] if with_zero_shot else []
        note = None
        if keep_predictions:
            predictions[domain] = Predictions(images[domain], class_map, batches)
            note = predictions[domain].add
        _, measured[domain] = evaluate(
            [*zero_shot, *models], images[domain], batches, class_map=class_map, note=note
        )
    if keep_predictions:
        run.predictions = parquet_of(predictions)
    return [
        flat_metrics(dict(zip(measured, of_model, strict=True)), run.config.data, split)
        for of_model in zip(*measured.values(), strict=True)
    ]


def measure_end(run: TrainState, split: str, images: Images) -> dict[str, float]:
    """The accuracies at the end of the line, as `line/1/...`; the run keeps its predictions, too.

    Evaluate the same split with `evaluate_run` first.
    """
    with holding(run, run.end_weights or run.weights):
        of_point = run.predictions
        metrics = measure(run, split, images, keep_predictions=True)
        assert of_point is not None  # see `evaluate_run`
        assert run.predictions is not None
        run.predictions = with_end(of_point, run.predictions)
    return {f"line/1/{name}": v for name, v in metrics.items() if name.endswith("acc")}


@torch.no_grad()
def classify(run: TrainState, images: Tensor) -> Tensor:
    """Logits (B, K) of normalised images under the current parameters."""
    with run.precision.autocast():
        return run.student(images).logits


def class_maps(run: TrainState, images: Images) -> dict[str, ClassMap]:
    """Mappings from the head's classes to those of each domain."""
    return {
        domain: domain_class_map(run.config.data, run.class_names, domain, of_domain.class_names)
        for domain, of_domain in images.items()
    }


@contextmanager
def holding(run: TrainState, weights: Weights) -> Iterator[None]:
    """Within the block, the student has these weights, and a head that goes with them."""

    def encode(tokens: Tensor) -> Tensor:
        features: Tensor = run.student(None, tokens.to(run.device)[None]).text_features[0]
        alive()  # all prompts may take longer than a batch of images
        return features

    with swapped_in(run.student.trained, weights):
        if run.student.text is not None:
            heads = heads_of(encode, run.zero_shot.tokenize_once, run.zero_shot.prompts)
            run.student.head = heads.classes
        yield


def validation_gradient(
    run: TrainState, images: ImageDataset
) -> Callable[[Weights], dict[str, Tensor]]:
    """The gradient, by weights, of the mean cross-entropy on the next ID validation images.

    The images are centre crops, shuffled (the files are sorted by class), every one once before any
    comes again. Every worker has as many: the mean of the workers' gradients is the gradient.
    """
    config, image_input = run.config, run.zero_shot.image_input
    class_map = class_maps(run, {config.data.id_domain: images})[config.data.id_domain]
    sampler = StepSampler(
        len(images),
        run.world_size * max(1, LOSS_BATCH_SIZE // run.world_size),  # same for each worker
        seed=config.seed,
        steps=range(sys.maxsize),
        rank=run.rank,
        world_size=run.world_size,
    )
    samples = ([sample for _, sample in batch] for batch in sampler)
    workers = config.data.loader_processes(on_gpu=run.device.type == "cuda")
    batches = eval_samples(images, samples, image_input, workers)
    trained = run.student.trained

    def gradient(weights: Weights) -> dict[str, Tensor]:
        views, labels = (part.to(run.device) for part in next(batches))
        found = [torch.zeros_like(parameter) for parameter in trained.values()]
        with swapped_in(trained, weights):
            for start in range(0, len(labels), run.micro_batch_size):
                alive()
                part = slice(start, start + run.micro_batch_size)
                with run.precision.autocast():
                    outputs = run.student(normalise(views[part], image_input))
                logits, columns = class_map.score(outputs.logits, labels[part])
                loss = functional.cross_entropy(logits, columns, reduction="sum") / len(labels)
                torch._foreach_add_(found, torch.autograd.grad(loss, list(trained.values())))
        return dict(zip(trained, found, strict=True))

    return gradient


def go_to_line(run: TrainState, sample: Images) -> dict[str, float]:
    """Replace the evaluated weights by those of a point of the line, as `eval.line` says.

    Returned are the point as `line/a`, and what was measured on the sample, `line/0.5/id_val/acc`
    and so on; nothing if the line is off.
    """
    evaluation = run.config.eval
    weights = run.eval_weights or run.weights
    if evaluation.line == "off" or not run.config.method.has_line:
        return {}
    # One factor of a product, such as the gains of adapters, stays, so that the line is that of the
    # merged weights. With the other one 0, the model is the zero-shot one.
    keeps = run.config.method.line_keeps
    initial = {**run.initial, **{n: v for n, v in weights.items() if n.endswith(keeps)}}
    measured = dict[float, dict[str, float]]()
    if evaluation.line_points:
        points = sorted({*evaluation.line_points, 1.0})
        models = [classifier_at(run, initial, weights, a) for a in points]
        found = measure_each(run, models, "val", sample)
        measured = dict(zip((0.0, *points), found, strict=True))
        metric = MEAN_ACC if run.config.data.ood_domains else ID_ACC
        goal = evaluation.line_goal or LineGoal(objectives=((metric, "max"),))
        chosen = choose_point(measured, goal)
    else:
        chosen = float(evaluation.line)  # type: ignore[arg-type]  # a fixed point
    if chosen != 1:
        run.eval_weights = interpolate(initial, weights, chosen)
    shown = {
        f"line/{a:g}/{name}": metrics[name]
        for a, metrics in sorted(measured.items())
        for name in LINE_METRICS
        if name in metrics
    }
    return {"line/a": chosen, **shown}


def classifier_at(run: TrainState, initial: Weights, weights: Weights, a: float) -> Classify:
    """`classify` at a point of the line.

    Its weights are made again for each batch: those of all points may not fit into memory.
    """
    return classifier_of(run, partial(interpolate, initial, weights, a))


def classifier_of(run: TrainState, weights: Callable[[], Weights]) -> Classify:
    """`classify` with the weights that the function returns, which is called for each batch."""
    with holding(run, weights()):
        head = run.student.head

    def classify_there(images: Tensor) -> Tensor:
        with swapped_in(run.student.trained, weights()):
            if run.student.text is not None:
                run.student.head = head
            return classify(run, images)

    return classify_there
