"""Conversion between a `TrainState` and its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.checkpoints.format import PREDICTIONS, Header, load_checkpoint
from trainers.loop.state import TrainState, optimizer_of
from trainers.models.averaging import swapped_in


def snapshot(run: TrainState) -> tuple[dict[str, Tensor], dict[str, Any], Header]:
    """The complete state of a run at its last report, for `save_checkpoint`.

    The checkpoint's weights are the evaluated ones. The trained ones are in the state of the
    training as well if they cannot be read from these: if others were evaluated (EMA, WiSE, ...),
    or if the method merged what it trained into the layers of the model.
    """
    trained = run.weights
    evaluated = run.eval_weights or trained
    with swapped_in(run.student.trained, evaluated):
        plain = run.student.plain_state()
    is_merged = any(_plain_name(name) not in plain for name in trained)
    if run.eval_head is not None:
        plain["head"] = run.eval_head
    training: dict[str, Any] = {
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "micro_batch_size": run.micro_batch_size,
        PREDICTIONS: run.predictions,
        "average": run.average,
        "ema": run.ema,
        "trained": trained if is_merged or run.eval_weights is not None else None,
        "deployed": dict(evaluated) if is_merged else None,
        "end": None if run.end_weights is run.eval_weights else run.end_weights,
    }
    header = Header(run.progress, tuple(run.class_names), run.reports, run.train_curves)
    return plain, training, header


def restore(run: TrainState, folder: Path) -> None:
    """Load a checkpoint into a run that has not begun; of any number of workers."""
    weights, training, header = load_checkpoint(folder, run.class_names, run.device)
    parameters = run.student.trained

    def fitted(tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if tensors is None:
            tensors = {name: weights[_plain_name(name)] for name in parameters}
        return {name: tensors[name] for name in parameters}

    with torch.no_grad():
        for name, value in fitted(training["trained"]).items():
            parameters[name].copy_(value)
    if training["trained"] is not None:
        run.eval_weights = fitted(training["deployed"])
    if run.average is not None and training["average"] is not None:
        run.average = fitted(training["average"])
    if run.ema is not None and training["ema"] is not None:
        run.ema = fitted(training["ema"])
    if run.student.text is not None:
        run.eval_head = weights["head"].to(run.device)
    # Stages differ in their groups of parameters. What was saved is of the last step's stage.
    stage = run.config.method.stage(max(0, header.step - 1), run.config.steps)
    run.optimizer = optimizer_of(run.student, run.config, stage)
    run.optimizer.load_state_dict(training["optimizer"])
    run.scaler.load_state_dict(training["scaler"])
    run.micro_batch_size = min(training["micro_batch_size"], run.micro_batch_size)
    run.predictions = training[PREDICTIONS]
    run.progress, run.reports = header.progress, header.reports
    run.end_weights = run.eval_weights
    if header.metrics.get("line/a", 1) != 1:
        end = training["end"]
        run.end_weights = None if end is None else fitted(end)
    run.train_curves = header.train_curves


def _plain_name(name: str) -> str:
    """Name of a student's parameter in `Student.plain_state`."""
    return name.replace("text.clip.", "text.", 1) if name.startswith("text.clip.") else name
