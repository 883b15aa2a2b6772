"""The files of the trials' checkpoints, on a disk or in a bucket: found, read, removed.

    <home>/train/train-<trial>/checkpoint_<time>/{student.safetensors, training_state.pt}

The home is the run folder, or a folder of its own in `search.checkpoints.storage`. A bucket knows
neither renaming nor a folder that goes as a whole, so what is removed goes in an order: the weights
first, without which nothing looks like a checkpoint, and those of older checkpoints before newer
ones. Whatever kills a removal on its way leaves no checkpoint that somebody could take for another.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyarrow import fs

from trainers.checkpoints.format import REPORTS, STATE, WEIGHTS
from trainers.data.storage import Store, open_store
from trainers.errors import storage_failures

TRAIN_FOLDER: Final = "train"
"""Below a home: where Ray Train keeps the runs of all trials."""
SNAPSHOT: Final = "checkpoint_manager_snapshot.json"
"""In the folder of a trial: which checkpoints Ray Train knows of."""
_TRIAL: Final = "train-"
_CHECKPOINT: Final = "checkpoint_"


def checkpoint_home(run_folder: Path, storage: str | None, name: str, run_id: str) -> str:
    """The folder or URL below which all checkpoints of a run lie.

    Args:
        run_folder: of the run.
        storage: `search.checkpoints.storage`.
        name: of its search. That of the folder may change: a run folder may be moved.
        run_id: from its journal, for two runs of one name.
    """
    if storage is None:
        return str(run_folder)
    return f"{storage.rstrip('/')}/{name}-{run_id}"


def trial_path(trial_id: str) -> str:
    """The folder of a trial, below that of all."""
    return f"{_TRIAL}{trial_id}"


@dataclass(frozen=True)
class TrialFiles:
    """What there is of a trial, at the time of a listing."""

    trial_id: str
    folder: Store
    sizes: Mapping[str, int]
    """Bytes of each file, by its path in the folder."""
    checkpoints: tuple[str, ...]
    """Their folders, oldest first; some may not be whole."""

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(self.sizes.values())

    def bytes_of(self, checkpoint: str) -> int:
        """Of the files of one checkpoint."""
        return sum(s for path, s in self.sizes.items() if path.startswith(f"{checkpoint}/"))


def list_trials(train: Store) -> list[TrialFiles]:
    """What there is of all trials, in one look; none where no trial has started.

    Raises:
        OSError: the storage cannot be read.
    """
    sizes: dict[str, dict[str, int]] = {}
    checkpoints: dict[str, list[str]] = {}
    for info in train.list(recursive=True):
        name, _, path = train.relative(info).partition("/")
        if not name.startswith(_TRIAL):
            continue
        found = sizes.setdefault(name, {})
        if info.type == fs.FileType.File:
            found[path] = info.size
        elif path.startswith(_CHECKPOINT) and "/" not in path:
            checkpoints.setdefault(name, []).append(path)
    return [
        TrialFiles(
            name.removeprefix(_TRIAL), train.at(name), found, tuple(checkpoints.get(name, ()))
        )
        for name, found in sizes.items()
    ]


def kept_checkpoint(train: Store, trial_id: str) -> Store | None:
    """The newest checkpoint of a trial whose weights are whole; None where there is none.

    Of a trial that has ended it holds the weights alone.

    Args:
        train: the folder of all trials.
        trial_id: whose checkpoint.

    Raises:
        OSError: the storage cannot be read.
    """
    folder = train.at(trial_path(trial_id))
    newest = newest_checkpoint(folder, checkpoint_names(folder))
    return None if newest is None else folder.at(newest)


def checkpoint_names(folder: Store) -> list[str]:
    """The checkpoints in the folder of a trial, oldest first; some may not be whole.

    Raises:
        OSError: the storage cannot be read.
    """
    return [
        info.base_name
        for info in folder.list()
        if info.type == fs.FileType.Directory and info.base_name.startswith(_CHECKPOINT)
    ]


def newest_checkpoint(folder: Store, names: Iterable[str]) -> str | None:
    """By the steps of the weights; where these tie, by Ray Train's names, which are times."""
    steps = [(saved_step(folder.at(name)), name) for name in names]
    whole = [(step, name) for step, name in steps if step is not None]
    return max(whole)[-1] if whole else None


