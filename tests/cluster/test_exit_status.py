"""The exit status of a search, by which clusters decide whether to retry it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app, main
from tests.disks import fill, small_disk
from tests.tuning import fakes
from tests.tuning.run_folders import search_file, trial, write_run
from tuning.config.schema import SearchFile
from tuning.execution.run_search import SearchResult
from tuning.runs import resume
from tuning.runs.records import TrialRecord
from tuning.runs.run_folder import CONFIG_FILE, load_run

FAILED = trial(1, 80.0, 50.0, outcome="failed", error="OutOfMemoryError: too big", curve=())


@pytest.fixture
def exit_code(
    images_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Exit status of a resumed search whose trials have all ended."""

    def end_at_once(folder: Path, file: SearchFile, options: object) -> SearchResult:
        return SearchResult(folder, file, load_run(folder).history, "finished", "uri")

    def searched(*records: TrialRecord, options: tuple[str, ...] = (), name: str = "mine") -> int:
        file = search_file(images_root, search__storage=str(tmp_path), search__name=name)
        run = write_run(tmp_path / name, file, records)
        command = ["search", str(run / CONFIG_FILE), "--resume", *options]
        return CliRunner().invoke(app, command).exit_code

    monkeypatch.setattr(resume, "continue_search", end_at_once)
    return searched


def test_a_failed_trial_is_status_1(exit_code: Callable[..., int]) -> None:
    assert exit_code(fakes.reference(), trial(0, 85.0, 62.0), FAILED) == 1


def test_failed_trials_can_be_allowed_if_one_finished(exit_code: Callable[..., int]) -> None:
    allowed = ("--allow-failed-trials",)
    assert exit_code(fakes.reference(), trial(0, 85.0, 62.0), FAILED, options=allowed) == 0
    assert exit_code(fakes.reference(), FAILED, options=allowed, name="none") == 1


@pytest.mark.nightly
def test_a_full_disk_is_status_75(
    images_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one_step = {"trial__steps": 1, "trial__eval__every": 1}
    with small_disk(tmp_path / "disk", 1000) as disk:
        of_trial = write_run(disk / "trial", search_file(images_root, **one_step)) / CONFIG_FILE
        report = write_run(disk / "report", search_file(images_root), [trial(0, 85.0, 62.0)])
        fill(disk)
        for words in (("train", of_trial, "--output", disk / "trained"), ("report", report)):
            monkeypatch.setattr(sys, "argv", ["lipsum-tune", *map(str, words)])
            with pytest.raises(SystemExit) as caught:
                main()
            assert caught.value.code == 75, words
            line = capsys.readouterr().err.splitlines()[-1]
            assert line.startswith("lipsum-tune: ")
            assert "No space left on device" in line
