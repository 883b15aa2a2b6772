"""Folders of the trials' checkpoints: reduced to weights, removed, also if killed."""

import itertools

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from trainers.checkpoints.format import (
    PREDICTIONS,
    STATE,
    WEIGHTS,
    Header,
    Progress,
    load_weights,
    save_checkpoint,
    saved_step,
)
from trainers.checkpoints.storage import fetched
from trainers.data.store import Store
from tuning.checkpoints import keep_weights, kept_checkpoint, remove
from tuning.log.paths import trial_path

TRIAL = "trial-000"
OLD, NEW = "checkpoint_2030-01-01_10-00-00.000000", "checkpoint_2030-01-01_11-00-00.000000"


def two_checkpoints(train, local):
    """Both checkpoints that a trial has while it removes the older one."""
    folder = train.at(trial_path(TRIAL))
    for name, step in ((OLD, 40), (NEW, 80)):
        tensors = {"head": torch.full((250,), float(step))}
        training = {**tensors, PREDICTIONS: b"of each image"}
        save_checkpoint(local, tensors, training, Header(Progress(step), ("a", "b")))
        for path in (local / STATE, local / PREDICTIONS, local / WEIGHTS):
            with folder.write(f"{name}/{path.name}") as file:
                file.write(path.read_bytes())
    return folder


def files(train):
    listed = train.list(recursive=True)
    return {train.relative(info) for info in listed if info.type == fs.FileType.File}


def test_a_trial_is_reduced_to_its_newest_weights_and_removed(anywhere, tmp_path):
    train = anywhere
    folder = two_checkpoints(train, tmp_path / "local")
    keep_weights(folder)
    newest = f"{trial_path(TRIAL)}/{NEW}"
    assert files(train) == {f"{newest}/{WEIGHTS}", f"{newest}/{PREDICTIONS}"}
    kept = kept_checkpoint(train, TRIAL)
    with fetched(kept) as here:
        tensors, class_names = load_weights(here)
    assert float(tensors["head"][0]) == 80
    assert class_names == ("a", "b")
    remove(folder)
    assert train.list() == []
    assert kept_checkpoint(train, TRIAL) is None


class DyingDisk(LocalFileSystem):
    """A disk whose user is killed after so many removals."""

    cachable = False
    left: float = float("inf")

    def rm_file(self, path):
        self._count()
        super().rm_file(path)

    def rm(self, path, recursive=False, maxdepth=None):
        self._count()
        super().rm(path, recursive, maxdepth)

    def _count(self):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1


@pytest.mark.parametrize("action", [remove, keep_weights])
def test_a_killed_removal_leaves_the_newest_weights_or_none(tmp_path, action):
    for removals in itertools.count():
        disk = DyingDisk()
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(disk))
        train = Store(filesystem, str(tmp_path / str(removals)), "dying://")
        folder = two_checkpoints(train, tmp_path / "local")
        disk.left = removals
        try:
            action(folder)
        except KeyboardInterrupt:
            kept = kept_checkpoint(train, TRIAL)
            assert kept is None or saved_step(kept) == 80
            disk.left = float("inf")
            action(folder)
        else:
            assert removals >= 3
            break
    left = {path.rpartition("/")[2] for path in files(train)}
    assert left in (set(), {WEIGHTS, PREDICTIONS})
