"""`lipsum-tune report`: what MLflow lacks of a search is written from the journal."""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from tests.tuning import fakes
from tests.tuning.run_folders import search_file, write_run
from trainers.data.fingerprint import data_fingerprint
from tuning.cli import app
from tuning.runs.environment import ENVIRONMENT_FILE, environment
from tuning.runs.journal import Journal
from tuning.runs.run_folder import CONFIG_FILE, load_run
from tuning.views.mlflow.callback import MlflowCallback, backfill
from tuning.views.mlflow.client import default_tracking_uri, search_run


def callback_of(run):
    callback = MlflowCallback(default_tracking_uri(run.parent), "lipsum-tune")
    callback.search_started(load_run(run).search)
    return callback


def in_mlflow(run):
    """Status, outcome and the curve of one metric of each run in MLflow."""
    client = MlflowClient(default_tracking_uri(run.parent))
    experiment = client.get_experiment_by_name("lipsum-tune")
    found = client.search_runs([experiment.experiment_id], "tags.kind != 'zero_shot'")
    names = [run.data.tags.get("trial_id", run.info.run_name) for run in found]
    assert len(set(names)) == len(found)
    return {
        name: (
            run.info.status,
            run.data.tags["outcome"],
            tuple(
                (m.step, m.value)
                for m in client.get_metric_history(run.info.run_id, "ood_val/mean_acc")
            ),
        )
        for name, run in zip(names, found, strict=True)
    }


