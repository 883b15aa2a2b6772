"""Checkpoints on a disk and in a bucket: which is the newest, and what a kill leaves of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2.api.config import CheckpointConfig
from safetensors.numpy import save

from tests.s3 import s3_server
from trainers.checkpoints.format import STATE, WEIGHTS, load_weights
from trainers.checkpoints.format import saved_step as step_on_disk
from trainers.data.storage import Store, open_store
from trainers.errors import StorageFailed
from tuning.checkpoints.files import (
    SNAPSHOT,
    checkpoint_home,
    fetched,
    keep_weights,
    kept_checkpoint,
    list_trials,
    remove,
    saved_reports,
    saved_step,
    trial_path,
)
from tuning.checkpoints.repair import repair

TRIAL = "trial-000"
OLD, NEW = "checkpoint_2030-01-01_10-00-00.000000", "checkpoint_2030-01-01_11-00-00.000000"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server():
        boto3.client("s3").create_bucket(Bucket="mine")
        yield "s3://mine"


@pytest.fixture(params=["disk", "bucket"])
def train(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty folder of all trials."""
    if request.param == "disk":
        return open_store(tmp_path / "train")
    return open_store(f"{request.getfixturevalue('bucket')}/{tmp_path.name}/train")


def weights(step: int) -> bytes:
    tensors = {"head": np.full(250, step, np.float32), "scale": np.zeros((), np.float32)}
    metadata = {"progress": json.dumps({"step": step}), "classes": json.dumps(["a", "b"])}
    metadata["reports"] = json.dumps(reports(step))
    return save(tensors, metadata)


def reports(step: int) -> list[dict[str, float]]:
    return [{"step": at, "id_val/acc": 50 + at / 3} for at in range(20, step + 1, 20)]


def state(folder: Path) -> bytes:
    torch.save({"step": torch.zeros(500)}, folder / "state")
    return (folder / "state").read_bytes()


def put(folder: Store, **files: bytes) -> None:
    for path, content in files.items():
        with folder.write(path) as file:
            file.write(content)


def two_checkpoints(train: Store, tmp_path: Path) -> Store:
    """What Ray Train has for a moment, between two reports."""
    folder = train.at(trial_path(TRIAL))
    for name, step in ((OLD, 40), (NEW, 80)):
        put(folder.at(name), **{WEIGHTS: weights(step), STATE: state(tmp_path)})
    put(folder, **{SNAPSHOT: b"{}"})
    return folder


def files(train: Store) -> set[str]:
    listed = train.list(recursive=True)
    return {train.relative(info) for info in listed if info.type == fs.FileType.File}


def test_the_newest_whole_weights_are_found_read_and_all_else_is_removed(
    train: Store, tmp_path: Path
) -> None:
    folder = two_checkpoints(train, tmp_path)
    kept = kept_checkpoint(train, TRIAL)
    assert kept is not None
    assert kept.url == f"{folder.url}/{NEW}"
    assert saved_step(kept) == 80
    assert saved_reports(kept) == reports(80)
    (trial,) = list_trials(train)
    assert trial.checkpoints == (OLD, NEW)
    assert trial.num_bytes == len(weights(40) + weights(80)) + 2 * len(state(tmp_path)) + 2
    keep_weights(trial)
    assert files(train) == {
        f"{trial_path(TRIAL)}/{name}" for name in (SNAPSHOT, f"{NEW}/{WEIGHTS}")
    }
    with fetched(kept) as here:
        tensors, class_names = load_weights(here)
    assert float(tensors["head"][0]) == 80
    assert class_names == ("a", "b")
    remove(list_trials(train)[0])
    assert list_trials(train) == []
    assert kept_checkpoint(train, TRIAL) is None


def test_weights_that_are_cut_short_anywhere_are_none(tmp_path: Path) -> None:
    content = weights(7)
    for length in {*range(0, len(content), 97), 7, 8, 9, len(content) - 1, len(content)}:
        put(open_store(tmp_path), **{WEIGHTS: content[:length]})
        whole = 7 if length == len(content) else None
        assert saved_step(open_store(tmp_path)) == step_on_disk(tmp_path) == whole
    assert saved_step(open_store(tmp_path / "nowhere")) is None
    assert saved_reports(open_store(tmp_path / "nowhere")) == []


