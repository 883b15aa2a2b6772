"""Folders of the trials' checkpoints, on a disk or in a bucket.

    <home>/train/train-<trial>/checkpoint_<time>/
        {student.safetensors, predictions.parquet, training_state.pt}

The home is the run folder, or a folder of its own in `search.checkpoints.storage`. The files of one
trial are those of `trainers.checkpoints.storage`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyarrow import fs

from trainers.checkpoints import storage
from trainers.checkpoints.format import STATE, WEIGHTS
from trainers.checkpoints.storage import CHECKPOINT, fetch_checkpoint, newest_checkpoint
from trainers.data.storage import Store, open_store
from tuning.runs.places import TRAIN_FOLDER as TRAIN_FOLDER
from tuning.runs.places import checkpoint_home as checkpoint_home

_TRIAL: Final = "train-"


def trial_path(trial_id: str) -> str:
    """Name of a trial's folder."""
    return f"{_TRIAL}{trial_id}"


@dataclass(frozen=True)
class TrialFiles:
    """Files of a trial at the time of a listing."""

    trial_id: str
    folder: Store
    sizes: Mapping[str, int]
    """Bytes of each file, by its path in the folder."""
    checkpoints: tuple[str, ...]
    """Names of the checkpoints, oldest first; some may be incomplete."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def bytes_of(self, checkpoint: str) -> int:
        """Bytes of one checkpoint."""
        return sum(s for path, s in self.sizes.items() if path.startswith(f"{checkpoint}/"))


def list_trials(train: Store) -> list[TrialFiles]:
    """Files of all trials, in one listing; empty before the first trial.

    Raises:
        OSError: the storage cannot be read.
    """
    sizes: dict[str, dict[str, int]] = {}
    checkpoints: dict[str, list[str]] = {}
    for info in train.list(recursive=True):
        name, _, path = train.relative(info).partition("/")
        if not name.startswith(_TRIAL):
            continue
        files = sizes.setdefault(name, {})
        if info.type == fs.FileType.File:
            files[path] = info.size
        elif path.startswith(CHECKPOINT) and "/" not in path:
            checkpoints.setdefault(name, []).append(path)
    return [
        TrialFiles(
            name.removeprefix(_TRIAL), train.at(name), files, tuple(checkpoints.get(name, ()))
        )
        for name, files in sizes.items()
    ]


def kept_checkpoint(train: Store, trial_id: str) -> Store | None:
    """Newest checkpoint of a trial with whole weights; None if it has none.

    That of an ended trial holds weights only.

    Raises:
        OSError: the storage cannot be read.
    """
    folder = train.at(trial_path(trial_id))
    newest = newest_checkpoint(folder)
    return None if newest is None else folder.at(newest)


@contextmanager
def fetched(checkpoint: Store) -> Iterator[Path]:
    """Within the block, the weights of a checkpoint in a folder of this machine.

    Raises:
        StorageFailed: they cannot be copied.
    """
    if checkpoint.is_local:
        yield checkpoint.local_path()
        return
    with tempfile.TemporaryDirectory(prefix="lipsum-tune-") as folder:
        fetch_checkpoint(checkpoint, Path(folder), (WEIGHTS,))
        yield Path(folder)


def keep_weights(trial: TrialFiles) -> None:
    """Remove everything but the newest weights of a trial that has ended.

    Raises:
        OSError: something cannot be read or removed; a second call continues.
    """
    with_state = [name for name in trial.checkpoints if f"{name}/{STATE}" in trial.sizes]
    if len(trial.checkpoints) == 1 and not with_state:
        return
    newest = newest_checkpoint(trial.folder, trial.checkpoints)
    if newest is None:
        remove(trial)
        return
    for name in trial.checkpoints:
        if name != newest:
            storage.remove_checkpoint(trial.folder.at(name))
    if newest in with_state:
        storage.remove_file(trial.folder, f"{newest}/{STATE}")


def remove(trial: TrialFiles) -> None:
    """Remove all files of a trial, oldest weights first.

    Raises:
        OSError: something cannot be removed; a second call continues.
    """
    for name in trial.checkpoints:
        storage.remove_file(trial.folder, f"{name}/{WEIGHTS}")
    storage.remove_folder(trial.folder)


def remove_folder(url: str | Path) -> None:
    """Remove a folder with everything in it, as far as possible."""
    with suppress(OSError):
        storage.remove_folder(open_store(url))
