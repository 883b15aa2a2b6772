from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.tuning import fakes
from tuning.mlflow_logging import callback as mlflow_callback
from tuning.mlflow_logging import client as mlf
from tuning.mlflow_logging.callback import MlflowCallback, TrackingError, default_tracking_uri
from tuning.runs.records import SearchRecord, TrialRecord

EXPERIMENT = "lipsum"


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests, since making one takes seconds; searches do not share runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def search(runs_folder: Path, request: pytest.FixtureRequest) -> SearchRecord:
    name = request.node.name[:60]
    return fakes.search_record(runs_folder / name, name=name)


@pytest.fixture
def callback(runs_folder: Path) -> MlflowCallback:
    return MlflowCallback(default_tracking_uri(runs_folder), EXPERIMENT, retry_seconds=0.05)


@pytest.fixture
def client(runs_folder: Path) -> MlflowClient:
    return MlflowClient(default_tracking_uri(runs_folder))


def play(callback: MlflowCallback, record: TrialRecord) -> None:
    """The events of a trial, from its start to where it stands."""
    callback.trial_started(replace(record, outcome="running", curve=(), ended_at=None, error=None))
    for number in range(1, len(record.curve) + 1):
        callback.trial_reported(
            replace(record, outcome="running", curve=record.curve[:number], ended_at=None)
        )
    if record.outcome != "running":
        callback.trial_ended(record)


def children(client: MlflowClient, callback: MlflowCallback) -> dict[str, Run]:
    assert callback.wait()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{callback.parent_run_id}'"
    )
    by_trial = {run.data.tags["trial_id"]: run for run in runs}
    assert len(by_trial) == len(runs), "a trial has two runs"
    return by_trial


def test_the_default_database_lies_in_the_runs_folder(tmp_path: Path) -> None:
    assert default_tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert default_tracking_uri(tmp_path).startswith("sqlite:////")


def test_a_search_is_a_parent_and_a_trial_a_child_with_params_curve_and_status(
    callback: MlflowCallback, client: MlflowClient, search: SearchRecord
) -> None:
    trial = fakes.trial(3)
    callback.search_started(search)
    play(callback, trial)
    (child,) = children(client, callback).values()
    assert child.info.run_name == "trial-003"
    assert child.info.status == "FINISHED"
    assert child.info.start_time == 1000 * trial.started_at
    assert child.info.end_time == 1000 * trial.ended_at
    assert child.data.params == {
        "method.reg_weight": "1.0",
        "method.text_length": "8",
        "optim.lr": "1e-05",
    }
    expected = {"search": search.name, "kind": "trial", "outcome": "finished"}
    assert expected.items() <= child.data.tags.items()
    history = client.get_metric_history(child.info.run_id, "ood_val/sketch/acc")
    assert [(m.step, m.value) for m in history] == [
        (p["step"], p["ood_val/sketch/acc"]) for p in trial.curve
    ]
    assert "step" not in child.data.metrics


def test_every_run_of_a_trial_says_its_method_so_that_runs_can_be_grouped(
    callback: MlflowCallback, client: MlflowClient, search: SearchRecord
) -> None:
    config = {"trial": {"method": {"name": "lipsum_ft"}}}
    callback.search_started(replace(search, config=config))
    for record in (*fakes.compared_methods(1), fakes.trial(9)):
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


def test_a_search_over_methods_adds_their_table(
    callback: MlflowCallback, client: MlflowClient, search: SearchRecord
) -> None:
    records = fakes.compared_methods(1)
    callback.search_started(search)
    callback.search_ended(records, "finished")
    artifacts = {file.path for file in client.list_artifacts(callback.parent_run_id)}
    assert "methods.parquet" in artifacts
    parent = client.get_run(callback.parent_run_id)
    assert "| carot | 1/0/0 | trial-003 |" in parent.data.tags["mlflow.note.content"]
    assert parent.data.tags["best/method.name"] == "carot"


