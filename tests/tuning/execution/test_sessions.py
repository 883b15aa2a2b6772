"""Searches that are interrupted, resumed, extended and moved, with instant trials on a real Ray."""

from __future__ import annotations

import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
from ray.air.execution._internal import RayActorManager
from ray.tune.execution import class_cache
from rich.console import Console

from tests.benchmarks.kills import disagreements
from tests.tuning.execution.instant import (
    BREAK,
    HOLD,
    instant_file,
    resume_instantly,
    run_instantly,
    write_instant,
)
from tests.tuning.run_folders import LR, trial, write_run
from trainers.errors import ConfigError
from tuning.config.validation import load_config
from tuning.execution.run_search import SearchResult
from tuning.mlflow_logging.client import TrackingError
from tuning.runs.callbacks import Callback
from tuning.runs.journal import read_history
from tuning.runs.records import TrialRecord
from tuning.runs.run_folder import CONFIG_FILE, load_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def outcomes(found: SearchResult) -> dict[str, str]:
    return {record.trial_id: record.outcome for record in found.records}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert process.poll() is None
        time.sleep(0.05)


def num_reports(folder: Path) -> int:
    try:
        return sum(len(record.curve) for record in read_history(folder, live=True).records)
    except Exception:  # not there yet
        return 0


def start(path: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.tuning.execution.instant", str(path)]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)


class Ended(Callback):
    def __init__(self) -> None:
        self.trials: list[str] = []

    def trial_ended(self, record: TrialRecord) -> None:
        self.trials.append(record.trial_id)


def test_a_search_leaves_records_and_no_change_of_the_process(
    images_root: Path, tmp_path: Path
) -> None:
    def state() -> list[Any]:
        names = ("", "ray", "ray.tune", "ray.train", "optuna", "mlflow", "lipsum")
        tune = [RayActorManager._actor_task_failed, class_cache.ENV_VARS_TO_PROPAGATE]
        levels = [logging.getLogger(name).level for name in names]
        return [dict(os.environ), levels, tune, signal.getsignal(signal.SIGTERM)]

    before, callback = state(), Ended()
    storage = optuna.storages.InMemoryStorage()
    sampler = optuna.samplers.RandomSampler(seed=3)
    found = run_instantly(
        instant_file(images_root, tmp_path), callbacks=[callback], sampler=sampler, storage=storage
    )
    assert state() == before
    assert outcomes(found) == dict.fromkeys(callback.trials, "finished")
    assert len(callback.trials) == 3
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    assert [trial.value for trial in study.trials] == [trial.value for trial in found.study.trials]

    run = load_run(found.run_folder)
    assert list(run.trials["outcome"]) == ["finished"] * 3
    assert list(run.trials[LR]) == [record.params[LR] for record in found.records]
    assert list(run.curves["step"]) == [2, 4, 6] * 3
    best = max(found.records, key=lambda record: record.metrics["val/mean_acc"])
    assert run.best is not None
    assert (run.best.trial_id, run.best.params) == (best.trial_id, best.params)
    assert run.best.metrics == best.metrics


@pytest.mark.parametrize(
    ("number", "times"),
    [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1), (signal.SIGKILL, 1)],
)
def test_an_interrupted_search_continues_where_it_was(
    number: signal.Signals, times: int, images_root: Path, tmp_path: Path
) -> None:
    file = instant_file(images_root, tmp_path)
    folder, hold = tmp_path / "small", tmp_path / HOLD
    hold.touch()
    log = tmp_path / "log.txt"
    driver = start(write_instant(tmp_path / "config", file), log)
    wait_for(lambda: num_reports(folder) == 1, driver)
    driver.send_signal(number)
    if number == signal.SIGINT:
        wait_for(lambda: "press it again not to wait" in log.read_text(), driver)
    if times == 2:
        driver.send_signal(number)
    assert driver.wait() == (-9 if number == signal.SIGKILL else 130)
    assert load_run(folder).history.outcome == (None if number == signal.SIGKILL else "stopped")
    hold.unlink()
    assert resume_instantly(folder).outcome == "finished"
    assert disagreements(folder) == []


def test_failures_in_a_row_stop_a_search_that_then_goes_on(
    images_root: Path, tmp_path: Path
) -> None:
    limits = {"search__budget__trials": 4, "search__budget__failures": 2}
    (tmp_path / BREAK).touch()
    found = run_instantly(instant_file(images_root, tmp_path, **limits))
    assert (found.outcome, outcomes(found)) == (
        "stopped",
        {"trial-000": "failed", "trial-001": "failed"},
    )
    assert str(found.ended_by).startswith("search.budget.failures = 2")
    (tmp_path / BREAK).unlink()
    more = resume_instantly(found.run_folder)
    assert list(outcomes(more).values()) == ["failed", "failed", "finished", "finished"]
    assert disagreements(found.run_folder) == []


def test_a_signal_between_two_trials_stops_the_search(images_root: Path, tmp_path: Path) -> None:
    class Interrupt(Callback):
        def trial_ended(self, record: TrialRecord) -> None:
            if record.trial_id == "trial-000":
                os.kill(os.getpid(), signal.SIGINT)

    found = run_instantly(instant_file(images_root, tmp_path), callbacks=[Interrupt()])
    assert found.outcome == "stopped"
    assert len(found.records) < 3
    assert outcomes(resume_instantly(found.run_folder)) == {
        f"trial-{number:03d}": "finished" for number in range(3)
    }
    assert disagreements(found.run_folder) == []


