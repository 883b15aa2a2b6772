"""Run folders: made whole or not at all, and read back."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tuning import fakes
from tests.tuning.run_folders import ZERO_SHOT, search_file, trial, write_run
from trainers.data.roots import data_fingerprint
from trainers.errors import ConfigError
from tuning.config.validation import load_config
from tuning.log import environment
from tuning.log.folder import create_run_folder, find_run, runs_in, runs_named
from tuning.log.journal import Journal
from tuning.log.paths import CONFIG_FILE, checkpoint_root_of
from tuning.run import load_run


@pytest.fixture
def file(images_root, tmp_path):
    return stored(images_root, tmp_path / "runs")


def stored(root, storage):
    return search_file(root, search__storage=str(storage), search__name="mine")


def test_a_run_folder_holds_the_resolved_configuration_and_what_it_was_made_with(file, tmp_path):
    folder = create_run_folder(file, Path(file.search.storage))
    assert folder == tmp_path / "runs" / "mine"
    assert load_config(folder / CONFIG_FILE) == file
    seen = json.loads((folder / "environment.json").read_text())
    assert seen["data"] == data_fingerprint(file.trial.data)
    assert seen["packages"]["optuna"]
    assert seen["val_images"] == dict.fromkeys(file.trial.data.domains, 24)
    assert (folder / "report").is_dir()


def test_only_a_checkout_has_a_commit_not_the_project_that_installs_it(file, tmp_path, monkeypatch):
    def commit_at(root):
        monkeypatch.setattr(environment, "__file__", str(root / "tuning/log/environment.py"))
        return environment.environment(file.trial)["git_commit"]

    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", tmp_path)
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "a project"]):
        subprocess.run([*git, *command], check=True)
    assert len(commit_at(tmp_path)) == 40
    (installed := tmp_path / ".venv").mkdir()
    assert commit_at(installed) is None


def test_runs_of_a_name_are_found_in_their_order_past_those_that_were_removed(file):
    made = [create_run_folder(file, Path(file.search.storage)) for _ in range(11)]
    assert [folder.name for folder in made[:3]] == ["mine", "mine-2", "mine-3"]
    (other := made[0].parent / f"{file.search.name}-x").mkdir()
    (other / "search.yaml").write_text("of another name")
    shutil.rmtree(made.pop(0))
    assert runs_named(Path(file.search.storage), file.search.name) == made
    for age, folder in enumerate(made):
        os.utime(folder / "search.yaml", (10**9, 10**9 - age))
    assert runs_in(Path(file.search.storage)) == [other, *made]  # the last one first


def test_a_search_that_cannot_start_leaves_no_folder_behind(images_root, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(images_root, damaged)
    shutil.rmtree(damaged / "real" / "train")
    with pytest.raises(ConfigError):
        create_run_folder(stored(damaged, tmp_path / "runs"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ConfigError, match=r"search\.storage = '.*runs'"):
        create_run_folder(stored(images_root, tmp_path / "runs"), tmp_path / "runs")


def test_what_a_search_wrote_is_loaded(file, tmp_path):
    failed = fakes.trial(1, outcome="failed", error="OutOfMemoryError: too big", curve=())
    records = (fakes.reference(), trial(0, 85.0, 62.0), failed)
    run = load_run(write_run(tmp_path / "run", file, records))
    assert (run.folder, run.file, run.history.records) == (tmp_path / "run", file, records)
    assert (run.history.outcome, run.history.fingerprints) == ("finished", file.fingerprints())
    assert run.name == "run"
    assert run.goal.zero_shot == ZERO_SHOT
    assert run.file.trial.steps == fakes.TOTAL_STEPS
    assert run.goal.ood_domains == fakes.DOMAINS
    assert run.file.summary() == file.model_dump(mode="json")


def test_runs_of_jobs_are_found_by_name(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    of_job = write_run(tmp_path / "home" / "lipsum-tune" / "runs" / "mine", file)
    assert find_run("mine") == of_job
    own = write_run(tmp_path / "runs" / "mine", file)
    assert find_run("mine").resolve() == own
    (tmp_path / "trained").mkdir()  # by `lipsum-tune train`, without a search
    write_run(tmp_path / "home" / "lipsum-tune" / "runs" / "trained", file)
    assert find_run("trained") == Path("trained")


def test_a_trial_that_a_resumed_search_continues_is_running(file, tmp_path):
    stopped = fakes.trial(0, outcome="stopped")
    folder = write_run(tmp_path / "run", file, [stopped], outcome="stopped")
    journal = Journal(folder)
    journal.session_started({})
    (record,) = load_run(folder).history.records
    assert (record.outcome, record.curve) == ("running", stopped.curve)
    journal.close()
    assert [r.outcome for r in load_run(folder).history.records] == ["stopped"]


def test_a_run_has_its_own_folder_in_the_storage(tmp_path):
    assert checkpoint_root_of(tmp_path / "moved", None, "mine", "ab12") == str(tmp_path / "moved")
    assert (
        checkpoint_root_of(tmp_path / "moved", "s3://b/x/", "mine", "ab12") == "s3://b/x/mine-ab12"
    )
    queried = checkpoint_root_of(tmp_path, "s3://b/x?region=eu", "mine", "ab12")
    assert queried == "s3://b/x/mine-ab12?region=eu"
