"""Checkpoints of one training in a folder or bucket: written, found, fetched, removed.

    <folder>/checkpoint_<time>/{training_state.pt, predictions.parquet, student.safetensors}

A disk gets a checkpoint under another name, which is changed once all of it is on the disk. A
bucket can neither rename nor remove a folder as a whole, so the order of the files matters: the
weights are written last and removed first. A checkpoint without whole weights is incomplete, and is
never used. A checkpoint is removed only when a newer one is complete.

What reads the names of checkpoints or removes one raises an OSError of the storage; everything else
turns it into a `StorageFailed`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs

from trainers.checkpoints.format import (
    PREDICTIONS,
    STATE,
    WEIGHTS,
    Header,
    save_weights,
    saved_step,
)
from trainers.data.store import Store
from trainers.errors import StorageFailed, storage_failures
from trainers.folders import temporary_folder

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = "checkpoint_"
"""Prefix of a checkpoint's folder. Names are times, so that no two attempts ever share one."""
UNFINISHED = ".unfinished-"
"""Prefix of the folder in which a checkpoint is written on a disk."""
SAVED = "lipsum-tune-saved-"
"""Prefix of the folder on this machine from which a checkpoint is copied to a bucket."""
_MARKER = ".storage_marker"
"""File in the folder of a training; a node that does not see it has no access to the storage."""
_COPY_BYTES = 16 << 20
"""Bytes of a checkpoint in memory while it is copied."""


def checkpoint_names(folder: Store) -> list[str]:
    """Names of all checkpoints of a training, oldest first; some may be incomplete."""
    return [
        info.base_name
        for info in folder.list()
        if info.type == fs.FileType.Directory and info.base_name.startswith(CHECKPOINT)
    ]


def newest_checkpoint(
    folder: Store, names: Iterable[str] | None = None, *, resumable: bool = False
) -> str | None:
    """Name of the complete checkpoint with the most steps, the later one of equals; None without.

    With `resumable`, training can continue from it: an ended trial keeps weights only.
    """
    complete = [
        (step, name)
        for name in (checkpoint_names(folder) if names is None else names)
        if (step := saved_step(folder.at(name))) is not None
        and (not resumable or folder.exists(f"{name}/{STATE}"))
    ]
    return max(complete)[1] if complete else None


def prepare_folder(folder: Store) -> None:
    """Make the folder ready for an attempt: writable, and without incomplete checkpoints."""
    with storage_failures(folder.url, "the folder of checkpoints cannot be used"):
        with folder.write(_MARKER) as file:
            file.write(b"")
        names = checkpoint_names(folder)
        newest = newest_checkpoint(folder, names, resumable=True)
        for name in names:
            if name != newest:
                remove_checkpoint(folder.at(name))


def write_checkpoint(folder: Store, save: Callable[[Path], object]) -> str:
    """Write a checkpoint into the folder of its training, and return its name.

    Args:
        save: writes the files of the checkpoint into a folder of this machine.
    """
    with storage_failures(folder.url, "a checkpoint cannot be written"):
        if not folder.exists(_MARKER):
            raise StorageFailed(f"{folder.url}: it was removed, or this node does not see it")
        return _write(folder, save)


def write_weights(folder: Store, weights: Mapping[str, Tensor], header: Header) -> None:
    """Replace all checkpoints of a folder by one of weights alone."""
    with storage_failures(folder.url, "weights cannot be written"):
        name = _write(folder, lambda place: save_weights(place, weights, header))
    remove_other_checkpoints(folder, name)


def _write(folder: Store, save: Callable[[Path], object]) -> str:
    """Write a new checkpoint, and return its name.

    Files are copied to a bucket one by one, as `pyarrow.fs.copy_files` of Arrow 25 does not raise
    if it refuses a file (no issue found), and the older checkpoints would be removed all the same.
    """
    name = f"{CHECKPOINT}{datetime.now():%Y-%m-%d_%H-%M-%S.%f}"
    if folder.is_local:
        training = folder.local_path()
        training.mkdir(parents=True, exist_ok=True)
        with temporary_folder(UNFINISHED, training) as unfinished:
            save(unfinished)
            for path in (*unfinished.iterdir(), unfinished):
                _sync(path)
            unfinished.chmod(0o755)  # mkdtemp makes it for its owner alone
            unfinished.rename(training / name)
            _sync(training)
        return name
    with temporary_folder(SAVED) as source:
        try:
            save(source)
        except StorageFailed as error:
            hint = "TMPDIR selects another folder for temporary files"
            raise StorageFailed(f"{error}; {hint}") from None
        for file in (STATE, PREDICTIONS, WEIGHTS):
            if (source / file).exists():
                with (source / file).open("rb") as read, folder.write(f"{name}/{file}") as written:
                    shutil.copyfileobj(read, written, _COPY_BYTES)
    return name


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def fetched(checkpoint: Store) -> Iterator[Path]:
    """Within the block, the weights of a checkpoint in a folder of this machine."""
    if checkpoint.is_local:
        yield checkpoint.local_path()
        return
    with temporary_folder("lipsum-tune-fetched-") as folder:
        fetch_checkpoint(checkpoint, folder, (WEIGHTS,))
        yield folder


def remove_other_checkpoints(folder: Store, name: str) -> None:
    """Remove all checkpoints but one. What cannot be removed is left to the next call."""
    with suppress(OSError):
        for other in checkpoint_names(folder):
            if other != name:
                remove_checkpoint(folder.at(other))


def fetch_checkpoint(checkpoint: Store, target: Path, files: Iterable[str]) -> None:
    """Copy files of a checkpoint into a folder of this machine."""
    target.mkdir(parents=True, exist_ok=True)
    with storage_failures(checkpoint.url, "the checkpoint cannot be copied to this machine"):
        for file in files:
            with checkpoint.open(file) as read, (target / file).open("wb") as written:
                shutil.copyfileobj(read, written, _COPY_BYTES)


def remove_checkpoint(checkpoint: Store) -> None:
    """Remove a checkpoint; one that is gone already is fine."""
    remove_file(checkpoint, WEIGHTS)
    remove_folder(checkpoint)


def remove_file(folder: Store, path: str) -> None:
    """Remove a file, if it exists."""
    with suppress(FileNotFoundError):
        folder.filesystem.delete_file(folder.full(path))


def remove_folder(folder: Store) -> None:
    """Remove a folder with everything in it, if it exists."""
    with suppress(FileNotFoundError):
        folder.filesystem.delete_dir(folder.root)
