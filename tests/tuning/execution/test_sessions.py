"""Searches that are interrupted, resumed, extended and moved, with instant trials on a real Ray."""

import io
import logging
import os
import shutil
import signal
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient
from optuna.pruners import SuccessiveHalvingPruner
from ray.air.execution._internal import RayActorManager
from ray.tune.execution import class_cache
from rich.console import Console

from tests.tuning.agreement import disagreements
from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import (
    instant_file,
    resume_instantly,
    run_instantly,
    start,
    write_instant,
)
from tests.tuning.execution.real_searches import outcomes
from tests.tuning.execution.slot import BREAK, HOLD
from tests.tuning.run_folders import LR, WEIGHT, trial, write_run
from tests.waiting import wait_until
from tuning.algorithms.studies import TRIAL_ID
from tuning.algorithms.warm_start import load_earlier, warm_start_uses_ood
from tuning.config.validation import load_config
from tuning.log.callbacks import Callback
from tuning.log.history import read_history
from tuning.log.paths import CONFIG_FILE, JOURNAL_FILE
from tuning.results.budget import Budget
from tuning.results.rules import saw_ood
from tuning.run import load_run
from tuning.views.mlflow.client import TrackingError, tracking_uri


@pytest.fixture
def inline():
    with without_ray():
        yield


class Ended(Callback):
    def __init__(self):
        self.trials = []

    def trial_ended(self, record):
        self.trials.append(record.trial_id)


@pytest.mark.usefixtures("inline")
def test_two_objectives_are_the_same_in_journal_dashboard_mlflow_and_tables(images_root, tmp_path):
    objectives = [{"metric": "id_val/acc"}, {"metric": "ood_val/mean_acc"}]
    changes = {"search__objective": objectives, "search__budget__trials": 8}
    found = run_instantly(instant_file(images_root, tmp_path, **changes))
    assert set(outcomes(found).values()) == {"finished"}
    assert disagreements(found.run.folder) == []


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_search_leaves_records_and_no_change_of_the_process(images_root, tmp_path):
    def state():
        names = ("", "ray", "ray.tune", "ray.train", "optuna", "mlflow", "lipsum")
        tune = [RayActorManager._actor_task_failed, class_cache.ENV_VARS_TO_PROPAGATE]
        levels = [logging.getLogger(name).level for name in names]
        signals = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        return [dict(os.environ), levels, tune, signals, list(logging.root.handlers)]

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
    assert [trial.value for trial in study.trials] == [
        trial.value for trial in found.run.study.trials
    ]

    run = load_run(found.run.folder)
    assert list(run.trials["outcome"]) == ["finished"] * 3
    assert list(run.trials[LR]) == [record.params[LR] for record in found.run.history.records]
    assert list(run.curves["step"]) == [2, 4, 6] * 3
    best = max(found.run.history.records, key=lambda record: record.metrics["val/mean_acc"])
    assert (run.best.trial_id, run.best.params) == (best.trial_id, best.params)
    assert run.best.metrics == best.metrics


@pytest.mark.usefixtures("inline")
def test_a_callback_that_fails_at_the_start_ends_the_search(images_root, tmp_path):
    class Failing(Callback):
        def search_started(self, search):
            raise RuntimeError("no dashboard")

    with pytest.raises(RuntimeError, match="no dashboard"):
        run_instantly(instant_file(images_root, tmp_path), callbacks=[Failing()])
    run = load_run(tmp_path / "small")
    assert run.history.outcome == "failed"
    client = MlflowClient(tracking_uri(run.file.search.tracking.uri, run.folder.parent))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    statuses = {one.info.status for one in runs}
    assert "FAILED" in statuses
    assert "RUNNING" not in statuses


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_an_interrupted_search_continues_where_it_was(images_root, tmp_path):
    """Each of several drivers reports once and is interrupted in another way."""
    folder, hold, log = tmp_path / "small", tmp_path / HOLD, tmp_path / "log.txt"
    hold.touch()

    def interrupt(path, number, reports):
        def has_reported():
            journal = folder / JOURNAL_FILE
            return journal.exists() and journal.read_text().count('"event": "report"') == reports

        driver = start(path, log)
        wait_until(has_reported, process=driver)
        driver.send_signal(number)
        killed = number == signal.SIGKILL
        assert driver.wait() == (-9 if killed else 130)
        assert load_run(folder).history.outcome == (None if killed else "stopped")

    path = write_instant(tmp_path / "config", instant_file(images_root, tmp_path))
    interrupt(path, signal.SIGINT, reports=1)
    interrupt(folder, signal.SIGTERM, reports=2)
    interrupt(folder, signal.SIGKILL, reports=3)
    hold.unlink()
    assert resume_instantly(folder).outcome == "finished"
    assert disagreements(folder) == []


