"""What the driver writes, on a real disk that is full (mounted for the test, as root)."""

import re
import sys
import tempfile

import pytest
import torch

from cluster.cli import main
from tests.disks import fill, make_room, small_disk
from tests.tuning import fakes, run_folders
from tests.tuning.run_folders import search_file, write_run
from trainers.checkpoints.format import Header, Progress, save_checkpoint, saved_step
from trainers.checkpoints.storage import SAVED, prepare_folder, write_checkpoint
from trainers.data.store import open_store
from trainers.errors import StorageFailed
from trainers.fine_tune import fine_tune
from tuning.log.history import read_history
from tuning.log.journal import Journal
from tuning.log.paths import CONFIG_FILE, JOURNAL_FILE

pytestmark = pytest.mark.cluster

FULL = "No space left on device"


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 128) as folder:
        yield folder


def large(number):
    """A trial whose line is longer than what is left of any block of the disk."""
    return fakes.trial(number, params={f"key.{n}": "x" * 100 for n in range(60)})


@pytest.mark.nightly
def test_a_line_that_finds_no_room_leaves_nothing_and_ends_the_journal_of_the_session(disk):
    journal = Journal(disk)
    journal.session_started({})
    journal.trial_started(large(0))
    before = (disk / JOURNAL_FILE).read_bytes()
    fill(disk)
    with pytest.raises(StorageFailed, match=f"^{disk}/{JOURNAL_FILE}: cannot be written: {FULL}$"):
        journal.trial_started(large(1))
    assert (disk / JOURNAL_FILE).read_bytes() == before
    make_room(disk)
    with pytest.raises(StorageFailed, match=FULL):  # of a trial that never started
        journal.trial_ended(large(1))
    journal.close()
    assert (disk / JOURNAL_FILE).read_bytes() == before

    again = Journal(disk)
    again.session_started({})
    again.trial_started(large(1))
    again.close()
    history = read_history(disk)
    cut_off = [record.trial_id for record in history.records if not record.is_final]
    assert cut_off == ["trial-000", "trial-001"]
    assert history.run_id == journal.run_id == again.run_id


def checkpoint(step):
    tensors = {"visual.w": torch.full((20_000,), float(step))}
    return tensors, {"optimizer": dict(tensors)}, Header(Progress(step=step), ("a",))


@pytest.mark.parametrize("room", [0, 1, 90_000, 130_000])
def test_a_checkpoint_without_room_is_incomplete(tmp_path, room):
    # Full when the state is written, in its midst, when the weights are, and in their midst.
    with small_disk(tmp_path / "small", 360) as disk:
        (disk / "placeholder").write_bytes(bytes(room))
        fill(disk)
        (disk / "placeholder").unlink()
        with pytest.raises(StorageFailed) as caught:
            save_checkpoint(disk / "new", *checkpoint(2))
        assert str(caught.value).startswith(f"{disk}/new: a checkpoint cannot be written: ")
        assert FULL in str(caught.value)
        assert "\n" not in str(caught.value)
        assert saved_step(disk / "new") is None


def test_a_full_folder_for_temporary_files_is_named(trial, tmp_path, monkeypatch):
    report = next(fine_tune(trial))
    folder = open_store(f"memory://{tmp_path}/train")
    prepare_folder(folder)
    with small_disk(tmp_path / "temporary", 1000) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with pytest.raises(StorageFailed) as caught:
            write_checkpoint(folder, report.save)
        assert list(disk.iterdir()) == []
    said = rf"{disk}/{SAVED}\w+: a checkpoint cannot be written: {FULL}; TMPDIR "
    assert re.match(said, str(caught.value))


@pytest.mark.nightly
def test_a_full_disk_is_status_75(images_root, tmp_path, monkeypatch, capsys):
    one_step = {"trial__steps": 1, "trial__eval__every": 1}
    with small_disk(tmp_path / "disk", 1000) as disk:
        of_trial = write_run(disk / "trial", search_file(images_root, **one_step)) / CONFIG_FILE
        records = [run_folders.trial(0, 85.0, 62.0)]
        report = write_run(disk / "report", search_file(images_root), records)
        fill(disk)
        for words in (("train", of_trial, "--output", disk / "trained"), ("report", report)):
            monkeypatch.setattr(sys, "argv", ["lipsum-tune", *map(str, words)])
            with pytest.raises(SystemExit) as caught:
                main()
            assert caught.value.code == 75, words
            line = capsys.readouterr().err.splitlines()[-1]
            assert line.startswith(("lipsum-tune: ", "warning: "))
            assert FULL in line