def saved_step(checkpoint: Store) -> int | None:
    """The optimiser steps of the weights in a checkpoint; None where they are missing or torn.

    As `trainers.checkpoints.format.saved_step`, but of a file that may lie anywhere.

    Raises:
        OSError: the storage cannot be read.
    """
    try:
        metadata = _metadata(checkpoint)
        if metadata is None:
            return None
        return int(json.loads(metadata.get("progress", "{}")).get("step", 0))
    except (ValueError, TypeError, AttributeError):
        return None


def saved_reports(checkpoint: Store) -> list[dict[str, float]]:
    """What its trial had reported when whole weights were saved, each report with its `step`.

    Raises:
        OSError: the storage cannot be read.
    """
    metadata = _metadata(checkpoint)
    reports: list[dict[str, float]] = json.loads((metadata or {}).get(REPORTS, "[]"))
    return reports


def _metadata(checkpoint: Store) -> dict[str, str] | None:
    """Of the weights, of which the header alone is read; None where they are missing or torn."""
    try:
        with checkpoint.open(WEIGHTS) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 8 + length <= file.size() else {}
            metadata: dict[str, str] = header.pop("__metadata__", {})
            end = max((entry["data_offsets"][1] for entry in header.values()), default=-1)
            return metadata if 8 + length + end == file.size() else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextmanager
def fetched(checkpoint: Store) -> Iterator[Path]:
    """The weights of a checkpoint in a folder of this machine, for as long as the block lasts.

    Raises:
        StorageFailed: they cannot be copied here.
    """
    if checkpoint.is_local:
        yield checkpoint.local_path()
        return
    with tempfile.TemporaryDirectory(prefix="lipsum-tune-") as folder:
        target = Path(folder) / WEIGHTS
        with storage_failures(checkpoint.url, "its weights cannot be copied here"):
            fs.copy_files(
                checkpoint.full(WEIGHTS),
                str(target),
                source_filesystem=checkpoint.filesystem,
                destination_filesystem=fs.LocalFileSystem(),
            )
        yield Path(folder)


def keep_weights(trial: TrialFiles) -> None:
    """Remove all but the newest weights of a trial that is not going to train again.

    Raises:
        OSError: something cannot be read or removed; another attempt goes on from there.
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
            remove_checkpoint(trial.folder.at(name))
    if newest in with_state:
        _delete_file(trial.folder, f"{newest}/{STATE}")


def remove(trial: TrialFiles) -> None:
    """Remove all that there is of a trial.

    Raises:
        OSError: something cannot be removed; another attempt goes on from there.
    """
    for name in trial.checkpoints:
        _delete_file(trial.folder, f"{name}/{WEIGHTS}")
    _delete_folder(trial.folder)


def remove_checkpoint(checkpoint: Store) -> None:
    """Remove one checkpoint.

    Raises:
        OSError: something cannot be removed.
    """
    _delete_file(checkpoint, WEIGHTS)
    _delete_folder(checkpoint)


def remove_folder(url: str | Path) -> None:
    """Remove a folder with all that is in it, as far as it can be."""
    with suppress(OSError):
        _delete_folder(open_store(url))


def read_json(folder: Store, path: str) -> Any:
    """What a file says; None where it is missing or torn.

    Raises:
        OSError: the storage cannot be read.
    """
    try:
        return json.loads(folder.read_bytes(path))
    except (FileNotFoundError, ValueError):
        return None


def _delete_file(folder: Store, path: str) -> None:
    with suppress(FileNotFoundError):  # Ray Train may take it away at the same time
        folder.filesystem.delete_file(folder.full(path))


def _delete_folder(folder: Store) -> None:
    with suppress(FileNotFoundError):
        folder.filesystem.delete_dir(folder.root)
