"""Folders of the trials' checkpoints, on a disk or in a bucket.

    <checkpoint root>/train/train-<trial>/checkpoint_<time>/
        {student.safetensors, predictions.parquet, training_state.pt}

The checkpoint root is the run folder, or a folder of its own in `search.checkpoints.storage`. The
files of one trial are those of `trainers.checkpoints.storage`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from trainers.checkpoints import storage
from trainers.checkpoints.format import STATE, WEIGHTS
from trainers.checkpoints.storage import CHECKPOINT, newest_checkpoint
from trainers.data.store import Store, open_store
from tuning.runs.run_folder import TRIAL_PREFIX, trial_path


@dataclass(frozen=True)
class TrialFiles:
    """Files of a trial at the time of a listing."""

    trial_id: str
    folder: Store
    files: set[str] = field(default_factory=set)
    """Paths in the folder, also those of folders."""

    @property
    def checkpoints(self) -> list[str]:
        """Names of the checkpoints, oldest first; some may be incomplete."""
        return sorted(p for p in self.files if p.startswith(CHECKPOINT) and "/" not in p)


def list_trials(train: Store) -> list[TrialFiles]:
    """Files of all trials, in one listing; empty before the first trial.

    Raises:
        OSError: the storage cannot be read.
    """
    found: dict[str, TrialFiles] = {}
    for info in train.list(recursive=True):
        name, _, path = train.relative(info).partition("/")
        if name.startswith(TRIAL_PREFIX):
            trial_id = name.removeprefix(TRIAL_PREFIX)
            found.setdefault(name, TrialFiles(trial_id, train.at(name))).files.add(path)
    return list(found.values())


def kept_checkpoint(train: Store, trial_id: str) -> Store | None:
    """Newest checkpoint of a trial with whole weights; None if it has none.

    That of an ended trial holds weights only.

    Raises:
        OSError: the storage cannot be read.
    """
    folder = train.at(trial_path(trial_id))
    newest = newest_checkpoint(folder)
    return None if newest is None else folder.at(newest)


def keep_weights(trial: TrialFiles) -> None:
    """Remove everything but the newest weights of a trial that has ended.

    Raises:
        OSError: something cannot be read or removed; a second call continues.
    """
    names = trial.checkpoints
    if len(names) == 1 and f"{names[0]}/{STATE}" not in trial.files:
        return
    newest = newest_checkpoint(trial.folder, names)
    if newest is None:
        remove(trial)
        return
    for name in names:
        if name != newest:
            storage.remove_checkpoint(trial.folder.at(name))
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