def test_a_moved_run_folder_is_the_same_run(images_root: Path, tmp_path: Path) -> None:
    """Its methods take turns, and one that is added later catches up."""
    methods = {"search__space": {"methods": ["ft", "lipsum_ft"]}, "search__budget__trials": 2}
    found = run_instantly(instant_file(images_root, tmp_path / "runs", **methods))
    run_id, moved = found.run.history.run_id, tmp_path / "runs" / "moved"
    found.run_folder.rename(moved)
    added = ["search.space.methods=[ft, lipsum_ft, kd]", "search.budget.trials=4"]
    extended = resume_instantly(moved, *added, extend=True)
    expected = ["ft", "lipsum_ft", "kd", "ft"]
    assert [record.params["method.name"] for record in extended.records] == expected
    rows = pq.read_table(moved / "trials.parquet").to_pylist()
    assert [row["method.name"] for row in rows[1:]] == expected
    assert load_run(moved).history.run_id == run_id
    assert disagreements(moved) == []  # among others, MLflow has one parent run


def test_ood_data_of_a_warm_start_are_disclosed(images_root: Path, tmp_path: Path) -> None:
    blind = {"search__objective": {"metric": "id_val/acc"}}
    earlier = run_instantly(instant_file(images_root, tmp_path / "earlier"))
    warm = blind | {"search__warm_start": {"runs": str(earlier.run_folder)}}
    found = run_instantly(instant_file(images_root, tmp_path / "warm", **warm))
    shutil.rmtree(earlier.run_folder)
    disclosed = load_run(found.run_folder).search
    assert disclosed.sees_ood
    assert disclosed.selection == (
        "Chosen by the highest id_val/acc at the last step. A warm start or an earlier session "
        "used OOD validation data."
    )
    further = {"search__warm_start": {"runs": str(found.run_folder)}}
    assert run_instantly(
        instant_file(images_root, tmp_path / "2", **blind, **further)
    ).search.sees_ood
    alone = run_instantly(instant_file(images_root, tmp_path / "alone", **blind))
    assert not alone.search.sees_ood


def test_ood_data_of_an_earlier_session_are_disclosed(images_root: Path, tmp_path: Path) -> None:
    steered = {
        "search__objective": {"metric": "id_val/acc"},
        "search__sampler": {"metric": "val/mean_acc"},
    }
    found = run_instantly(instant_file(images_root, tmp_path, **steered))
    assert "proposed by val/mean_acc" in found.search.selection
    blind = ["search.sampler.metric=objective", "search.budget.trials=4"]
    extended = resume_instantly(found.run_folder, *blind, extend=True)
    assert extended.search.sees_ood
    assert "earlier session used OOD validation data" in load_run(found.run_folder).search.selection


def test_a_warm_start_on_a_domain_that_is_ood_now_is_disclosed(
    images_root: Path, tmp_path: Path
) -> None:
    blind = {"search__objective": {"metric": "id_val/acc"}}
    suite = {"id_domain": "sketch", "ood_domains": ["clipart"]}
    earlier = write_run(
        tmp_path / "earlier",
        instant_file(images_root, tmp_path / "runs", trial__data__suite=suite, **blind),
        [trial(0, 60.0, 50.0)],
    )
    assert not load_run(earlier).search.sees_ood
    warm = {"search__warm_start": {"runs": str(earlier)}}
    found = run_instantly(instant_file(images_root, tmp_path / "warm", **blind, **warm))
    assert found.search.sees_ood


def test_a_budget_ends_the_search_and_more_of_it_resumes(images_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(images_root, tmp_path / "images"))
    found = run_instantly(instant_file(root, tmp_path / "runs", search__budget__hours=1e-9))
    assert found.outcome == "finished"
    assert "search.budget.hours" in str(found.ended_by)
    assert "finished" not in outcomes(found).values()
    moved = root.rename(tmp_path / "moved")
    more = resume_instantly(found.run_folder, "search.budget.hours=1", f"trial.data.root={moved}")
    assert outcomes(more) == {f"trial-{n:03d}": "finished" for n in range(3)}
    assert load_config(found.run_folder / "search.yaml").trial.data.root == str(moved)
    assert disagreements(found.run_folder) == []


def test_a_refused_change_leaves_a_run_that_resumes(images_root: Path, tmp_path: Path) -> None:
    run = run_instantly(instant_file(images_root, tmp_path)).run_folder
    before = (run / CONFIG_FILE).read_text()
    changes = ["search.budget.trials=9", f"search.space.parameters.{LR}.low=1e-5"]
    resources, server = "search.resources.gpus_per_worker=64", "http://127.0.0.1:9"
    with pytest.raises(ConfigError, match=r"search\.resources"):
        resume_instantly(run, *changes, resources, extend=True)
    with pytest.raises(TrackingError):
        resume_instantly(run, *changes, f"search.tracking.uri={server}", extend=True)
    assert (run / CONFIG_FILE).read_text() == before
    assert len(resume_instantly(run, "search.budget.trials=4").records) == 4
    extended = resume_instantly(run, changes[1], "search.budget.trials=5", extend=True)
    assert len(extended.records) == 5


def test_a_rung_stops_trials_once_it_is_checked(images_root: Path, tmp_path: Path) -> None:
    scheduler = {"name": "asha", "grace_steps": 2, "reduction_factor": 2, "check_trials": 3}
    settings = {"search__scheduler": scheduler, "search__budget__trials": 8}
    console = Console(file=io.StringIO(), width=200)
    found = run_instantly(instant_file(images_root, tmp_path, **settings), console=console)
    outcomes = [record.outcome for record in found.records]
    assert outcomes[:3] == ["finished"] * 3
    assert "pruned" in outcomes[3:]
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    checked = [line for line in lines if line.startswith("Rank correlation")]
    assert len(checked) == 2  # steps 2 and 4
    assert all("1.00 [-1.00, 1.00] in 3 trials; may stop: above" in line for line in checked)
