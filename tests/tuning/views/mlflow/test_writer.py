"""What MLflow has of a search, written from its journal."""

import getpass
import json
import os
import shutil
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.tuning import fakes
from tests.tuning.confirmation.written import write_results
from tests.tuning.databases import with_database
from tests.tuning.run_folders import search_file, write_run
from tests.tuning.views.mlflow.content import content, follower_of, found_runs, points
from tuning.log.journal import Journal
from tuning.log.paths import CONFIG_FILE, JOURNAL_FILE
from tuning.run import load_run
from tuning.views.completion import complete_mlflow
from tuning.views.mlflow import client as mlf

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


def write(run):
    """All that the journal of a search that is over has."""
    follower_of(run).turn(is_over=True)
    return found_runs(run.parent)


def append(run, *events):
    """Events of a session, as methods of the journal, each with its arguments."""
    with closing(Journal(run)) as journal:
        journal.session_started(load_run(run).file.fingerprints())
        for event, *arguments in events:
            getattr(journal, f"trial_{event}")(*arguments)


def test_mlflow_has_what_the_journal_has_at_its_times(run):
    found = write(run)
    events = [json.loads(line) for line in (run / JOURNAL_FILE).read_text().splitlines()]
    records = load_run(run).history.records
    assert found.keys() == {None, "zero-shot", *(record.trial_id for record in records)}
    for record in records:
        child = found[record.trial_id]
        own = [event for event in events if event.get("trial") == record.trial_id]
        assert child.info.status == STATUS[record.outcome]
        assert child.data.tags["outcome"] == record.outcome
        assert child.data.tags["method"] == ("ft" if record.kind == "reference" else "lipsum_ft")
        assert child.info.start_time == round(1000 * own[0]["time"])
        assert child.info.end_time == round(1000 * own[-1]["time"])
        for metric in ("ood_val/sketch/acc", "train/loss"):
            assert points(run.parent, child, metric) == [
                (e["report"]["step"], e["report"][metric], round(1000 * e["time"]))
                for e in own
                if e["event"] == "report"
            ]
        expected = record.params or {"optim.lr": 1e-5}
        assert child.data.params == {key: str(value) for key, value in expected.items()}
    assert found["trial-001"].info.run_name == "trial-001"
    assert found["trial-004"].info.run_name == "trial-004 (pruned 80)"
    assert found["trial-005"].data.tags["error"].startswith("OutOfMemoryError")
    assert found["ft"].info.run_name == "untuned FT"
    assert found["ft"].data.tags["kind"] == "reference"
    assert found["zero-shot"].data.tags["kind"] == "zero_shot"
    assert found["zero-shot"].data.metrics["id_val/acc"] == 82.4


def test_each_run_has_its_data_source_and_user(run, images_root):
    write(run)
    found = write(run)  # again, which adds nothing
    for one in found.values():
        ((data, user),) = [
            (i.dataset, one.data.tags["mlflow.user"]) for i in one.inputs.dataset_inputs
        ]
        assert (data.name, user) == (images_root.name, getpass.getuser())
        assert json.loads(data.source) == {"uri": str(images_root)}
        assert one.data.tags["mlflow.source.name"] == "lipsum-tune"
    (digest,) = {one.inputs.dataset_inputs[0].dataset.digest for one in found.values()}
    environment = json.loads((run / "environment.json").read_text())
    environment["data"]["real/val"] = "other images"
    (run / "environment.json").write_text(json.dumps(environment))
    other = shutil.copytree(run, with_database(run.parents[1] / "other") / "search")
    assert write(other)[None].inputs.dataset_inputs[0].dataset.digest != digest


