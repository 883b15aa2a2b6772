"""A search as MLflow shows it while it runs, when it ends, and after a resume."""

import logging
import math
import os
import threading
from dataclasses import replace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.tracking import MlflowClient

from tests.tuning import fakes
from tuning.views.callback import write_results
from tuning.views.mlflow import callback as mlflow_callback
from tuning.views.mlflow import client as mlf
from tuning.views.mlflow.callback import MlflowCallback
from tuning.views.mlflow.client import default_tracking_uri

EXPERIMENT = "lipsum-tune"


@pytest.fixture
def search(runs):
    return fakes.search_record(runs / "mine", name="mine")


def started(search, **options):
    """A callback at the start of a session of the search."""
    made = MlflowCallback(default_tracking_uri(search.run_folder.parent), EXPERIMENT, **options)
    made.search_started(search)
    return made


@pytest.fixture
def callback(search):
    made = started(search, interval_seconds=0.05)
    yield made
    made._closed = True  # for a search that the test does not end
    assert made._thread is not None
    made._thread.join(60)


@pytest.fixture
def client(runs):
    return MlflowClient(default_tracking_uri(runs))


def play(callback, record):
    """The events of a trial, from its start to where it stands."""
    callback.trial_started(replace(record, outcome="running", curve=(), ended_at=None, error=None))
    for number in range(1, len(record.curve) + 1):
        callback.trial_reported(
            replace(record, outcome="running", curve=record.curve[:number], ended_at=None)
        )
    if record.outcome != "running":
        callback.trial_ended(record)


def children(client, callback):
    assert callback.wait()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    below = f"tags.`mlflow.parentRunId` = '{callback.parent_run_id}' and tags.kind != 'zero_shot'"
    runs = client.search_runs([experiment.experiment_id], below)
    by_trial = {run.data.tags["trial_id"]: run for run in runs}
    assert len(by_trial) == len(runs), "a trial has two runs"
    return by_trial


def curve(client, run, metric):
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric)]


