"""Checkpoints of one fine-tuning: weights as safetensors, what training needs beside them.

The weights are those that are evaluated and exported, averaged, interpolated or merged where the
method says so, under the names of open_clip's modules: `visual.*`, `head`, and `text.*` where the
text encoder trained. What training goes on from, where that is something else, is in the state.

A save into a folder that already holds a checkpoint writes both files under a new name first, then
swaps them in, the state before the weights. So between the two renames the new weights stand alone
under their new name, and at no other moment: whatever kills a save, one whole checkpoint is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers.errors import ConfigError, StorageFailed, first_line, system_error, system_words

WEIGHTS = "student.safetensors"
STATE = "training_state.pt"
REPORTS = "reports"
"""In the header of the weights, which can be read without them: as of `Checkpoint`."""
SINCE = "since_report"
"""Of `Checkpoint.training`: the `step` of the last report, and what was done since."""
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


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from, bit for bit; nothing else is random or stateful."""

    weights: Mapping[str, Tensor]
    """Those that are evaluated."""
    training: Mapping[str, Any]
    """The optimiser's state and whatever else the run needs to train on."""
    progress: Progress
    reports: Sequence[Mapping[str, float]]
    """All so far, each with its `step`. Whoever was told of them may not have lived to write them
    down: a resumed run says the last one again, and a resumed search finds the others here."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, class_names: Sequence[str]) -> None:
    """Write a checkpoint; one that is there is replaced in one piece, other files stay.

    Args:
        folder: made where it is missing.
        checkpoint: what to write.
        class_names: (K,) of the head: the same weights mean nothing for others.

    Raises:
        StorageFailed: the disk is full, or cannot be written for another reason.
    """
    with _writing(folder):
        _save(folder, checkpoint, class_names)


def _save(folder: Path, checkpoint: Checkpoint, class_names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights, state = folder / WEIGHTS, folder / STATE
    new_weights, new_state = folder / (WEIGHTS + _NEW), folder / (STATE + _NEW)
    if _weights_of(folder) == new_weights:
        new_weights.replace(weights)  # ends the swap that a killed save began
    progress = dataclasses.asdict(checkpoint.progress)
    training = {
        **checkpoint.training,
        "progress": progress,
        "classes": _hash(class_names),
    }
    with new_state.open("wb") as file:  # with a path, torch would not say what the system said
        torch.save(training, file)
    _write_weights(
        new_weights, checkpoint.weights, checkpoint.progress, class_names, checkpoint.reports
    )
    for path in (new_state, new_weights):
        _sync(path)
    new_state.replace(state)
    new_weights.replace(weights)
    _sync(folder)


def save_weights(
    folder: Path, weights: Mapping[str, Tensor], progress: Progress, class_names: Sequence[str]
) -> None:
    """Write a checkpoint of weights alone, from which nothing can train on, into a new folder."""
    with _writing(folder):
        folder.mkdir(parents=True)
        _write_weights(folder / WEIGHTS, weights, progress, class_names)


def load_weights(folder: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights of a checkpoint on the CPU, and the (K,) class names of their head.

    Raises:
        ConfigError: they are missing, damaged, or of a version that did not write the names.
    """
    with _opened(folder) as (file, class_names):
        return {name: file.get_tensor(name) for name in file.keys()}, class_names  # noqa: SIM118


def saved_shapes(folder: Path) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """The shapes of a checkpoint's weights by name, and its class names; no tensor is read.

    Raises:
        ConfigError: as `load_weights`.
    """
    with _opened(folder) as (file, class_names):
        return {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}, class_names  # noqa: SIM118


def load_checkpoint(
    folder: Path, class_names: Sequence[str], device: torch.device | str = "cpu"
) -> Checkpoint:
    """What `save_checkpoint` wrote.

    Raises:
        ConfigError: no whole checkpoint is there, its files are of two different ones, it was
            trained on other classes than `class_names`, or by an earlier version.
    """
    if not (folder / STATE).is_file():
        raise ConfigError(f"{folder}: no {STATE}, and training cannot go on from weights alone")
    state = torch.load(folder / STATE, map_location=device, weights_only=True)
    if state.pop("classes") != _hash(class_names):
        raise ConfigError(
            f"{folder}: it was trained on other classes, or in another order, than the "
            f"{len(class_names)} that the data have now"
        )
    if SINCE not in state:
        raise ConfigError(f"{folder}: of an earlier version, from which training cannot go on")
    weights = _weights_of(folder)
    about = _about(weights)
    if about is None:
        raise ConfigError(f"{weights}: missing or damaged")
    found, progress = about["progress"], state.pop("progress")
    if found != progress:
        raise ConfigError(
            f"{folder}: {WEIGHTS} (step {found.get('step')}) and {STATE} (step "
            f"{progress['step']}) are of two different checkpoints"
        )
    tensors = load_file(weights, device=str(device))
    return Checkpoint(tensors, state, Progress(**progress), about[REPORTS])


def saved_step(folder: Path) -> int | None:
    """The optimiser steps of the weights in a checkpoint; None where they are missing or torn."""
    about = _about(_weights_of(folder))
    return None if about is None else int(about["progress"].get("step", 0))


def saved_metrics(folder: Path) -> dict[str, float]:
    """What the report of a checkpoint said of its weights; nothing where they are of none."""
    about = _about(_weights_of(folder))
    last = dict(about[REPORTS][-1]) if about and about[REPORTS] else {}
    return last if about and last.pop("step", None) == about["progress"].get("step") else {}


def _write_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    progress: Progress,
    class_names: Sequence[str],
    reports: Sequence[Mapping[str, float]] = (),
) -> None:
    tensors = {name: value.contiguous() for name, value in weights.items()}
    about = {
        "progress": dataclasses.asdict(progress),
        "classes": list(class_names),
        REPORTS: [dict(report) for report in reports],
    }
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in about.items()})


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Neither torch nor safetensors raises the system's own error, where a disk is full."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        found = system_error(error)
        if found is None and not isinstance(error, SafetensorError):
            raise  # of the tensors, and not of the disk
        said = first_line(error) if found is None else system_words(found)
        raise StorageFailed(f"{folder}: a checkpoint cannot be written: {said}") from error


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """The file of weights and the class names in it."""
    path = _weights_of(folder)
    try:
        with safe_open(path, framework="pt") as file:
            names = (file.metadata() or {}).get("classes")
            if names is None:
                raise ConfigError(f"{path}: of an earlier version, it does not name its classes")
            yield file, tuple(json.loads(names))
    except (FileNotFoundError, SafetensorError):
        raise ConfigError(f"{path}: missing or damaged") from None


def _hash(class_names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(class_names)).encode()).hexdigest()


def _weights_of(folder: Path) -> Path:
    """The weights that belong to the state: the new ones, where only the state was swapped in."""
    new = folder / (WEIGHTS + _NEW)
    swapping = new.exists() and not (folder / (STATE + _NEW)).exists()
    return new if swapping else folder / WEIGHTS


def _about(weights: Path) -> dict[str, Any] | None:
    """The progress and the reports in a file of weights; None where it is missing or torn."""
    try:
        with safe_open(weights, framework="np") as file:  # refuses a file that is cut short
            metadata = file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return None
    return {
        "progress": json.loads(metadata.get("progress", "{}")),
        REPORTS: json.loads(metadata.get(REPORTS, "[]")),
    }


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