class Dying(LocalFileSystem):  # type: ignore[misc]
    """A disk whose user is killed after so many removals."""

    cachable = False
    left: float = float("inf")

    def rm_file(self, path: str) -> None:
        self._one()
        super().rm_file(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._one()
        super().rm(path, recursive, maxdepth)

    def _one(self) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1


@pytest.mark.parametrize("action", [remove, keep_weights])
def test_a_kill_in_the_middle_of_a_removal_leaves_no_checkpoint_that_is_not_the_newest(
    tmp_path: Path, action: Any
) -> None:
    for removals in itertools.count():
        disk = Dying()
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(disk))
        train = Store(filesystem, str(tmp_path / str(removals)), "dying://")
        two_checkpoints(train, tmp_path)
        disk.left = removals
        try:
            action(list_trials(train)[0])
        except KeyboardInterrupt:
            kept = kept_checkpoint(train, TRIAL)
            assert kept is None or saved_step(kept) == 80
            disk.left = float("inf")
            action(list_trials(train)[0])
        else:
            assert removals >= 3
            break
    assert {path.rpartition("/")[2] for path in files(train)} <= {SNAPSHOT, WEIGHTS}


def test_weights_that_cannot_be_copied_are_told_with_their_place(
    bucket: str, tmp_path: Path
) -> None:
    missing = open_store(f"{bucket}/{tmp_path.name}")
    with (
        pytest.raises(StorageFailed, match=f"{missing.url}: its weights cannot be copied"),
        fetched(missing),
    ):
        pass


def test_a_run_has_a_folder_of_its_own_in_the_storage(tmp_path: Path) -> None:
    assert checkpoint_home(tmp_path / "moved", None, "mine", "ab12") == str(tmp_path / "moved")
    assert checkpoint_home(tmp_path / "moved", "s3://b/x/", "mine", "ab12") == "s3://b/x/mine-ab12"


def ray_trains(train: Store) -> str | None:
    """From which checkpoint Ray Train itself would go on."""
    context = StorageContext(train.root, trial_path(TRIAL), train.filesystem)
    manager = CheckpointManager(CheckpointConfig(num_to_keep=1), context)
    latest = manager.latest_checkpoint_result
    return None if latest is None else str(latest.checkpoint.path.rpartition("/")[2])


def listing(*names: str) -> bytes:
    """Ray Train's own list, as it writes it."""
    context = StorageContext("/tmp", "none", fs.LocalFileSystem(), read_only=True)
    state = CheckpointManager(CheckpointConfig(), context)._save_state()
    results = [{"checkpoint_dir_name": name, "metrics": {"step": 1}} for name in names]
    latest = results[-1] if results else None
    known = {"checkpoint_results": results, "latest_checkpoint_result": latest}
    indices = {"checkpoint_report_indices": list(range(len(names)))}
    return json.dumps(json.loads(state) | known | indices).encode()


@pytest.mark.parametrize(
    ("listed", "cut", "goes_on"),
    [
        (listing(NEW), None, NEW),  # the old one was about to be removed
        (listing(OLD), None, OLD),  # killed before the new one was in the list
        (listing(OLD), NEW, OLD),  # the disk was full when the new one was copied
        (b"", None, NEW),  # the disk was full when the list was written
        (listing(NEW)[:99], None, NEW),
        (listing(NEW), NEW, OLD),
        (b"", NEW, OLD),
        (None, NEW, OLD),
    ],
)
def test_whatever_a_full_disk_left_ray_train_goes_on_from_a_whole_checkpoint(
    train: Store, tmp_path: Path, listed: bytes | None, cut: str | None, goes_on: str
) -> None:
    folder = two_checkpoints(train, tmp_path)
    folder.filesystem.delete_file(folder.full(SNAPSHOT))
    if listed is not None:
        put(folder, **{SNAPSHOT: listed})
    if cut is not None:
        put(folder.at(cut), **{STATE: state(tmp_path)[:-1]})
    repair(folder)
    assert ray_trains(train) == goes_on
    (trial,) = list_trials(train)
    assert trial.checkpoints == (goes_on,)


def test_a_trial_of_which_nothing_whole_is_left_starts_anew(train: Store, tmp_path: Path) -> None:
    folder = train.at(trial_path(TRIAL))
    repair(folder)
    assert files(train) == set()
    put(folder.at(OLD), **{WEIGHTS: weights(40)[:-1], STATE: state(tmp_path)})
    put(folder, **{SNAPSHOT: b""})
    repair(folder)
    assert ray_trains(train) is None
    assert list_trials(train)[0].checkpoints == ()
