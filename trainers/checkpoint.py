"""Checkpoints of one fine-tuning: weights as safetensors, the optimiser's state beside them.

A save into a folder that already holds a checkpoint writes both files under a new name first, then
swaps them in, the state before the weights. So between the two renames the new weights stand alone
under their new name, and at no other moment: whatever kills a save, one whole checkpoint is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model

from trainers.errors import ConfigError

if TYPE_CHECKING:
    from trainers.student import Student

WEIGHTS = "student.safetensors"
STATE = "training_state.pt"
_NEW = ".new"
"""Ending of a file that is being written."""


@dataclass
class Progress:
    """How far a run is, and what it has cost, over all of its parts."""

    step: int = 0
    seconds: float = 0.0
    eval_seconds: float = 0.0
    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0


def save_checkpoint(
    folder: Path,
    student: Student,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    metrics: Mapping[str, float],
    class_names: Sequence[str],
) -> None:
    """Write all that is needed to go on bit for bit; nothing else is random or stateful.

    A checkpoint that is there is replaced, in one piece; other files of the folder stay.

    Args:
        folder: made where it is missing.
        student: its weights.
        optimizer: its state.
        progress: how far the run is.
        metrics: of the report that the checkpoint goes with. Whoever was told of it may not have
            lived to write it down, so a resumed run says it again.
        class_names: (K,) of the head: the same weights mean nothing for others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, state = folder / WEIGHTS, folder / STATE
    new_weights, new_state = folder / (WEIGHTS + _NEW), folder / (STATE + _NEW)
    if _weights_of(folder) == new_weights:
        new_weights.replace(weights)  # ends the swap that a killed save began
    values = dataclasses.asdict(progress)
    training = {
        "optimizer": optimizer.state_dict(),
        "progress": values,
        "metrics": dict(metrics),
        "classes": _hash(class_names),
    }
    torch.save(training, new_state)
    save_model(student, str(new_weights), metadata={"progress": json.dumps(values)})
    for path in (new_state, new_weights):
        _sync(path)
    new_state.replace(state)
    new_weights.replace(weights)
    _sync(folder)


def load_checkpoint(
    folder: Path,
    student: Student,
    optimizer: torch.optim.Optimizer,
    class_names: Sequence[str],
) -> tuple[Progress, dict[str, float]]:
    """Load what `save_checkpoint` wrote into `student` and `optimizer`.

    Returns:
        How far the run is, and the metrics of the report that the checkpoint goes with.

    Raises:
        ConfigError: no whole checkpoint is there, its files are of two different ones, or it was
            trained on other classes than `class_names`.
    """
    if not (folder / STATE).is_file():
        raise ConfigError(f"{folder}: no {STATE}, and training cannot go on from weights alone")
    device = str(student.head.device)
    state = torch.load(folder / STATE, map_location=device, weights_only=True)
    if state.get("classes", "") not in ("", _hash(class_names)):  # "" before states carried it
        raise ConfigError(
            f"{folder}: it was trained on other classes, or in another order, than the "
            f"{len(class_names)} that the data have now"
        )
    weights = _weights_of(folder)
    found = _progress_of(weights)
    if found is None:
        raise ConfigError(f"{weights}: missing or damaged")
    if found not in ({}, state["progress"]):  # {} before weights carried it
        raise ConfigError(
            f"{folder}: {WEIGHTS} (step {found['step']}) and {STATE} (step "
            f"{state['progress']['step']}) are of two different checkpoints"
        )
    load_model(student, str(weights), device=device)
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"]), state["metrics"]


def saved_step(folder: Path) -> int | None:
    """The optimiser steps of the weights in a checkpoint; None where they are missing or torn."""
    progress = _progress_of(_weights_of(folder))
    return None if progress is None else int(progress.get("step", 0))


def _hash(class_names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(class_names)).encode()).hexdigest()


def _weights_of(folder: Path) -> Path:
    """The weights that belong to the state: the new ones, where only the state was swapped in."""
    new = folder / (WEIGHTS + _NEW)
    swapping = new.exists() and not (folder / (STATE + _NEW)).exists()
    return new if swapping else folder / WEIGHTS


def _progress_of(weights: Path) -> dict[str, Any] | None:
    try:
        with safe_open(weights, framework="np") as file:  # refuses a file that is cut short
            progress: dict[str, Any] = json.loads((file.metadata() or {}).get("progress", "{}"))
    except (FileNotFoundError, SafetensorError):
        return None
    return progress


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
