"""What was evaluated of a training, and the checkpoint that keeps both."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from trainers.checkpoints.format import PREDICTIONS, Header, load_checkpoint, save_checkpoint
from trainers.evaluation.predictions import with_end
from trainers.loop.choose import choose
from trainers.loop.images import Images, ValidationImages
from trainers.loop.measure import holding, measure, measure_with_predictions
from trainers.loop.training import Training
from trainers.methods.base import Weights
from trainers.models.averaging import swapped_in


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The weights that an evaluation chose, and what it measured of them.

    Weights that train are views, and change with the next step.
    """

    step: int
    """Optimiser steps done."""
    weights: Weights
    end: Weights
    """The end of the line, on which they are a point."""
    head: Tensor | None
    """(K, D), if the text encoder makes it."""
    metrics: dict[str, float]
    """Those of the report."""
    predictions: bytes | None = None
    """After the last step, as a Parquet file: on the validation splits, then on a final split."""

    @property
    def point(self) -> float:
        """Of the line; 1 is its end."""
        return self.metrics.get("line/a", 1.0)


def evaluate(training: Training, validation: ValidationImages) -> Evaluated:
    """Choose weights and measure them: on a sample, or on all images after the last step."""
    began = time.perf_counter()
    setup, student = training.setup, training.student
    choice = choose(training, validation)
    predictions = None
    with holding(setup, student, choice.weights):
        if training.is_done:
            images = validation
            metrics, predictions = measure_with_predictions(setup, student, images)
        else:
            images = validation.sampled(setup.config.eval.rung_images)
            metrics = measure(setup, student, images)
        head = None if student.text is None else student.head
    metrics |= choice.metrics
    metrics["eval/images"] = float(sum(len(of_domain.eval_rows) for of_domain in images.values()))
    training.progress.eval_seconds += time.perf_counter() - began
    step = training.progress.step
    return Evaluated(step, choice.weights, choice.end, head, metrics, predictions)


def evaluate_final(training: Training, evaluated: Evaluated, images: Images) -> Evaluated:
    """Measure the same weights on a final split, too, and if they are a point of a line, its end.

    The metrics are added to the last report, and the predictions are those on this split.
    """
    setup, student = training.setup, training.student
    with holding(setup, student, evaluated.weights):
        metrics, predictions = measure_with_predictions(setup, student, images)
    if evaluated.point != 1:
        with holding(setup, student, evaluated.end):
            of_end, predictions_of_end = measure_with_predictions(setup, student, images)
        metrics |= {f"line/1/{name}": v for name, v in of_end.items() if name.endswith("acc")}
        predictions = with_end(predictions, predictions_of_end)
    training.reports[-1].update(metrics)
    metrics = evaluated.metrics | metrics
    return replace(evaluated, metrics=metrics, predictions=predictions)


def save(folder: Path, training: Training, evaluated: Evaluated) -> None:
    """Write a checkpoint: the evaluated weights as open_clip names them, and all else beside them.

    A tensor that is among these weights is not written again.
    """
    with swapped_in(training.student.trained, evaluated.weights):
        plain = training.student.plain_state()
    if evaluated.head is not None:
        plain["head"] = evaluated.head

    def others(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: v for n, v in weights.items() if not _shares(v, plain.get(_plain_name(n)))}

    state = training.state_dict()
    progress, reports, curves = (state.pop(key) for key in ("progress", "reports", "train_curves"))
    header = Header(progress, training.setup.class_names, reports, curves)
    is_trained = all(_shares(state["trained"][n], value) for n, value in evaluated.end.items())
    state["end"] = None if is_trained else others(evaluated.end)
    state["deployed"] = others(evaluated.weights)
    state["trained"] = others(state["trained"])
    state[PREDICTIONS] = evaluated.predictions
    save_checkpoint(folder, plain, state, header)


def resume(training: Training, folder: Path) -> Evaluated:
    """Load a checkpoint into a training that has not begun, and return its last evaluation."""
    setup = training.setup
    plain, state, header = load_checkpoint(folder, setup.class_names, setup.device)
    names = [*training.student.trained]

    def whole(others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: others[n] if n in others else plain[_plain_name(n)] for n in names}

    trained, deployed = state["trained"] or {}, state["deployed"] or {}
    history = {"reports": header.reports, "train_curves": header.train_curves}
    state |= history | {"progress": header.progress, "trained": whole(trained)}
    training.load_state_dict(state)
    live = training.student.weights
    weights = whole(deployed) if trained or deployed else live
    end = weights
    # None is what trains, if the evaluated weights are another point of the line.
    if header.metrics.get("line/a", 1) != 1:
        end = live if state["end"] is None else whole(state["end"])
    head = None if training.student.text is None else plain["head"].to(setup.device)
    return Evaluated(header.step, weights, end, head, header.metrics, state[PREDICTIONS])


def _shares(tensor: Tensor, other: Tensor | None) -> bool:
    """Whether both are the same memory."""
    return other is not None and tensor.untyped_storage() is other.untyped_storage()


def _plain_name(name: str) -> str:
    """Name of a student's parameter in `Student.plain_state`."""
    return name.replace("text.clip.", "text.", 1) if name.startswith("text.clip.") else name