def test_a_search_that_is_followed_leaves_what_is_sent_at_once(run, tmp_path):
    followed = with_database(tmp_path / "followed")
    lines = (run / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    (run / JOURNAL_FILE).write_bytes(b"".join(lines[:3]))
    follower = follower_of(run, followed)
    for number, line in enumerate(lines[3:]):
        with (run / JOURNAL_FILE).open("ab") as journal:
            journal.write(line)
        if number % 4 == 0:
            follower.turn()
            assert TIMEOUT not in os.environ  # callbacks of the user have requests of their own
    follower.turn(is_over=True)
    write(run)
    assert content(followed) == content(run.parent)


@pytest.mark.parametrize("is_answer_lost", [False, True])
def test_an_outage_loses_and_doubles_nothing(is_answer_lost, run, tmp_path, monkeypatch):
    """Each sixth request fails, before or after it was carried out."""
    numbers, failures = count(), 0

    def unreliable(method):
        def call(*args, **kwargs):
            fails = next(numbers) % 6 == 5
            answer = None if fails and not is_answer_lost else method(*args, **kwargs)
            if fails:
                raise ConnectionError("reset by peer")
            return answer

        return call

    runs = with_database(tmp_path / "unreliable")
    follower = follower_of(run, runs)
    with monkeypatch.context() as patch:
        for name in ("create_run", "log_batch", "update_run", "set_terminated"):
            patch.setattr(MlflowClient, name, unreliable(getattr(MlflowClient, name)))
        while follower.turn() or follower.lacks:
            failures += 1
    assert failures > 5
    follower.turn(is_over=True)
    write(run)
    assert content(runs) == content(run.parent)


def test_a_killed_driver_and_a_repeated_step(images_root, runs):
    first = fakes.trial(0, outcome="running", ended_at=None, curve=())
    reports = [fakes.report(step, 80.0 + step, 60.0) for step in (40, 80)]
    run = write_run(runs / "search", search_file(images_root), [], outcome=None)
    reported = [replace(first, curve=tuple(reports[:number])) for number in (1, 2)]
    append(run, ("started", first), *(("reported", record) for record in reported))
    follower = follower_of(run)
    follower.turn()
    assert {r.info.status for r in found_runs(runs).values()} == {"RUNNING", "FINISHED"}
    found = write(run)
    assert found["trial-000"].info.status == found[None].info.status == "KILLED"
    assert found["trial-000"].data.tags["outcome"] == "stopped"

    again = replace(first, curve=(reports[0], {**reports[1], "id_val/acc": 70.0}))
    append(run, ("started", first), ("reported", again))
    for _ in range(2):
        follower_of(run).turn()
        child = found_runs(runs)["trial-000"]
        assert child.info.status == "RUNNING"
        assert child.data.metrics["id_val/acc"] == 70.0
        assert [p[:2] for p in points(runs, child, "id_val/acc")] == [
            (40, 120),
            (80, 160),
            (80, 70),
        ]


@pytest.mark.parametrize("is_followed", [False, True])
def test_a_trial_that_begins_again_shows_no_step_of_before(is_followed, images_root, runs):
    first = fakes.trial(0, outcome="running", ended_at=None, curve=())
    curve = tuple(fakes.report(step, 80.0 + step, 60.0) for step in (40, 80))
    run = write_run(runs / "search", search_file(images_root), [], outcome=None)
    reported = [("reported", replace(first, curve=curve[:number])) for number in (1, 2)]
    append(run, ("started", first), *reported)
    follower = follower_of(run)
    follower.turn()
    again = replace(first, outcome="pruned", curve=({**curve[0], "id_val/acc": 11.0},))
    append(run, ("started", first), ("reported", again))
    (follower if is_followed else follower_of(run)).turn(is_over=True)
    child = found_runs(runs)["trial-000"]
    assert child.data.metrics["id_val/acc"] == 11.0
    assert [p[:2] for p in points(runs, child, "id_val/acc")] == [(40, 11.0)]
    assert write(run)["trial-000"].info.run_id == child.info.run_id


def test_a_moved_run_folder_has_the_same_runs(run):
    before = {name: found.info.run_id for name, found in write(run).items()}
    found = write(run.rename(run.parent / "archived"))
    assert {name: one.info.run_id for name, one in found.items()} == before
    assert found[None].info.run_name == "archived"
    assert found[None].data.tags["run_folder"] == str(run.parent / "archived")


def test_what_was_deleted_is_made_again(run):
    """A run while the search is followed; then the parent, and the experiment."""
    follower = follower_of(run)
    follower.turn()
    before, client = content(run.parent), MlflowClient(mlf.default_tracking_uri(run.parent))
    metrics = {row for row in before["metrics"] if "best/" not in row}
    deleted = found_runs(run.parent)["trial-001"]
    client.delete_run(deleted.info.run_id)
    append(run, ("started", fakes.trial(20)))
    follower.turn(is_over=True)
    client.delete_run(found_runs(run.parent)[None].info.run_id)
    found = write(run)
    assert found["trial-001"].info.run_id != deleted.info.run_id
    assert metrics <= {*content(run.parent)["metrics"]}

    client.delete_experiment(deleted.info.experiment_id)
    assert "is deleted; restore it with `mlflow experiments" in complete_mlflow(load_run(run))


def test_a_run_that_a_hung_server_made_twice_is_removed(run):
    child, client = write(run)["trial-001"], MlflowClient(mlf.default_tracking_uri(run.parent))
    client.create_run(child.info.experiment_id, tags=child.data.tags)
    assert write(run)["trial-001"].info.run_id == child.info.run_id


def test_metrics_are_few_finite_and_follow_the_training_curve(images_root, runs):
    report = fakes.report(40, 80.0, float("nan"), **{"id_val/ece": 3.0})
    curve = {"step": [20, 40], "train/loss": [0.5, 0.4]}
    trial = fakes.trial(0, curve=(report,), outcome="pruned")
    run = write_run(runs / "search", search_file(images_root))
    append(run, ("started", trial), ("reported", trial, curve))
    child = write(run)["trial-000"]
    assert child.data.metrics["id_val/acc"] == 80.0
    assert "ood_val/mean_acc" not in child.data.metrics
    assert "id_val/ece" not in child.data.metrics
    assert [p[:2] for p in points(runs, child, "train/loss")] == [(20, 0.5), (40, 0.4)]


def test_an_error_is_a_tag_that_is_cut_and_holds_no_password(images_root, runs):
    error = "OSError: no route to https://ann:pa55@host/x?token=abc\n" + "x" * 20_000
    failed = fakes.trial(1, outcome="failed", error=error)
    run = write_run(runs / "search", search_file(images_root), [failed])
    tag = write(run)["trial-001"].data.tags["error"]
    assert tag.startswith("OSError: no route to https://***@host/x?token=***")
    assert mlf.MAX_CHARS - 10 < len(tag) <= mlf.MAX_CHARS


def test_the_parent_has_configuration_best_trial_and_results(images_root, runs):
    url = "postgresql://ann:${PASSWORD}@host/studies"
    file = search_file(images_root, search__study_storage=url)
    run = write_run(runs / "search", file, [fakes.trial(1, 84.0, 60.0), fakes.trial(2, 87.0, 63.0)])
    (run / "trials.parquet").touch()
    (run / "report" / "index.html").touch()
    (run / "environment.json").write_text("{}")
    parent = write(run)[None]
    assert (parent.info.run_name, parent.info.status) == ("search", "FINISHED")
    assert parent.data.params["trial.model.name"] == file.trial.model.name
    assert parent.data.params["search.study_storage"] == "postgresql://***@host/studies"
    assert parent.data.tags["best/trial"] == "trial-002"
    assert parent.data.tags["best/method.reg_weight"] == "1.0"
    assert parent.data.metrics["best/id_val/acc"] == pytest.approx(87.0)
    note = parent.data.tags["mlflow.note.content"].splitlines()
    gain = "+2.0 OOD and +4.6 ID points against zero-shot"
    luck = "(the best of 2, one seed each: partly luck)"
    assert note[0] == f"trial-002 has {gain} {luck}. Confirm it."
    client = MlflowClient(mlf.default_tracking_uri(runs))
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"trials.parquet", "index.html", "search.yaml", "environment.json"}
    logged = Path(client.download_artifacts(parent.info.run_id, CONFIG_FILE)).read_text()
    assert logged == (run / CONFIG_FILE).read_text().replace("ann:${PASSWORD}@", "***@")