def test_the_parent_has_the_configuration_and_the_zero_shot_model(
    callback: MlflowCallback, client: MlflowClient, search: SearchRecord
) -> None:
    callback.search_started(search)
    parent = client.get_run(callback.parent_run_id)
    assert parent.info.run_name == search.name
    assert parent.info.status == "RUNNING"
    assert parent.data.params["trial.model.name"] == "ViT-B-32-quickgelu"
    assert parent.data.params["search.space"] == '["method.reg_weight", "optim.lr"]'
    assert parent.data.metrics["zero_shot/id_val/acc"] == 82.4
    assert "| zero-shot | 82.4 | 61.0 |" in parent.data.tags["mlflow.note.content"]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("pruned", "KILLED"), ("stopped", "KILLED"), ("failed", "FAILED"), ("running", "RUNNING")],
)
def test_how_a_trial_ended_is_its_status_and_its_outcome_tag(
    callback: MlflowCallback,
    client: MlflowClient,
    search: SearchRecord,
    outcome: str,
    status: str,
) -> None:
    callback.search_started(search)
    play(callback, fakes.trial(1, outcome=outcome))
    (child,) = children(client, callback).values()
    assert (child.info.status, child.data.tags["outcome"]) == (status, outcome)


def test_an_error_becomes_a_tag_that_is_cut_and_holds_no_password(
    callback: MlflowCallback, client: MlflowClient, search: SearchRecord
) -> None:
    error = "OSError: no route to https://ann:pa55@host/x?token=abc\n" + "x" * 20_000
    callback.search_started(search)
    play(callback, fakes.trial(1, outcome="failed", error=error))
    (child,) = children(client, callback).values()
    tag = child.data.tags["error"]
    assert tag.startswith("OSError: no route to https://***@host/x?token=***")
    assert len(tag) == mlf.MAX_TAG_CHARS