@pytest.mark.usefixtures("inline")
def test_the_best_trial_of_a_constrained_search_is_the_best_of_those_that_meet_it(
    images_root, tmp_path
):
    """The objective is highest at the lowest learning rate, which the constraint forbids."""
    changes = {
        "search__budget__trials": 8,
        "search__constraints": "id_val/ece >= 3",
        "search__space__initial_points": [{LR: lr, WEIGHT: 1.0} for lr in (1e-4, 9e-3, 4e-3)],
    }
    found = run_instantly(instant_file(images_root, tmp_path, **changes))
    meet = [record for record in found.run.history.records if record.params[LR] >= 3e-3]
    assert 2 <= len(meet) < 8
    best = max(meet, key=lambda record: record.metrics["val/mean_acc"])
    run = load_run(found.run.folder)
    assert found.run.best.trial_id == run.best.trial_id == best.trial_id
    assert found.run.study.best_trial.user_attrs[TRIAL_ID] == best.trial_id
    assert disagreements(found.run.folder) == []


@pytest.mark.usefixtures("inline")
def test_failures_in_a_row_stop_a_search_that_then_goes_on(images_root, tmp_path):
    limits = {"search__budget__trials": 4, "search__budget__failures": 2}
    (tmp_path / BREAK).write_text("AcceleratorError: unspecified launch failure")
    found = run_instantly(instant_file(images_root, tmp_path, **limits))
    assert (found.outcome, outcomes(found)) == (
        "stopped",
        {"trial-000": "failed", "trial-001": "failed"},
    )
    assert found.ended_by == "2 trials failed in a row (search.budget.failures)"
    (tmp_path / BREAK).unlink()
    more = resume_instantly(found.run.folder)
    assert list(outcomes(more).values()) == ["failed", "failed", "finished", "finished"]
    assert disagreements(found.run.folder) == []


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_signal_between_two_trials_stops_the_search(images_root, tmp_path):
    class Interrupt(Callback):
        def trial_ended(self, record):
            if record.trial_id == "trial-000":
                os.kill(os.getpid(), signal.SIGINT)  # as a terminal does: for the main thread

    found = run_instantly(instant_file(images_root, tmp_path), callbacks=[Interrupt()])
    assert found.outcome == "stopped"
    assert list(outcomes(found).values()) != ["finished"] * 3
    assert outcomes(resume_instantly(found.run.folder)) == {
        f"trial-{number:03d}": "finished" for number in range(3)
    }
    assert disagreements(found.run.folder) == []


@pytest.mark.usefixtures("inline")
def test_a_moved_run_folder_is_the_same_run(images_root, tmp_path):
    methods = {"methods": ["ft", "lipsum_ft", "kd"]}
    first = run_instantly(instant_file(images_root, tmp_path / "runs", search__space=methods))
    moved = first.run.folder.rename(tmp_path / "runs" / "moved")
    extended = resume_instantly(moved, "search.budget.trials=4")
    expected = ["ft", "lipsum_ft", "kd", "ft"]
    assert [record.params["method.name"] for record in extended.run.records] == expected
    rows = pq.read_table(moved / "trials.parquet").to_pylist()
    assert [row["method.name"] for row in rows[1:]] == expected
    assert load_run(moved).history.run_id == first.run.history.run_id
    assert disagreements(moved) == []  # among others, MLflow has one parent run