def expected(run):
    """The same, from the journal."""
    history = load_run(run).history
    status = {"finished": "FINISHED", "pruned": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    outcome = history.outcome or "stopped"
    return {run.name: (status[outcome], outcome, ())} | {
        record.trial_id: (
            status[record.outcome],
            record.outcome,
            tuple((int(p["step"]), p["ood_val/mean_acc"]) for p in record.curve),
        )
        for record in history.records
    }


def test_what_mlflow_lacks_is_written_once(images_root, runs):
    """One trial is complete in MLflow, one was cut short there, the others are missing."""
    records = fakes.finished_search()[:8]
    run = write_run(runs / "search", search_file(images_root), records)
    driver = callback_of(run)
    for record, length in ((records[0], 6), (records[1], 2)):
        driver.trial_started(replace(record, outcome="running", curve=()))
        driver.trial_reported(replace(record, outcome="running", curve=record.curve[:length]))
    driver.trial_ended(records[0])
    assert driver.wait()
    assert in_mlflow(run) != expected(run)

    for _ in range(2):
        shown = CliRunner().invoke(app, ["report", str(run)], env={"COLUMNS": "120"})
        assert shown.exit_code == 0, shown.output
        assert f"MLflow      {default_tracking_uri(runs)} has all of it" in shown.output
        assert in_mlflow(run) == expected(run)


def test_a_trial_that_went_on_while_mlflow_was_away_is_completed(images_root, runs):
    """It was stopped in a session that MLflow has, and three reports later in one it has not."""
    trial = fakes.trial(0, outcome="stopped")
    early = replace(trial, curve=trial.curve[:2])
    run = write_run(runs / "search", search_file(images_root), [early], outcome="stopped")
    driver = callback_of(run)
    driver.trial_started(replace(early, outcome="running"))
    driver.trial_ended(early)
    driver.search_ended([early], "stopped")

    journal = Journal(run)
    journal.session_started(load_run(run).file.fingerprints())
    journal.trial_started(trial)
    for length in range(3, 6):
        journal.trial_reported(replace(trial, outcome="running", curve=trial.curve[:length]))
    journal.trial_ended(trial)
    journal.session_ended("stopped")
    journal.close()
    backfill(load_run(run))
    assert in_mlflow(run) == expected(run)
    assert len(in_mlflow(run)["trial-000"][2]) == 5


def test_runs_of_a_driver_that_was_killed_are_closed(images_root, runs):
    running = fakes.trial(0, outcome="running", ended_at=None)
    run = write_run(runs / "search", search_file(images_root), [], outcome=None)
    journal = Journal(run)
    journal.trial_started(running)
    journal.close()
    driver = callback_of(run)
    driver.trial_started(replace(running, curve=()))
    assert driver.wait()
    assert {found[:2] for found in in_mlflow(run).values()} == {("RUNNING", "running")}
    backfill(load_run(run))
    assert in_mlflow(run) == expected(run)


def test_a_moved_run_folder_has_the_same_runs_in_mlflow(images_root, runs):
    records = fakes.finished_search()[:3]
    run = write_run(runs / "search", search_file(images_root), records)
    backfill(load_run(run))
    client = MlflowClient(default_tracking_uri(runs))
    experiment = client.get_experiment_by_name("lipsum-tune")
    before = {found.info.run_id for found in client.search_runs([experiment.experiment_id])}

    moved = run.rename(runs / "archived")
    backfill(load_run(moved))
    resumed = callback_of(moved)
    for record in load_run(moved).history.records:
        resumed.trial_ended(record)
    resumed.search_ended(records, "finished")
    found = client.search_runs([experiment.experiment_id])
    assert {run.info.run_id for run in found} == before
    (parent,) = [run for run in found if run.data.tags["kind"] == "search"]
    assert parent.info.run_name == "archived"
    assert parent.data.tags["run_folder"] == str(moved)
    assert in_mlflow(moved) == expected(moved)


def test_the_parent_names_data_source_and_configuration(images_root, runs):
    file = search_file(
        images_root, search__study_storage="postgresql://ann:${PASSWORD}@host/studies"
    )
    run = write_run(runs / "search", file, [fakes.trial(0)])
    recorded = environment(file.trial)
    (run / ENVIRONMENT_FILE).write_text(json.dumps(recorded))
    for _ in range(2):
        backfill(load_run(run))
    client = MlflowClient(default_tracking_uri(runs))
    experiment = client.get_experiment_by_name("lipsum-tune")
    parent = search_run(client, experiment.experiment_id, load_run(run).search.run_id)
    assert parent is not None
    assert parent.info.end_time >= parent.info.start_time
    inputs = {
        found.dataset.name: (found.dataset.digest, found.tags[0].value)
        for found in parent.inputs.dataset_inputs
    }
    contexts = {"real/train": "training", "real/val": "ID validation"}
    expected = {
        name: (digest, contexts.get(name, "OOD validation"))
        for name, digest in data_fingerprint(file.trial.data).items()
    }
    assert (inputs, len(parent.inputs.dataset_inputs)) == (expected, len(expected))
    assert parent.data.tags.get("mlflow.source.git.commit") == recorded["git_commit"]
    assert parent.data.tags["mlflow.source.name"] == f"lipsum-tune {version('lipsum-tune')}"
    logged = [
        Path(client.download_artifacts(parent.info.run_id, name)).read_text()
        for name in (ENVIRONMENT_FILE, CONFIG_FILE)
    ]
    assert json.loads(logged[0]) == recorded
    assert logged[1] == (run / CONFIG_FILE).read_text().replace("ann:${PASSWORD}@", "***@")


def test_what_mlflow_refuses_is_counted(images_root, runs):
    records = [fakes.trial(0), fakes.trial(1)]
    run = write_run(runs / "search", search_file(images_root), records)
    driver = callback_of(run)  # params of a run in MLflow cannot change
    driver.trial_started(replace(records[0], outcome="running", params={"optim.lr": 9.0}))
    assert driver.wait()
    assert "mlflow.db refused 1 part(s) of it" in backfill(load_run(run))


def test_a_run_folder_without_its_database_gets_none(images_root, tmp_path):
    run = write_run(tmp_path / "search", search_file(images_root), [fakes.trial(0)])
    assert backfill(load_run(run)).endswith("mlflow.db is not here")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_server_that_is_away_is_a_warning_beside_the_report(images_root, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "pa55word")
    uri = "http://ann:${SECRET}@127.0.0.1:9"
    file = search_file(images_root, search__tracking__uri=uri)
    run = write_run(tmp_path / "search", file, [fakes.trial(0)])
    shown = CliRunner().invoke(app, ["report", str(run)], env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    assert "warning: MLflow cannot be used at http://***@127.0.0.1:9" in shown.output
    assert "pa55word" not in shown.output
    assert (run / "trials.parquet").is_file()
