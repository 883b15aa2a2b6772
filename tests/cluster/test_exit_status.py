"""The exit status of a search, by which clusters decide whether to retry it."""

import sys

import pytest
from typer.testing import CliRunner

from cluster.cli import app, main
from tests.disks import fill, small_disk
from tests.tuning import fakes
from tests.tuning.run_folders import search_file, trial, write_run
from tuning import resume
from tuning.runs.run_folder import CONFIG_FILE, load_run
from tuning.search import SearchResult

FAILED = trial(1, 80.0, 50.0, outcome="failed", error="OutOfMemoryError: too big", curve=())


@pytest.fixture
def exit_code(images_root, tmp_path, monkeypatch):
    """Exit status of a resumed search whose trials have all ended."""

    def end_at_once(folder, file, options):
        return SearchResult(folder, file, load_run(folder).history, "finished", "uri")

    def searched(*records, options=(), name="mine"):
        file = search_file(images_root, search__storage=str(tmp_path), search__name=name)
        run = write_run(tmp_path / name, file, records)
        command = ["search", str(run / CONFIG_FILE), "--resume", *options]
        return CliRunner().invoke(app, command).exit_code

    monkeypatch.setattr(resume, "continue_search", end_at_once)
    return searched


def test_a_failed_trial_is_status_1(exit_code):
    assert exit_code(fakes.reference(), trial(0, 85.0, 62.0), FAILED) == 1


def test_failed_trials_can_be_allowed_if_one_finished(exit_code):
    allowed = ("--allow-failed-trials",)
    assert exit_code(fakes.reference(), trial(0, 85.0, 62.0), FAILED, options=allowed) == 0
    assert exit_code(fakes.reference(), FAILED, options=allowed, name="none") == 1


@pytest.mark.nightly
def test_a_full_disk_is_status_75(images_root, tmp_path, monkeypatch, capsys):
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