@pytest.mark.usefixtures("inline")
def test_ood_data_of_a_warm_start_are_disclosed(images_root, tmp_path):
    blind = {"search__objective": {"metric": "id_val/acc"}}

    def warm(run):
        settings = blind | {"search__warm_start": {"runs": str(run)}}
        return instant_file(images_root, tmp_path / "warm", **settings)

    def uses_ood(file):
        return warm_start_uses_ood(file, load_earlier(file))

    sighted = instant_file(images_root, tmp_path / "runs")
    earlier = write_run(tmp_path / "earlier", sighted, [trial(0, 60.0, 50.0)])
    found = run_instantly(warm(earlier))
    shutil.rmtree(earlier)
    assert saw_ood(load_run(found.run.folder).goal)
    assert uses_ood(warm(found.run.folder))
    alone = write_run(tmp_path / "alone", instant_file(images_root, tmp_path / "runs", **blind))
    assert not saw_ood(load_run(alone).goal)
    assert not uses_ood(warm(alone))

    suite = {"id_domain": "sketch", "ood_domains": ["clipart"]}
    sketches = Path(shutil.copytree(images_root, tmp_path / "images"))
    shutil.copytree(sketches / "real" / "train", sketches / "sketch" / "train")
    other = instant_file(sketches, tmp_path / "runs", trial__data__suite=suite, **blind)
    now_ood = write_run(tmp_path / "now_ood", other)
    assert not saw_ood(load_run(now_ood).goal)
    assert uses_ood(warm(now_ood))


@pytest.mark.usefixtures("inline")
def test_a_budget_ends_the_search_and_more_of_it_resumes(images_root, tmp_path):
    root = Path(shutil.copytree(images_root, tmp_path / "images"))
    found = run_instantly(instant_file(root, tmp_path / "runs", search__budget__hours=1e-9))
    assert found.outcome == "finished"
    assert "search.budget.hours" in str(found.ended_by)
    assert "finished" not in outcomes(found).values()
    moved = root.rename(tmp_path / "moved")
    more = resume_instantly(found.run.folder, "search.budget.hours=1", f"trial.data.root={moved}")
    assert outcomes(more) == {f"trial-{n:03d}": "finished" for n in range(3)}
    assert load_config(found.run.folder / "search.yaml").trial.data.root == str(moved)
    assert disagreements(found.run.folder) == []


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_refused_resume_leaves_a_search_as_it_was(is_killed, images_root, tmp_path):
    run = run_instantly(instant_file(images_root, tmp_path)).run.folder
    if is_killed:  # in its last trial
        lines = (run / JOURNAL_FILE).read_text().splitlines(keepends=True)
        (run / JOURNAL_FILE).write_text("".join(lines[:-2]))
    before = {name: (run / name).read_bytes() for name in (JOURNAL_FILE, CONFIG_FILE)}

    class Failing(Callback):
        def search_started(self, search):
            raise RuntimeError("no dashboard")

    with pytest.raises(TrackingError):
        resume_instantly(run, "search.tracking.uri=sqlite:////proc/x.db")
    with pytest.raises(RuntimeError, match="no dashboard"):
        resume_instantly(run, "search.budget.trials=4", callbacks=[Failing()])
    assert {name: (run / name).read_bytes() for name in before} == before
    assert resume_instantly(run).outcome == "finished"


@pytest.mark.usefixtures("inline")
def test_a_pruner_of_the_user_stops_trials_once_six_have_finished(images_root, tmp_path):
    settings = {"search__budget__trials": 14, "search__sampler__name": "random"}
    pruner = SuccessiveHalvingPruner(min_resource=2, reduction_factor=2)
    console = Console(file=io.StringIO(), width=200)
    file = instant_file(images_root, tmp_path, **settings)
    found = run_instantly(file, console=console, pruner=pruner)
    outcomes = [record.outcome for record in found.run.history.records]
    assert outcomes[:6] == ["finished"] * 6
    assert "pruned" in outcomes[6:]
    reasons = {record.reason for record in found.run.history.records}
    assert reasons == {"", "pruned by SuccessiveHalvingPruner"}
    assert ", once 6 trials have finished\n" in console.file.getvalue()


@pytest.mark.usefixtures("inline")
def test_an_error_of_the_budget_ends_the_search(images_root, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("in the budget")

    monkeypatch.setattr(Budget, "trial_ended", broken)
    file = instant_file(images_root, tmp_path / "runs", search__budget__trials=6)
    with pytest.raises(ZeroDivisionError, match="in the budget"):
        run_instantly(file)
    history = read_history(tmp_path / "runs" / file.search.name)
    assert history.outcome == "failed"
    assert len(history.records) == 1