def test_a_report_is_one_request(
    callback: MlflowCallback, search: SearchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback.search_started(search)
    trial = fakes.trial(1, outcome="running")
    play(callback, replace(trial, curve=trial.curve[:-1]))
    assert callback.wait()
    calls: list[int] = []
    monkeypatch.setattr(
        MlflowClient, "log_batch", lambda self, run_id, metrics, *_: calls.append(len(metrics))
    )
    callback.trial_reported(trial)
    assert callback.wait()
    assert calls == [len(trial.metrics) - 1]  # all but the step


def test_values_that_are_not_finite_become_a_tag_and_stop_nothing(
    callback: MlflowCallback, client: MlflowClient, search: SearchRecord
) -> None:
    bad = fakes.report(40, 80.0, math.nan) | {"train/loss": math.inf}
    callback.search_started(search)
    play(callback, fakes.trial(1, curve=(bad,)))
    (child,) = children(client, callback).values()
    assert child.data.metrics["id_val/acc"] == 80.0
    assert "train/loss" not in child.data.metrics
    assert "train/loss=inf" in child.data.tags["nonfinite"]
    assert callback.num_pending == 0


def test_a_search_that_ends_shows_its_best_trial_figure_and_tables(
    callback: MlflowCallback, client: MlflowClient, search: SearchRecord
) -> None:
    records = [fakes.reference(), fakes.trial(1, 84.0, 60.0), fakes.trial(2, 87.0, 63.0)]
    callback.search_started(search)
    for record in records:
        play(callback, record)
    callback.search_ended(records, "finished")
    parent = client.get_run(callback.parent_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["best/trial"] == "trial-002"
    assert parent.data.tags["best/method.reg_weight"] == "1.0"
    assert parent.data.metrics["best/id_val/acc"] == pytest.approx(87.0)
    assert "looks at OOD validation data" in parent.data.tags["mlflow.note.content"]
    artifacts = {file.path for file in client.list_artifacts(callback.parent_run_id)}
    assert artifacts == {
        "accuracy.png",
        "curves.parquet",
        "selection.parquet",
        "trials.parquet",
    }
    assert children(client, callback)["ft"].data.tags["kind"] == "reference"


@pytest.mark.parametrize(("outcome", "status"), [("stopped", "KILLED"), ("failed", "FAILED")])
def test_a_search_that_is_cut_short_leaves_no_run_running(
    callback: MlflowCallback,
    client: MlflowClient,
    search: SearchRecord,
    outcome: str,
    status: str,
) -> None:
    callback.search_started(search)
    trial = fakes.trial(1, outcome="running")
    play(callback, trial)
    callback.search_ended([trial], outcome)  # type: ignore[arg-type]
    assert client.get_run(callback.parent_run_id).info.status == status
    (child,) = children(client, callback).values()
    assert (child.info.status, child.data.tags["outcome"]) == ("KILLED", "stopped")


def test_a_resume_finds_its_runs_and_logs_no_report_twice(
    callback: MlflowCallback, client: MlflowClient, search: SearchRecord, runs_folder: Path
) -> None:
    trial = fakes.trial(1)
    callback.search_started(search)
    play(callback, fakes.trial(0))
    play(callback, replace(trial, outcome="running", curve=trial.curve[:3]))
    assert callback.wait()

    resumed = MlflowCallback(default_tracking_uri(runs_folder), EXPERIMENT)
    resumed.search_started(search)
    assert resumed.parent_run_id == callback.parent_run_id
    play(resumed, trial)  # from the start, steps that are known included
    runs = children(client, resumed)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    history = client.get_metric_history(runs[trial.trial_id].info.run_id, "val/mean_acc")
    assert [metric.step for metric in history] == [point["step"] for point in trial.curve]


def test_the_same_name_in_another_run_folder_is_another_search(
    callback: MlflowCallback, search: SearchRecord, runs_folder: Path
) -> None:
    callback.search_started(search)
    other = MlflowCallback(default_tracking_uri(runs_folder), EXPERIMENT)
    other.search_started(replace(search, run_folder=runs_folder / "elsewhere"))
    assert other.parent_run_id != callback.parent_run_id


def test_writes_wait_in_order_while_the_server_is_away(
    callback: MlflowCallback,
    client: MlflowClient,
    search: SearchRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = fakes.trial(1)
    callback.search_started(search)

    def away(*args: object, **kwargs: object) -> None:
        raise ConnectionError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", away)
        play(callback, trial)
        assert not callback.wait(0.2)
        assert callback.num_pending == 1 + len(trial.curve) + 1
    (child,) = children(client, callback).values()
    assert child.info.status == "FINISHED"
    assert len(client.get_metric_history(child.info.run_id, "id_val/acc")) == len(trial.curve)


def test_a_run_whose_answer_was_lost_is_found_again(
    callback: MlflowCallback,
    client: MlflowClient,
    search: SearchRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create, lost = MlflowClient.create_run, [ConnectionError("reset by peer")]

    def create_and_say_nothing(*args: Any, **kwargs: Any) -> Run:
        run = create(*args, **kwargs)
        if lost:
            raise lost.pop()
        return run

    callback.search_started(search)
    monkeypatch.setattr(MlflowClient, "create_run", create_and_say_nothing)
    play(callback, fakes.trial(1))
    (child,) = children(client, callback).values()
    assert len(client.get_metric_history(child.info.run_id, "id_val/acc")) == 6


def test_a_run_that_a_hung_server_made_twice_is_deleted_at_the_end(
    callback: MlflowCallback, client: MlflowClient, search: SearchRecord
) -> None:
    callback.search_started(search)
    play(callback, fakes.trial(1))
    (child,) = children(client, callback).values()
    tags = {k: v for k, v in child.data.tags.items() if k != "outcome"} | {"outcome": "running"}
    late = client.create_run(child.info.experiment_id, tags=tags, run_name="trial-001")
    callback.search_ended([fakes.trial(1)], "finished")
    assert list(children(client, callback)) == ["trial-001"]
    assert client.get_run(late.info.run_id).info.lifecycle_stage == "deleted"
    assert client.get_run(child.info.run_id).info.status == "FINISHED"


def test_the_end_of_a_search_whose_server_is_away_says_how_to_have_it_written(
    callback: MlflowCallback,
    search: SearchRecord,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def away(*args: object, **kwargs: object) -> None:
        raise ConnectionError("connection refused")

    callback.search_started(search)
    monkeypatch.setattr(MlflowClient, "log_batch", away)
    monkeypatch.setattr(mlflow_callback, "_PATIENCE_STOPPED_S", 0.2)
    stopped = fakes.trial(1, outcome="stopped")
    play(callback, stopped)
    callback.search_ended([stopped], "stopped")
    said = caplog.records[-1].message
    assert f"is still away; {callback.num_pending} writes" in said
    assert f"`lipsum-tune report {search.run_folder}`" in said


def test_limits_of_requests_are_in_the_environment_from_start_to_end_and_no_longer(
    callback: MlflowCallback, search: SearchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    monkeypatch.delenv(name, raising=False)
    callback.search_started(search)
    assert name in os.environ
    callback.search_ended([], "stopped")
    assert name not in os.environ


def test_a_run_that_somebody_deleted_does_not_hold_up_the_others(
    callback: MlflowCallback, client: MlflowClient, search: SearchRecord
) -> None:
    callback.search_started(search)
    first = fakes.trial(1, outcome="running")
    play(callback, first)
    client.delete_run(children(client, callback)[first.trial_id].info.run_id)
    callback.trial_ended(replace(first, outcome="finished"))
    play(callback, fakes.trial(2))
    assert [run.info.run_name for run in children(client, callback).values()] == ["trial-002"]


@pytest.mark.parametrize(
    "uri",
    [
        "http://ann:pa55@127.0.0.1:9/mlflow",
        "postgresql://ann:pa55@127.0.0.1:9/mlflow",
        "sqlite:////proc/nowhere/mlflow.db",
    ],
)
def test_a_server_that_cannot_be_reached_is_named_at_once_without_its_password(
    uri: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    with pytest.raises(TrackingError) as raised:
        MlflowCallback(uri, EXPERIMENT).search_started(fakes.search_record(tmp_path))
    assert time.monotonic() - began < 10
    assert "pa55" not in str(raised.value)
    assert mlf.redact(uri) in str(raised.value)


def test_a_file_that_is_no_database_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, but long enough to be looked at" * 20)
    with pytest.raises(TrackingError, match="file is not a database"):
        mlf.connect(default_tracking_uri(tmp_path), EXPERIMENT)


def test_secrets_of_the_configuration_do_not_reach_the_params() -> None:
    config = {
        "tracking": {"uri": "https://ann:p@ss@host:5000/a", "api_key": "k", "Password": "p"},
        "env": {"HF_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "s"},
        "method": {"text_tokens": 8, "long": "y" * 9000},
    }
    params = {param.key: param.value for param in mlf.params_of(config)}
    assert params["tracking.uri"] == "https://***@host:5000/a"
    assert {v for k, v in params.items() if k.startswith("env") or "key" in k.lower()} == {"***"}
    assert params["tracking.Password"] == "***"
    assert params["method.text_tokens"] == "8"
    assert len(params["method.long"]) == mlf.MAX_PARAM_CHARS


def test_a_batch_beyond_the_limits_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []

    class Client:
        def log_batch(self, run_id: str, *entities: list[object]) -> None:
            sizes.append(tuple(map(len, entities)))

    metrics, _ = mlf.metrics_of({f"m{i}": 1.0 for i in range(1500)}, 1, 0)
    params = mlf.params_of({f"p{i}": i for i in range(150)})
    mlf.log(Client(), "run", metrics, params)  # type: ignore[arg-type]
    assert sum(m for m, _, _ in sizes) == 1500
    assert sum(p for _, p, _ in sizes) == 150
    assert all(sum(size) <= 1000 and size[1] <= 100 for size in sizes)