def fails(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def test_a_trial_is_a_child_run_with_params_curve_and_status(callback, client, search):
    trial = fakes.trial(3)
    play(callback, trial)
    (child,) = children(client, callback).values()
    assert child.info.run_name == "trial-003 reg_weight=1 text_length=8 lr=1e-05"
    assert child.info.status == "FINISHED"
    assert child.info.start_time == 1000 * trial.started_at
    assert child.info.end_time == 1000 * trial.ended_at
    assert child.data.params == {
        "method.reg_weight": "1.0",
        "method.text_length": "8",
        "optim.lr": "1e-05",
    }
    expected = {"search": search.name, "kind": "trial", "outcome": "finished"}
    expected["checkpoints"] = str(search.run_folder / "train" / "train-trial-003")
    assert expected.items() <= child.data.tags.items()
    assert curve(client, child, "ood_val/sketch/acc") == [
        (p["step"], p["ood_val/sketch/acc"]) for p in trial.curve
    ]
    assert "step" not in child.data.metrics


def test_the_parent_has_the_configuration_and_the_zero_shot_model(callback, client, search):
    parent = client.get_run(callback.parent_run_id)
    assert parent.info.run_name == search.name
    assert parent.info.status == "RUNNING"
    assert parent.data.params["trial.model.name"] == "ViT-B-32-quickgelu"
    assert parent.data.params["search.space"] == '["method.reg_weight", "optim.lr"]'
    assert "| zero-shot | 82.4 | 61.0 |" in parent.data.tags["mlflow.note.content"]


def test_the_zero_shot_model_and_plain_fine_tuning_stand_beside_the_trials(
    callback, client, search
):
    play(callback, fakes.reference())
    reference = children(client, callback)["ft"]
    assert reference.info.run_name == "FT, not tuned (lr = 1e-05)"
    assert reference.data.params == {"optim.lr": "1e-05"}
    started(search)  # after a resume
    condition = f"tags.search_id = '{search.run_id}' and tags.kind = 'zero_shot'"
    (zero_shot,) = client.search_runs([reference.info.experiment_id], condition)
    assert (zero_shot.info.run_name, zero_shot.info.status) == ("zero-shot", "FINISHED")
    assert zero_shot.data.metrics["id_val/acc"] == 82.4


@pytest.mark.parametrize("all_metrics", [False, True])
def test_what_is_not_looked_at_first_is_logged_on_request(client, search, all_metrics):
    report = fakes.report(40, 80.0, 60.0) | {"id_val/ece": 3.0, "cost/cpu_seconds": 9.0}
    callback = started(search, all_metrics=all_metrics)
    play(callback, fakes.trial(1, curve=(report,)))
    (child,) = children(client, callback).values()
    logged = report.keys() - {"step"}
    few = logged - {"id_val/ece", "cost/cpu_seconds"}
    assert child.data.metrics.keys() == (logged if all_metrics else few)
    callback.search_ended([], "stopped")


def test_a_pruned_trial_has_its_last_step_and_what_that_evaluated(callback, client):
    evaluated = {"eval/averaged": 1.0, "eval/images": 1000.0}
    point = fakes.report(40, 80.0, 60.0) | evaluated
    play(callback, fakes.trial(1, outcome="pruned", curve=(point,)))
    (child,) = children(client, callback).values()
    assert child.info.run_name.startswith("trial-001 (pruned 40) reg_weight=1 ")
    assert child.info.status == "FINISHED"
    assert {"eval/averaged": "1", "eval/images": "1000"}.items() <= child.data.tags.items()
    assert not evaluated.keys() & child.data.metrics.keys()


def test_every_child_has_its_method_as_a_tag(client, search):
    config = {"trial": {"method": {"name": "lipsum_ft"}}}
    records = fakes.compared_methods(1)
    callback = started(replace(search, config=config))
    for record in (*records, fakes.trial(9)):
        play(callback, record)
    methods = {name: run.data.tags["method"] for name, run in children(client, callback).items()}
    assert methods == {
        "ft": "ft",
        "trial-000": "ft",
        "trial-001": "kd",
        "trial-002": "lipsum_ft",
        "trial-003": "carot",
        "trial-009": "lipsum_ft",  # proposes none, so it has the configuration's
    }
    callback.search_ended(records, "finished")
    parent = client.get_run(callback.parent_run_id)
    assert "| carot | 1/0/0 | trial-003 |" in parent.data.tags["mlflow.note.content"]
    assert parent.data.tags["best/method.name"] == "carot"


def test_an_error_is_a_tag_that_is_cut_and_holds_no_password(callback, client):
    error = "OSError: no route to https://ann:pa55@host/x?token=abc\n" + "x" * 20_000
    play(callback, fakes.trial(1, outcome="failed", error=error))
    (child,) = children(client, callback).values()
    tag = child.data.tags["error"]
    assert tag.startswith("OSError: no route to https://***@host/x?token=***")
    assert len(tag) == mlf.MAX_TAG_CHARS


def test_only_new_reports_are_sent_in_one_request(callback, monkeypatch):
    trial = fakes.trial(1, outcome="running")
    play(callback, replace(trial, curve=trial.curve[:-2]))
    assert callback.wait()
    sent = []

    def log_batch(self, run_id, metrics, *_):
        sent.append({metric.step for metric in metrics})

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    so_far = {"step": [170.0, 180.0], "train/loss": [0.5, 0.4]}
    callback.trial_progressed(replace(trial, curve=trial.curve[:-2], progress=so_far))
    assert callback.wait()
    part = {"step": [170.0, 180.0, 200.0], "train/loss": [0.5, 0.4, 0.3]}
    callback.trial_reported(replace(trial, train_curves=(part,)))
    assert callback.wait()
    assert sent == [{170, 180}, {int(point["step"]) for point in trial.curve[-2:]}]


def test_values_that_are_not_finite_become_a_tag(callback, client):
    bad = fakes.report(40, 80.0, math.nan) | {"train/loss": math.inf}
    play(callback, fakes.trial(1, curve=(bad,)))
    (child,) = children(client, callback).values()
    assert child.data.metrics["id_val/acc"] == 80.0
    assert "train/loss" not in child.data.metrics
    assert "train/loss=inf" in child.data.tags["nonfinite"]


def test_the_end_adds_the_best_trial_a_figure_and_tables(callback, client, search):
    records = [fakes.reference(), fakes.trial(1, 84.0, 60.0), fakes.trial(2, 87.0, 63.0)]
    for record in records:
        play(callback, record)
    write_results(search.run_folder, search, records)
    callback.search_ended(records, "finished")
    assert callback.num_pending == 0
    parent = client.get_run(callback.parent_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["best/trial"] == "trial-002"
    assert parent.data.tags["best/method.reg_weight"] == "1.0"
    assert parent.data.metrics["best/id_val/acc"] == pytest.approx(87.0)
    assert "looks at OOD validation data" in parent.data.tags["mlflow.note.content"]
    artifacts = {file.path for file in client.list_artifacts(callback.parent_run_id)}
    tables = {"curves.parquet", "selection.parquet", "trials.parquet"}
    assert artifacts == {"description.png", "id_vs_ood.png", "index.html", *tables}
    assert children(client, callback)["ft"].data.tags["kind"] == "reference"


def test_accuracies_come_first_in_a_trial_and_in_the_best(client, search, monkeypatch):
    sent = []

    def log_batch(self, run_id, metrics, *_):
        sent.append([metric.key for metric in metrics[:2]])

    callback = started(search)
    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    trial = fakes.trial(1, curve=(dict(sorted(fakes.report(240, 85.0, 62.0).items())),))
    play(callback, trial)
    callback.search_ended([trial], "finished")
    assert ["id_val/acc", "ood_val/mean_acc"] in sent
    assert ["best/id_val/acc", "best/ood_val/mean_acc"] in sent


@pytest.mark.parametrize(("outcome", "status"), [("stopped", "KILLED"), ("failed", "FAILED")])
def test_a_search_that_is_cut_short_leaves_no_run_running(callback, client, outcome, status):
    trial = fakes.trial(1, outcome="running")
    play(callback, trial)
    callback.search_ended([trial], outcome)
    assert client.get_run(callback.parent_run_id).info.status == status
    (child,) = children(client, callback).values()
    assert (child.info.status, child.data.tags["outcome"]) == ("KILLED", "stopped")


def test_a_repeated_step_with_another_value_is_logged_again_and_wins(callback, client, search):
    first = replace(fakes.trial(1, outcome="running"), curve=fakes.trial(1).curve[:2])
    play(callback, first)
    assert callback.wait()

    again = first.curve[1] | {"id_val/acc": 70.0}
    resumed = started(search)
    ended = replace(first, outcome="pruned", curve=(first.curve[0], again))
    for _ in range(2):
        resumed.trial_ended(ended)
        (child,) = children(client, resumed).values()
        assert child.data.metrics["id_val/acc"] == 70.0
        assert curve(client, child, "id_val/acc") == [
            (40, first.curve[0]["id_val/acc"]),
            (80, first.curve[1]["id_val/acc"]),
            (80, 70.0),
        ]
        assert len(curve(client, child, "ood_val/mean_acc")) == 3


def test_another_run_id_is_another_search_whatever_its_name(callback, search):
    other = started(replace(search, run_id="another"))
    assert other.parent_run_id != callback.parent_run_id


def test_nothing_is_lost_while_the_server_is_away(callback, client, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", fails(ConnectionError("connection refused")))
        play(callback, fakes.trial(1))
        play(callback, fakes.trial(2))
        while not caplog.records:  # the thread that writes may be slow to begin
            assert not callback.wait(0.2)
        assert callback.num_pending == 2
    for child in children(client, callback).values():
        assert child.info.status == "FINISHED"
        assert len(curve(client, child, "id_val/acc")) == 6
    warnings = [record.message.split("mlflow.db ")[1].split(";")[0] for record in caplog.records]
    assert warnings == ["does not answer", "answers again"]


def test_events_do_not_wait_for_a_server_that_hangs(callback, monkeypatch):
    asked, answers = threading.Event(), threading.Event()

    def hang(*args, **kwargs):
        asked.set()
        answers.wait(60)
        raise ConnectionError("too late")

    monkeypatch.setattr(MlflowClient, "create_run", hang)
    play(callback, fakes.trial(0))
    assert asked.wait(30)
    for number in range(1, 5):
        play(callback, fakes.trial(number))
    assert callback.num_pending == 5
    answers.set()


def test_a_request_whose_answer_was_lost_is_not_carried_out_twice(callback, client, monkeypatch):
    create, log, lost = MlflowClient.create_run, MlflowClient.log_batch, {"run", "metrics"}

    def create_run(*args, **kwargs):
        run = create(*args, **kwargs)
        if "run" in lost:
            lost.remove("run")
            raise ConnectionError("reset by peer")
        return run

    def log_batch(self, run_id, metrics, *others):
        log(self, run_id, metrics, *others)
        if metrics and "metrics" in lost:
            lost.remove("metrics")
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    play(callback, fakes.trial(1))
    (child,) = children(client, callback).values()
    assert len(curve(client, child, "id_val/acc")) == 6
    assert lost == set()


def test_a_run_that_a_hung_server_created_twice_is_deleted_at_the_end(callback, client):
    play(callback, fakes.trial(1))
    (child,) = children(client, callback).values()
    tags = child.data.tags | {"outcome": "running"}
    late = client.create_run(child.info.experiment_id, tags=tags, run_name=child.info.run_name)
    callback.search_ended([fakes.trial(1)], "finished")
    assert list(children(client, callback)) == ["trial-001"]
    assert client.get_run(late.info.run_id).info.lifecycle_stage == "deleted"
    assert client.get_run(child.info.run_id).info.status == "FINISHED"


def test_the_end_without_a_server_names_the_command_that_adds_what_is_missing(
    callback, search, monkeypatch, caplog
):
    monkeypatch.setattr(MlflowClient, "log_batch", fails(ConnectionError("connection refused")))
    monkeypatch.setattr(mlflow_callback, "_PATIENCE_STOPPED_S", 0.2)
    stopped = fakes.trial(1, outcome="stopped")
    play(callback, stopped)
    callback.search_ended([stopped], "stopped")
    message = caplog.records[-1].message
    assert callback.num_pending == 3  # the trial, the parent, tables and figures
    assert "is still away; 3 parts" in message
    assert f"`lipsum-tune report {search.run_folder}`" in message


def test_a_refused_write_is_dropped_and_named_once_without_secrets(
    runs, client, search, monkeypatch, caplog
):
    monkeypatch.setenv("RUNS", str(runs))
    uri = default_tracking_uri(runs).replace(str(runs), "${RUNS}")
    callback = MlflowCallback(uri, EXPERIMENT, interval_seconds=0.05)
    callback.search_started(search)
    play(callback, fakes.trial(1))
    assert callback.wait()
    refusal = MlflowException(f"no run; {runs}, http://a:b@c/?token=d", INVALID_PARAMETER_VALUE)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", fails(refusal))
        play(callback, fakes.trial(2))
        play(callback, fakes.trial(3))
        assert callback.wait()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.endswith("refused a write: no run; ***, http://***@c/?token=***")
    callback.search_ended([fakes.trial(number) for number in (1, 2, 3)], "finished")
    assert len(children(client, callback)) == 3


def test_limits_of_requests_are_in_the_environment_during_the_search_only(search, monkeypatch):
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    monkeypatch.delenv(name, raising=False)
    callback = started(search)
    assert name in os.environ
    callback.search_ended([], "stopped")
    assert name not in os.environ
    assert not any(t.name == "mlflow" and not t.daemon for t in threading.enumerate())