def test_a_better_trial_of_another_method_leaves_no_parameter_of_the_former(run):
    def best():
        tags = write(run)[None].data.tags
        return {key: value for key, value in tags.items() if key.startswith("best/")}

    assert "best/method.text_length" in best()
    better = fakes.trial(20, 99.0, 99.0, params={"method.name": "wise", "optim.lr": 2e-5})
    running = replace(better, outcome="running")
    append(run, ("started", better), ("reported", running), ("ended", better))
    wanted = {"best/trial": "trial-020", "best/method.name": "wise", "best/optim.lr": "2e-05"}
    assert best() == wanted


def test_the_description_tells_what_confirm_has_found(run):
    for mean_acc in (None, 99.0):
        if mean_acc:
            write_results(run, {("trial-006", 1001): {"val/mean_acc": mean_acc}})
        loaded = load_run(run)
        complete_mlflow(loaded)
        note = write(run)[None].data.tags["mlflow.note.content"]
        assert note.split("\n\n") == [*loaded.conclusion.lines]
    assert "by the means over 1 fresh seed" in note


def test_a_run_folder_without_its_database_gets_none(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "elsewhere" / "search"))
    assert complete_mlflow(load_run(copy)).endswith("mlflow.db is not here")
    assert not (copy.parent / "mlflow.db").exists()
