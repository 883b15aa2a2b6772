"""Conversion between a `TrainState` and its checkpoint, whole or sharded over workers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from trainers.checkpoints.format import PREDICTIONS, SINCE, Checkpoint, load_checkpoint
from trainers.loop.distributed import as_sharded, whole
from trainers.loop.state import Mark, SinceReport, TrainState
from trainers.weights.averaging import swapped_in

SCALE = "text.logit_scale"
"""Has the shape (1,) in a sharded run, as FSDP cannot shard scalars, and () otherwise."""


def snapshot(run: TrainState) -> Checkpoint | None:
    """The complete state of a run, at a report or between two reports.

    Between two reports, weights of an evaluation (EMA, WiSE, ...) do not exist. The checkpoint then
    has the weights that are being trained, with the head of the last evaluation: training continues
    from it, but it should not be evaluated or exported.

    If the run is sharded, every worker must call this. The first one gets whole tensors on the CPU,
    the others None.
    """
    deploys_others = run.eval_weights is not None and not run.is_between_reports
    kept = run.eval_weights if run.eval_weights is not None and deploys_others else run.weights
    with swapped_in(run.student.trained, kept):
        state = run.config.method.merged_state(run.student)
        plain = _collected(run, state)
    if run.eval_head is not None:
        plain["head"] = run.eval_head
    if SCALE in plain:
        plain[SCALE] = plain[SCALE].reshape_as(cast(Tensor, run.zero_shot.clip.logit_scale))
    # If a method merged what it trained, the trained tensors cannot be read from plain weights.
    merged = any(_plain_name(name) not in state for name in run.student.trained)
    goes_on_elsewhere = merged or deploys_others
    training: dict[str, Any] = {
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "micro_batch_size": run.micro_batch_size,
        "temperature": run.temperature,
        PREDICTIONS: run.predictions,
        "average": None if run.average is None else _collected(run, run.average),
        "rung_average": None if run.rung_average is None else _collected(run, run.rung_average),
        "trained": _collected(run, run.weights) if goes_on_elsewhere else None,
        "deployed": _collected(run, kept) if merged else None,
        SINCE: {
            "step": run.since.step,
            "seconds": run.since.seconds,
            "sums": run.since.all_sums if run.is_between_reports else None,
            "marks": [(mark.step, mark.lr, mark.seconds) for mark in run.since.marks],
        },
    }
    training["optimizer"]["state"] = {
        index: _collected(run, state) for index, state in training["optimizer"]["state"].items()
    }
    first = run.rank == 0 or not _is_sharded(run)
    history = tuple(run.reports), tuple(run.train_curves)
    return Checkpoint(plain, training, run.progress, *history) if first else None


def restore(run: TrainState, folder: Path) -> None:
    """Load a checkpoint into a run that has not begun.

    The checkpoint may come from another number of workers, and from a whole or a sharded run.

    Raises:
        ConfigError: see `load_checkpoint`.
    """
    checkpoint = load_checkpoint(folder, run.class_names, "cpu" if _is_sharded(run) else run.device)
    training, parameters = checkpoint.training, run.student.trained

    def fitted(tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if tensors is None:
            tensors = {name: checkpoint.weights[_plain_name(name)] for name in parameters}
        return {name: as_sharded(tensors[name], like) for name, like in parameters.items()}

    with torch.no_grad():
        for name, value in fitted(training["trained"]).items():
            parameters[name].copy_(value)
    if training["trained"] is not None:
        run.eval_weights = fitted(training["deployed"])
    if run.average is not None and training["average"] is not None:
        run.average = fitted(training["average"])
    if run.rung_average is not None and training["rung_average"] is not None:
        run.rung_average = fitted(training["rung_average"])
    if run.student.text is not None:
        run.eval_head = checkpoint.weights["head"].to(run.device)
    # The optimizer counts parameters; each of its moments is sharded like its parameter.
    optimizer, likes = training["optimizer"], list(parameters.values())
    state = {
        index: {
            key: value if key == "step" else as_sharded(value, likes[index])
            for key, value in moments.items()
        }
        for index, moments in optimizer["state"].items()
    }
    run.optimizer.load_state_dict({**optimizer, "state": state})
    run.scaler.load_state_dict(training["scaler"])
    run.micro_batch_size = min(training["micro_batch_size"], run.micro_batch_size)
    run.temperature = training["temperature"]
    run.predictions = training[PREDICTIONS]
    run.progress, run.reports = checkpoint.progress, [dict(r) for r in checkpoint.reports]
    run.train_curves = list(checkpoint.train_curves)
    since = training[SINCE]
    run.since = SinceReport.now(since["step"], run.device)
    if since["sums"] is not None:
        sums: Tensor = since["sums"].to(run.device)
        if len(sums) != run.world_size:  # saved by another number of workers
            sums = sums.mean(0).repeat(run.world_size, 1, 1)
        own, *marked = sums[run.rank]
        run.since.sums += own
        marks = zip(since["marks"], marked, strict=True)
        run.since.marks = [Mark(step, lr, seconds, at) for (step, lr, seconds), at in marks]
        run.since.seconds = since["seconds"]
        run.since.all_sums = sums  # the run is saved again when it repeats its last report


def _is_sharded(run: TrainState) -> bool:
    return run.config.parallel == "fsdp" and run.world_size > 1


def _collected(run: TrainState, tensors: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
    """Whole tensors on the CPU of the first worker, one after the other; as they are if whole."""
    if not _is_sharded(run):
        return dict(tensors)
    found = {}
    for name, value in tensors.items():
        tensor = whole(value)
        if run.rank == 0:
            found[name] = tensor.cpu()
    return found


def _plain_name(name: str) -> str:
    """Name of a student's parameter in `Student.plain_state`."""
    return name.replace("text.clip.", "text.", 1) if name.startswith("text.clip.") else name
