"""Reports that a killed driver did not write are found in checkpoints."""

import pytest
import torch

from tests.tuning import fakes
from tests.tuning.run_folders import LR, WEIGHT, ZERO_SHOT, search_file, write_run
from trainers.checkpoints.format import Checkpoint, Progress, save_checkpoint
from trainers.data.storage import open_store
from trainers.errors import StorageFailed
from tuning.runs.checkpoint_home import trial_path
from tuning.runs.journal import Journal, add_missed_reports
from tuning.runs.records import TrialRecord
from tuning.runs.run_folder import load_run, search_record

CURVE = [fakes.report(step, 80.0 + step / 40, 60.0 + step / 7) for step in range(40, 241, 40)]
STOPPED = TrialRecord(
    "trial-000", 0, "trial", {LR: 1e-4, WEIGHT: 1.0}, outcome="stopped", curve=tuple(CURVE[:2]),
    started_at=1.0, ended_at=2.0,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, images_root):
    """The run folder of a killed driver, whose trial had reported at steps 40 and 80."""
    return write_run(tmp_path / "run", search_file(images_root), [STOPPED], outcome=None)


def save(folder, step, reports):
    """A checkpoint of the trial, as its workers write it."""
    name = f"checkpoint_2030-01-01_10-00-00.{step:06d}"
    target = folder / "train" / trial_path("trial-000") / name
    training = {"since_report": {"step": step}}
    weights = {"head": torch.zeros(9)}
    curves = [{"step": [r["step"] - 20, r["step"]], "train/loss": [1.0, 2.0]} for r in reports]
    save_checkpoint(target, Checkpoint(weights, training, Progress(step), reports, curves), ["ant"])


def recovered(folder):
    """The trial as a new session sees it, which is then killed."""
    file = load_run(folder).file
    search = search_record(file, folder, ZERO_SHOT)
    journal = Journal(folder)
    journal.session_started(file.fingerprints())
    (record,) = add_missed_reports(search, journal, open_store(folder / "train")).records
    journal.close()
    return record


@pytest.mark.parametrize("step", [80, 100, 120, 199, 200])
def test_reports_of_the_checkpoint_are_added_once(folder, step):
    known = [report for report in CURVE if report["step"] <= step]
    save(folder, step, known)
    for _ in range(2):
        record = recovered(folder)
        assert list(record.curve) == known
        added = [report["step"] for report in known[2:]]
        assert [p["step"] for p in record.train_points] == sorted(
            {*(s - 20 for s in added), *added}
        )
        assert record.outcome == "stopped"


def test_a_checkpoint_behind_the_journal_takes_nothing_away(folder):
    save(folder, 40, CURVE[:1])
    assert list(recovered(folder).curve) == CURVE[:2]


def test_reports_of_an_incomplete_checkpoint_come_again(folder):
    save(folder, 120, CURVE[:3])
    save(folder, 160, CURVE[:4])
    *_, torn = sorted(folder.rglob("student.safetensors"))
    torn.write_bytes(torn.read_bytes()[:-1])
    assert list(recovered(folder).curve) == CURVE[:3]


def test_a_trial_whose_last_report_is_found_is_finished(folder):
    save(folder, 240, CURVE)
    record = recovered(folder)
    assert (record.outcome, list(record.curve)) == ("finished", CURVE)
    assert record.ended_at == load_run(folder).history.records[0].ended_at


def test_unreadable_checkpoints_end_the_session_before_it_trains(folder):
    save(folder, 200, CURVE[:5])
    weights = next(folder.rglob("student.safetensors"))
    weights.unlink()
    weights.mkdir()
    with pytest.raises(StorageFailed, match="cannot be read"):
        recovered(folder)
