"""A trial's checkpoints made such that Ray Train can go on from them, after a disk was full.

Ray Train copies a checkpoint, then writes over its list of checkpoints, then removes the old one.
Whatever fails on the way leaves a checkpoint in part, which nobody removes and which takes room, or
an empty list, with which Ray Train refuses to start the trial.
"""

from __future__ import annotations

import zipfile

from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)

from trainers.checkpoints.format import STATE
from trainers.data.storage import Store
from trainers.errors import storage_failures
from tuning.checkpoints.files import (
    SNAPSHOT,
    checkpoint_names,
    newest_checkpoint,
    read_json,
    remove_checkpoint,
    saved_step,
)


def repair(folder: Store) -> None:
    """Let Ray Train's list name one whole checkpoint, the newest, and leave no other.

    Where the list is right, what it names is what training goes on from, as Ray Train would.

    Args:
        folder: of a trial that does not run; nothing happens where there is none.

    Raises:
        StorageFailed: the storage cannot be read or written.
    """
    with storage_failures(folder.url, "its checkpoints cannot be made ready"):
        names, listed = checkpoint_names(folder), _listed(folder)
        if not listed or not all(_is_whole(folder.at(name)) for name in listed):
            newest = newest_checkpoint(folder, [n for n in names if _is_whole(folder.at(n))])
            listed = () if newest is None else (newest,)
            if newest is not None or folder.exists(SNAPSHOT):
                _write_list(folder, listed)
        for name in names:
            if name not in listed:
                remove_checkpoint(folder.at(name))


def _listed(folder: Store) -> tuple[str, ...]:
    """The checkpoints that Ray Train's list names; none where it is missing or torn."""
    found = read_json(folder, SNAPSHOT)
    try:
        return tuple(result["checkpoint_dir_name"] for result in found["checkpoint_results"])
    except (TypeError, KeyError):
        return ()


def _is_whole(checkpoint: Store) -> bool:
    """Whether training can go on from there: weights and state, neither of them cut short."""
    if saved_step(checkpoint) is None or not checkpoint.exists(STATE):
        return False
    with checkpoint.open(STATE) as file:
        return zipfile.is_zipfile(file)  # as torch writes it, with its index at the end


def _write_list(folder: Store, names: tuple[str, ...]) -> None:
    results = [_TrainingResultState(checkpoint_dir_name=name, metrics={}) for name in names]
    state = _CheckpointManagerState(
        checkpoint_results=results,
        checkpoint_report_indices=list(range(len(results))),
        latest_checkpoint_result=results[-1] if results else None,
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(results),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    with folder.write(SNAPSHOT) as file:
        file.write(state.model_dump_json().encode())
