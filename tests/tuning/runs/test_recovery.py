"""What was said while no driver was there to hear it is known to the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from rich.console import Console

from tests.tuning import fakes
from tests.tuning.run_folders import LR, WEIGHT, ZERO_SHOT, search_file, write_run
from trainers.checkpoints.format import Checkpoint, Progress, save_checkpoint
from trainers.data.storage import open_store
from trainers.errors import StorageFailed
from tuning.algorithms.study import tell
from tuning.checkpoints.files import trial_path
from tuning.runs.journal import Journal
from tuning.runs.records import Outcome, TrialRecord
from tuning.runs.recovery import take_up
from tuning.runs.run_folder import load_run, search_record

OOD = [f"ood_val/{domain}/acc" for domain in fakes.DOMAINS]
CURVE = [fakes.report(step, 80.0 + step / 40, 60.0 + step / 7) for step in range(40, 241, 40)]
STOPPED = TrialRecord(
    "trial-000", 0, "trial", {LR: 1e-4, WEIGHT: 1.0}, outcome="stopped", curve=tuple(CURVE[:2]),
    started_at=1.0, ended_at=2.0,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, images_root: Path) -> Path:
    """A killed driver's: its trial had reported at steps 40 and 80."""
    file = search_file(images_root, search__sampler__name="random")
    return write_run(tmp_path / "run", file, [STOPPED], outcome=None)


def save(folder: Path, step: int, reports: Sequence[Mapping[str, float]]) -> None:
    """A checkpoint of the trial, as its workers write it."""
    name = f"checkpoint_2030-01-01_10-00-00.{step:06d}"
    target = folder / "train" / trial_path("trial-000") / name
    training: dict[str, Any] = {"since_report": {"step": step}}
    weights = {"head": torch.zeros(9)}
    save_checkpoint(target, Checkpoint(weights, training, Progress(step), reports), ["ant"])


def resumed(folder: Path, ends_as: Outcome | None = None) -> TrialRecord:
    """The trial as a new session has it; before it is killed, it may tell the study how it ends."""
    file = load_run(folder).file
    search, train = search_record(file, folder, ZERO_SHOT), open_store(folder / "train")
    journal = Journal(folder)
    journal.session_started(file.fingerprints())
    (branch,), history = take_up(search, file, journal, train, Console(quiet=True))
    journal.close()
    (record,), (trial,) = history.records, branch.study.trials
    assert trial.intermediate_values == {r["step"]: r["val/mean_acc"] for r in record.curve}
    if ends_as is not None:
        running = optuna.Trial(branch.study, trial._trial_id)
        tell(running, branch.study, search, replace(record, outcome=ends_as), {})
    return record


@pytest.mark.parametrize("step", [80, 100, 120, 199, 200])
def test_reports_that_nobody_wrote_down_are_those_that_the_checkpoint_knows(
    folder: Path, step: int
) -> None:
    known = [report for report in CURVE if report["step"] <= step]
    save(folder, step, known)
    for _ in range(2):  # and once they are known, they are not lost again
        record = resumed(folder)
        assert list(record.curve) == known
        assert record.outcome == "stopped"


def test_a_checkpoint_behind_the_journal_takes_nothing_away(folder: Path) -> None:
    save(folder, 40, CURVE[:1])
    record = resumed(folder)
    assert list(record.curve) == CURVE[:2]


def test_reports_of_an_incomplete_checkpoint_come_again(folder: Path) -> None:
    save(folder, 120, CURVE[:3])
    save(folder, 160, CURVE[:4])
    *_, torn = sorted(folder.rglob("student.safetensors"))
    torn.write_bytes(torn.read_bytes()[:-1])
    assert list(resumed(folder).curve) == CURVE[:3]


def test_a_trial_whose_last_report_nobody_heard_has_finished(folder: Path) -> None:
    save(folder, 240, CURVE)
    record = resumed(folder)
    assert (record.outcome, list(record.curve)) == ("finished", CURVE)


def test_a_trial_that_optuna_knows_as_pruned_did_not_report_again(folder: Path) -> None:
    assert resumed(folder, ends_as="pruned").outcome == "stopped"
    save(folder, 200, CURVE[:5])
    record = resumed(folder)
    assert (record.outcome, list(record.curve)) == ("pruned", CURVE[:2])


def test_checkpoints_that_cannot_be_read_end_the_session_before_it_trains(folder: Path) -> None:
    save(folder, 200, CURVE[:5])
    weights = next(folder.rglob("student.safetensors"))
    weights.unlink()
    weights.mkdir()
    with pytest.raises(StorageFailed, match=r"train: cannot be read: "):
        resumed(folder)
