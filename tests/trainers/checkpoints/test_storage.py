"""Checkpoints of one training on a disk and in a bucket."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import boto3
import pytest
import torch
from pyarrow import fs

from trainers.checkpoints import storage
from trainers.checkpoints.format import (
    PREDICTIONS,
    STATE,
    WEIGHTS,
    Header,
    Progress,
    read_header,
    save_checkpoint,
    saved_step,
)
from trainers.checkpoints.storage import (
    UNFINISHED,
    checkpoint_names,
    fetch_checkpoint,
    newest_checkpoint,
    prepare_folder,
    remove_checkpoint,
    remove_other_checkpoints,
    write_checkpoint,
)
from trainers.data.store import open_store
from trainers.errors import StorageFailed

EARLY, LATE = "checkpoint_2030-01-01_10-00-00.000000", "checkpoint_2030-01-01_11-00-00.000000"


@pytest.fixture
def folder(anywhere):
    """The folder of a training before its first attempt."""
    return anywhere


def saved(folder, step):
    """A checkpoint on this machine, as a worker saves it before it is copied."""
    reports = [{"step": float(at), "id_val/acc": 50 + at / 3} for at in range(20, step + 1, 20)]
    weights = {"head": torch.full((2500,), float(step)), "scale": torch.zeros(())}
    training = {"optimizer": {}, PREDICTIONS: b"of each image", "moments": torch.ones(2500)}
    save_checkpoint(folder, weights, training, Header(Progress(step), ("a", "b"), reports))
    return folder


def put(folder, name, source, cut=None):
    """Copy a checkpoint under this name, one of its files without its last byte."""
    for file in (STATE, WEIGHTS):
        content = (source / file).read_bytes()
        with folder.write(f"{name}/{file}") as written:
            written.write(content[: -1 if file == cut else None])


def test_a_new_checkpoint_replaces_the_older_ones(folder, tmp_path):
    prepare_folder(folder)
    assert newest_checkpoint(folder) is None
    files = {}

    def save(place, step):
        files.update((file.name, file.read_bytes()) for file in saved(place, step).iterdir())

    for step in (40, 80):
        name = write_checkpoint(folder, partial(save, step=step))
        remove_other_checkpoints(folder, name)
    assert checkpoint_names(folder) == [name]
    assert newest_checkpoint(folder, resumable=True) == name
    header = read_header(folder.at(name))
    assert (header.step, header.class_names) == (80, ("a", "b"))
    assert [report["step"] for report in header.reports] == [20, 40, 60, 80]
    assert header.shapes == {"head": (2500,), "scale": ()}

    fetch_checkpoint(folder.at(name), tmp_path / "fetched", (STATE, WEIGHTS))
    assert folder.read_bytes(f"{name}/{PREDICTIONS}") == b"of each image"
    for file in (STATE, WEIGHTS):
        assert (tmp_path / "fetched" / file).read_bytes() == files[file]
    folder.filesystem.delete_file(folder.full(f"{name}/{STATE}"))
    assert newest_checkpoint(folder) == name
    assert newest_checkpoint(folder, resumable=True) is None
    remove_checkpoint(folder.at(name))
    remove_checkpoint(folder.at(name))
    assert newest_checkpoint(folder) is None


def test_an_incomplete_checkpoint_is_never_used(folder, tmp_path):
    source = saved(tmp_path / "local", 40)
    put(folder, EARLY, source)
    put(folder, LATE, saved(source, 80), cut=WEIGHTS)
    assert newest_checkpoint(folder) == newest_checkpoint(folder, resumable=True) == EARLY
    prepare_folder(folder)
    assert checkpoint_names(folder) == [EARLY]


def test_the_newest_checkpoint_has_the_most_steps(folder, tmp_path):
    source = tmp_path / "local"
    put(folder, EARLY, saved(source, 80))
    put(folder, LATE, saved(source, 40))
    assert newest_checkpoint(folder) == EARLY
    put(folder, LATE, saved(source, 80))
    assert newest_checkpoint(folder) == LATE


def test_the_weights_are_copied_last(tmp_path, monkeypatch):
    folder, copied = open_store(f"memory://{tmp_path}/train"), list[str]()

    def stop_at_weights(read, written, size):
        copied.append(Path(str(getattr(read, "name", ""))).name)
        if copied[-1] == WEIGHTS:
            raise OSError(28, "No space left on device")

    prepare_folder(folder)
    write_checkpoint(folder, partial(saved, step=40))
    monkeypatch.setattr(storage.shutil, "copyfileobj", stop_at_weights)
    with pytest.raises(StorageFailed, match="a checkpoint cannot be written: No space left"):
        write_checkpoint(folder, partial(saved, step=80))
    assert copied == [STATE, PREDICTIONS, WEIGHTS]
    newest = newest_checkpoint(folder, resumable=True)
    assert saved_step(folder.at(str(newest))) == 40


PAGE = 4096


def torn(source):
    """What a kill leaves of each file of a checkpoint, those before it whole: its beginning at
    every 4 KiB, alone and with zeros up to its size."""
    before = {}
    for file in (STATE, PREDICTIONS, WEIGHTS):
        content = (source / file).read_bytes()
        for cut in range(0, len(content), PAGE):
            yield before | {file: content[:cut]}
            yield before | {file: content[:cut].ljust(len(content), b"\0")}
        before[file] = content


def test_a_checkpoint_that_is_killed_while_it_is_written_is_not_there(tmp_path):
    """A disk has it under its name only once all of it is there."""
    folder = open_store(tmp_path / "train")
    prepare_folder(folder)
    first = write_checkpoint(folder, partial(saved, step=40))
    whole = saved(tmp_path / "whole", 80)
    assert sum(file.stat().st_size > 2 * PAGE for file in whole.iterdir()) >= 2
    for files in torn(whole):

        def killed(place, files=files):
            for file, content in files.items():
                (place / file).write_bytes(content)
            os.kill(os.getpid(), signal.SIGKILL)

        if (child := os.fork()) == 0:
            write_checkpoint(folder, killed)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert len(list((tmp_path / "train").glob(f"{UNFINISHED}*"))) == 1
        assert newest_checkpoint(folder, resumable=True) == first
        assert checkpoint_names(folder) == [first]
    second = write_checkpoint(folder, partial(saved, step=80))
    assert newest_checkpoint(folder, resumable=True) == second
    assert list((tmp_path / "train").glob(f"{UNFINISHED}*")) == []


def test_a_checkpoint_without_room_is_not_there(tmp_path):
    folder = open_store(tmp_path / "train")
    prepare_folder(folder)

    def full(place):
        saved(place, 40)
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageFailed, match="a checkpoint cannot be written: No space left"):
        write_checkpoint(folder, full)
    assert [path.name for path in (tmp_path / "train").iterdir()] == [storage._MARKER]


def test_a_bucket_that_refuses_a_file_is_an_error(bucket, tmp_path):
    folder = open_store(f"{bucket}/{tmp_path.name}")
    prepare_folder(folder)
    resource = f"arn:aws:s3:::mine/*{WEIGHTS}"
    denied = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": resource}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [denied]})
    boto3.client("s3").put_bucket_policy(Bucket="mine", Policy=policy)
    try:
        with pytest.raises(StorageFailed, match="ACCESS_DENIED"):
            write_checkpoint(folder, partial(saved, step=40))
        # The reason for copying files one by one: Arrow does not raise.
        target = folder.full("copied")
        source = str(saved(tmp_path / "local", 40))
        fs.copy_files(source, target, destination_filesystem=folder.filesystem)
        assert not folder.exists(f"copied/{WEIGHTS}")
    finally:
        boto3.client("s3").delete_bucket_policy(Bucket="mine")
    assert newest_checkpoint(folder) is None


def test_a_node_that_does_not_see_the_folder_writes_nothing(folder, tmp_path):
    with pytest.raises(StorageFailed, match="it was removed, or this node does not see it"):
        write_checkpoint(folder, partial(saved, step=40))
    assert checkpoint_names(folder) == []


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "train").write_text("a file in the place of the folder")
    with pytest.raises(StorageFailed, match=f"^{tmp_path}/train: the folder of checkpoints cannot"):
        prepare_folder(open_store(tmp_path / "train"))
    with pytest.raises(StorageFailed, match="cannot be copied to this machine"):
        fetch_checkpoint(open_store(tmp_path / "missing"), tmp_path / "here", (WEIGHTS,))
