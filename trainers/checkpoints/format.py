"""Checkpoint of one fine-tuning: weights as safetensors, the rest of its state beside them.

    student.safetensors   weights of the last evaluation, under the names of open_clip's modules:
                          `visual.*`, `head`, and `text.*` if the text encoder was trained; its
                          header has progress, class names and all reports so far
    training_state.pt     optimizer and everything else that training needs to continue
    predictions.parquet   after the last step: prediction for each validation image, for the report;
                          in a confirmation for each image of the test splits

The weights are written last, so a checkpoint with whole weights is complete. Commands that list
checkpoints read headers alone, so torch is imported where tensors are.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from safetensors import SafetensorError

from trainers.data.store import Store, open_store
from trainers.errors import ConfigError, StorageFailed, first_line, system_error, system_words

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS = "student.safetensors"
STATE = "training_state.pt"
PREDICTIONS = "predictions.parquet"
"""Also the key of its content in the state of a training."""
PREDICTED_CLASSES = b"classes"
"""Key of its metadata: scored classes by domain, in JSON; labels are indices into them."""

TrainCurve: TypeAlias = dict[str, list[float]]
"""Metrics of training at several steps, column by column; one column is `step`."""


@dataclass
class Progress:
    """How far a training is, and what it has cost, over all of its attempts."""

    step: int = 0
    seconds: float = 0.0
    eval_seconds: float = 0.0
    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Header:
    """What is known of a checkpoint's weights without reading them."""

    progress: Progress
    class_names: tuple[str, ...]
    """(K,) classes of the head."""
    reports: list[dict[str, float]] = field(default_factory=list)
    """All reports so far, each with its `step`. A driver that was killed may have missed some: a
    resumed search finds them here."""
    train_curves: list[TrainCurve] = field(default_factory=list)
    """The training curve before each report."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of each tensor by name, as it is read; not used for writing."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    @property
    def metrics(self) -> dict[str, float]:
        """Report on these weights; empty for those of a training without a report."""
        if not self.reports or self.reports[-1].get("step") != self.step:
            return {}
        return {name: value for name, value in self.reports[-1].items() if name != "step"}


def read_header(folder: Path | Store) -> Header | None:
    """Header of the weights in a checkpoint; None if they are missing or incomplete.

    Raises:
        OSError: the storage cannot be read.
    """
    try:
        with open_store(folder).open(WEIGHTS) as file:
            # Format of safetensors: length of the header, header in JSON, tensors.
            start = 8 + int.from_bytes(file.read(8), "little")
            tensors = json.loads(file.read(start - 8)) if start <= file.size() else {}
            metadata = {key: json.loads(text) for key, text in tensors.pop("__metadata__").items()}
            size = max((entry["data_offsets"][1] for entry in tensors.values()), default=-1)
            if start + size != file.size():
                return None
            return Header(
                progress=Progress(**metadata["progress"]),
                class_names=tuple(metadata["classes"]),
                reports=metadata["reports"],
                train_curves=metadata["train_curves"],
                shapes={name: tuple(entry["shape"]) for name, entry in tensors.items()},
            )
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def saved_step(folder: Path | Store) -> int | None:
    """Optimizer steps of the weights in a checkpoint; None if they are missing or incomplete."""
    header = read_header(folder)
    return None if header is None else header.step


def whole_header(folder: Path | Store) -> Header:
    """Header of the weights in a checkpoint; no tensor is read."""
    header = read_header(folder)
    if header is None:
        raise ConfigError("missing or damaged", source=open_store(folder).at(WEIGHTS).url)
    return header


def load_weights(folder: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights of a checkpoint on the CPU, and the (K,) class names of their head."""
    from safetensors.torch import load_file

    header = whole_header(folder)
    return load_file(folder / WEIGHTS), header.class_names


def save_checkpoint(
    folder: Path, weights: Mapping[str, Tensor], training: Mapping[str, Any], header: Header
) -> None:
    """Write a checkpoint; use a new folder, as one that is overwritten is gone if this is killed.

    Args:
        weights: of the last evaluation (EMA, WiSE, ...), with the class head.
        training: state of the optimizer and of everything else that training continues from: on
            CPUs bit for bit with one or two workers, else up to the rounding of sums.
    """
    import torch

    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WEIGHTS).unlink(missing_ok=True)
        with (folder / STATE).open("wb") as file:  # given a path, torch hides the system's error
            torch.save(dict(training), file)
        if (predictions := training.get(PREDICTIONS)) is not None:
            (folder / PREDICTIONS).write_bytes(predictions)
    save_weights(folder, weights, header)


def save_weights(folder: Path, weights: Mapping[str, Tensor], header: Header) -> None:
    """Write the weights of a checkpoint, from which no training continues, into a folder."""
    from safetensors.torch import save_file

    metadata = {
        "progress": dataclasses.asdict(header.progress),
        "classes": header.class_names,
        "reports": header.reports,
        "train_curves": header.train_curves,
    }
    with _writing(folder):
        tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        texts = {key: json.dumps(value) for key, value in metadata.items()}
        save_file(tensors, folder / WEIGHTS, metadata=texts)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise where a disk is full into a `StorageFailed`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = system_error(error)
        if cause is None and not isinstance(error, SafetensorError):
            raise
        message = first_line(error) if cause is None else system_words(cause)
        raise StorageFailed(f"{folder}: a checkpoint cannot be written: {message}") from error


def load_checkpoint(
    folder: Path, class_names: Sequence[str], device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any], Header]:
    """Read the weights, the state of the training and the header that `save_checkpoint` wrote."""
    import torch
    from safetensors.torch import load_file

    if not (folder / STATE).is_file():
        raise ConfigError(f"no {STATE}; training cannot continue from weights alone", source=folder)
    header = whole_header(folder)
    if header.class_names != tuple(class_names):
        problem = "trained on other classes than those of the data, or in another order"
        raise ConfigError(problem, source=folder)
    state = None
    if zipfile.is_zipfile(folder / STATE):  # a file that was cut has no directory at its end
        state = torch.load(folder / STATE, map_location=device, weights_only=True)
    if not isinstance(state, dict) or "trained" not in state:
        raise ConfigError("damaged, or not a training state", source=folder / STATE)
    return load_file(folder / WEIGHTS, device=str(device)), state, header
