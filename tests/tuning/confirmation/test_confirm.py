"""Who is confirmed, and confirmations with instant trainings, and with small ones on a real Ray."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
import ray
import torch
from rich.console import Console

from tests.tuning import fakes
from tests.tuning.confirmation.written import write_results
from tests.tuning.databases import with_database
from tests.tuning.execution.inline_tuner import killed_at_write, without_ray
from tests.tuning.execution.instant import instant_file, instant_options
from tests.tuning.execution.slot import BREAK, InstantSlot
from tests.tuning.run_folders import LR, WEIGHT, search_file, swap_classes, write_run
from tests.tuning.run_folders import trial as searched
from tests.waiting import wait_until
from trainers.checkpoints.format import PREDICTIONS, STATE, Header, Progress, save_checkpoint
from trainers.checkpoints.storage import newest_checkpoint
from trainers.errors import ConfigError
from trainers.fine_tune import fine_tune
from trainers.loop.images import load_split
from tuning.algorithms.studies import Studies
from tuning.config.objectives import Objective
from tuning.confirmation.confirm import chosen, confirm, fresh_seeds, same_test_splits
from tuning.execution.ray_session import ray_session
from tuning.log.history import History
from tuning.log.paths import results_path
from tuning.results.estimates import END, REFERENCE, results_of
from tuning.results.model import model_folder
from tuning.results.rules import chosen_with_ood, rules_of
from tuning.run import load_run
from tuning.session import Session
from tuning.views.completion import complete_mlflow
from tuning.views.confirmation_table import confirmation_table
from tuning.views.mlflow.client import connect, default_tracking_uri, search_run
from tuning.weights.export import export_weights

STEPS = 3
QUIET = Console(quiet=True)


def test_each_chosen_trial_is_confirmed_once(tmp_path):
    search = fakes.Search(tmp_path, objectives=(Objective("id_val/acc"),))
    records = [
        fakes.reference(),
        fakes.trial(0, 85.0, 62.0),
        fakes.trial(1, 80.0, 66.0),
        fakes.trial(2, 99.0, 99.0, outcome="pruned"),
        fakes.trial(3, 84.0, 60.0),
    ]
    found = {one.trial_id: one for one in chosen(search.run(records), top=2)}
    assert list(found) == ["trial-000", "trial-003", "trial-001"]
    assert found["trial-000"].labels == ("objective #1", "id_val")
    assert found["trial-003"].labels == ("objective #2",)
    assert found["trial-001"].labels == ("ood_val", "leave_one_domain_out")
    assert not chosen_with_ood(search.goal, found["trial-000"])
    assert chosen_with_ood(search.goal, found["trial-001"])


def test_the_pareto_front_is_confirmed_on_request_only(tmp_path):
    search = fakes.Search(tmp_path)
    records = [fakes.trial(i, 80.0 + i, 66.0 - i) for i in range(4)]
    assert len(chosen(search.run(records))) < 4
    assert [one.labels for one in chosen(search.run(records), rules=["pareto"])] == [
        ("pareto",)
    ] * 4
    (only,) = chosen(search.run(records), rules=["id_val"])
    assert (only.trial_id, only.labels) == ("trial-003", ("id_val",))


def test_the_trial_that_the_search_began_with_is_confirmed_beside_the_best(tmp_path):
    search = fakes.Search(tmp_path)
    records = [fakes.trial(0, 80.0, 60.0, is_first_point=True), fakes.trial(1, 85.0, 62.0)]
    best, first = chosen(search.run(records), rules=["objective", "first"])
    assert (best.trial_id, first.trial_id, first.labels) == ("trial-001", "trial-000", ("first",))
    assert not chosen_with_ood(search.goal, first)
    assert first in chosen(search.run(records))
    proposed = replace(records[0], is_first_point=False)
    assert len(chosen(search.run([proposed, records[1]]), rules=["objective", "first"])) == 1


def test_plain_fine_tuning_is_not_confirmed_twice(tmp_path):
    search = fakes.Search(tmp_path)
    untuned = fakes.trial(-1, 99.0, 99.0, trial_id="ft", kind="reference", params={})
    found = chosen(search.run([untuned, *fakes.compared_methods()]), rules=["by_method"])
    assert [one.labels for one in found] == [
        ("by_method/carot",), ("by_method/lipsum_ft",), ("by_method/kd",),
    ]  # fmt: skip


def test_the_best_of_each_method_is_confirmed_under_its_name(tmp_path):
    search, records = fakes.Search(tmp_path), fakes.compared_methods()
    found = {one.trial_id: one for one in chosen(search.run(records))}
    assert list(found)[:4] == ["trial-007", "trial-006", "trial-005", "trial-004"]
    best = found["trial-007"]
    assert best.labels[:2] == ("objective #1", "by_method/carot")
    assert (search.run().method(best), best.params["method.name"]) == ("carot", "carot")
    assert {"objective", "by_method"} <= rules_of(best)
    only = chosen(search.run(records), rules=["by_method"])
    assert [one.labels for one in only] == [
        ("by_method/carot",), ("by_method/lipsum_ft",), ("by_method/kd",), ("by_method/ft",),
    ]  # fmt: skip
    (other,) = chosen(search.run(records), rules=["id_val"])
    assert (other.trial_id, search.run().method(other)) == ("trial-004", "ft")
    assert rules_of(other) == {"id_val"}


@pytest.mark.parametrize(
    ("records", "arguments", "key"),
    [
        ([fakes.reference(), fakes.trial(0, outcome="pruned")], {}, None),
        ([fakes.trial(0)], {"rules": ["paretto"]}, "--rule"),
        ([fakes.trial(0)], {"rules": ["by_method"]}, "--rule"),
        ([fakes.trial(0)], {"top": 0}, "--top"),
        ([fakes.trial(0)], {"top": 5, "rules": ["id_val"]}, "--top"),
    ],
)
def test_a_choice_that_is_not_possible_is_refused(records, arguments, key, tmp_path):
    with pytest.raises(ConfigError) as error:
        chosen(fakes.Search(tmp_path).run(records), **arguments)
    assert error.value.key == key


def test_rules_without_a_trial_are_named_with_what_they_need(tmp_path):
    search = fakes.Search(tmp_path, ood_domains=())
    with pytest.raises(ConfigError) as error:
        chosen(search.run([fakes.trial(0)]), rules=["by_method", "ood_val"])
    assert error.value.value == "by_method, ood_val"
    assert "ood_val and pareto need one, by_method needs two methods" in error.value.hint


def test_fresh_seeds_are_none_that_a_trial_used():
    used = fakes.trial(0, params={"seed": 1001})
    assert fresh_seeds(0, [fakes.trial(1), used], 3) == (1000, 1002, 1003)
    assert fresh_seeds(7, [], 2) == (1007, 1008)


def test_a_confirmation_is_read_back_with_all_seeds_and_labels(tmp_path):
    search, records = fakes.Search(tmp_path), fakes.compared_methods()
    assert search.run().settings is None
    acc = {"id_test/acc": 70.0}
    for one in chosen(search.run(records), rules=["id_val", "ood_val"]):
        write_results(tmp_path, {(one.trial_id, s): acc for s in (1001, 1000)}, one.labels)
    write_results(tmp_path, {("trial-007", 1002): acc, ("ft", 1002): "full"}, ("by_method/carot",))
    found = search.run().settings
    assert (found.seeds, found.failed) == ((1000, 1001, 1002), {("ft", 1002): "full"})
    ft, *others = found.configurations
    assert ft == REFERENCE
    assert {one.trial_id: (one.labels, chosen_with_ood(search.goal, one)) for one in others} == {
        "trial-004": (("id_val",), False),
        "trial-007": (("ood_val", "by_method/carot"), True),
    }
    assert others[0].params == {"optim.lr": 1e-5}
    assert found.values("trial-007", "id_test/acc") == {1000: 70.0, 1001: 70.0, 1002: 70.0}


def test_the_end_of_a_training_is_a_mean_over_all_seeds(tmp_path):
    """Where the chosen point is the end, a training measures it once."""
    search, records = fakes.Search(tmp_path), [fakes.trial(0)]
    (one,) = chosen(search.run(records), rules=["objective"])
    found = [(1.0, 60.0, {}), (0.5, 66.0, {"line/1/id_test/acc": 50.0}), (1.0, 61.0, {})]
    results = {
        (one.trial_id, seed): {"line/a": a, "id_test/acc": acc, "id_val/acc": 99.0, **end}
        for seed, (a, acc, end) in enumerate(found)
    }
    write_results(tmp_path, results, one.labels)
    rows = confirmation_table(search.run().settings).rows
    assert [row[1].plain for row in rows if "at the end" in str(row[0])] == ["57.0 ± 6.1"]


def test_changed_or_incomplete_data_are_refused_at_once(whole_root, tmp_path):
    root = Path(shutil.copytree(whole_root, tmp_path / "copy"))
    folder = write_run(tmp_path / "run", search_file(root), [searched(0, 85.0, 62.0)])
    swap_classes(root, "real", "train")
    with pytest.raises(ConfigError, match="'real/train' changed since this search began"):
        confirm(folder, console=QUIET)
    shutil.rmtree(root / "clipart" / "val")
    with pytest.raises(ConfigError, match="clipart: it has no split 'val'"):
        confirm(folder, console=QUIET)
    assert not results_path(folder).exists()
    assert not ray.is_initialized()


def test_results_of_two_test_splits_are_not_mixed(whole_root, tmp_path):
    data = search_file(Path(shutil.copytree(whole_root, tmp_path / "copy"))).trial.data
    before = same_test_splits(History(), data)
    history = History(fingerprints=before, zero_shot={})  # the first result
    assert same_test_splits(history, data) == before
    swap_classes(tmp_path / "copy", "sketch", "test")
    with pytest.raises(ConfigError, match="the test split of 'sketch' changed since"):
        same_test_splits(history, data)
    assert same_test_splits(History(fingerprints=before), data) != before  # nothing was measured


def test_a_run_that_learns_from_its_trials_has_no_final_split():
    with pytest.raises(RuntimeError, match="the test splits must not be read"):
        Session.run(None, None, (), studies=Studies(()), final_split="test")


@pytest.fixture
def instant(images_root, whole_root, tmp_path):
    """A search whose trainings take no time, and a function that confirms it without Ray."""
    file = instant_file(images_root, tmp_path, trial__data__root=str(whole_root))
    folder = write_run(tmp_path / "small", file, [searched(0, 85.0, 62.0), searched(1, 80.0, 60.0)])

    def run(**arguments):
        with patch("tuning.confirmation.confirm.SearchOptions", partial(instant_options, file)):
            return confirm(folder, **{"console": QUIET, "rules": ["objective"], **arguments})

    with without_ray(mlflow=False):
        yield folder, run


KEYS = [("zero-shot", None), *((one, s) for s in (1000, 1001) for one in ("ft", "trial-000"))]


def test_chosen_trials_and_plain_fine_tuning_run_with_each_seed(instant):
    folder, run = instant
    found = run(seeds=2)
    assert list(found.results) == KEYS
    # The accuracy of an instant training, which the split names, is a function of its seed.
    assert found.values("trial-000", "id_test/acc") == {1000: 40.0, 1001: 41.0}
    assert found.results["ft", 1000].params["method.name"] == "ft"
    before = results_path(folder).read_bytes()
    assert run(seeds=2).results == found.results  # nothing is measured again
    assert results_path(folder).read_bytes() == before
    more = run(seeds=3)
    assert more.results.keys() - found.results.keys() == {("ft", 1002), ("trial-000", 1002)}
    rows = pq.read_table(folder / "confirm" / "results.parquet").to_pylist()
    assert [(row["trial_id"], row["seed"]) for row in rows] == list(more.results)
    assert [row["kind"] for row in rows[:3]] == ["zero_shot", "reference", "trial"]


def test_another_choice_after_test_accuracies_needs_again(instant):
    folder, run = instant
    run(seeds=2)
    before = results_path(folder).read_bytes()
    with pytest.raises(ConfigError, match="trial-001 is another choice than trial-000") as error:
        run(seeds=2, top=2)
    assert error.value.hint.startswith("--again")
    assert results_path(folder).read_bytes() == before
    run(seeds=3)  # more seeds of the same choice
    found = run(seeds=2, top=2, again=True)
    one, both = ("trial-000",), ("trial-000", "trial-001")
    assert found.readings == [(one, 2, 0), (one, 3, 0), (both, 2, 0)]
    assert load_run(folder).settings.readings == found.readings
    assert run(seeds=3, top=2).readings == [*found.readings, (both, 3, 0)]


@pytest.mark.parametrize(("interrupted", "count"), [("ft", 0), ("trial-000", 1)])
def test_an_interrupted_confirmation_is_a_reading_once_a_training_has_ended(
    interrupted, count, instant, monkeypatch
):
    """With all that was chosen: plain fine-tuning comes first, and trial-001 has not started. The
    call that goes on is part of it."""
    reading = ("trial-000", "trial-001"), 2, 0
    folder, run = instant
    step = InstantSlot.step

    def interrupt(slot):
        if slot.progress.parent.name.startswith(f"train-{interrupted}"):
            signal.raise_signal(signal.SIGINT)
        return step(slot)

    with monkeypatch.context() as broken:
        broken.setattr(InstantSlot, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(seeds=2, top=2)
    assert load_run(folder).confirmed.records[-1].outcome == "stopped"
    assert load_run(folder).settings.readings == [reading] * count
    found = run(seeds=2, top=2)
    assert found.results.keys() >= {*KEYS}
    assert found.readings == [reading]


def test_predictions_that_a_killed_driver_left_are_kept_but_for_those_that_cannot_be_read(instant):
    """It was killed when the journal had the results of the last trainings."""
    folder, run = instant
    run(seeds=2)
    train, shown = folder / "confirm" / "train", io.StringIO()
    for seed, more in ((1000, {}), (1001, {PREDICTIONS: b"predictions"})):
        left = train / f"train-ft-seed-{seed}" / "checkpoint_2030"
        training = {"optimizer": {}, **more}
        save_checkpoint(left, {"head": torch.zeros(9)}, training, Header(Progress(6), ("ant",)))
    run(seeds=2, console=Console(file=shown, width=500))
    assert "note: predictions of ft-seed-1000: No such file" in shown.getvalue()
    (kept,) = (folder / "confirm" / "predictions").iterdir()
    assert (kept.name, kept.read_bytes()) == ("ft-seed-1001.parquet", b"predictions")
    (train / "train-ft-seed-1000" / "checkpoint_2030" / PREDICTIONS).write_bytes(b"now")
    run(seeds=2)
    assert len([*(folder / "confirm" / "predictions").iterdir()]) == 2
    assert not [*train.rglob(STATE)]


def test_a_training_that_failed_is_tried_again_by_the_next_call(instant):
    folder, run = instant
    (folder.parent / BREAK).write_text("OutOfMemoryError: full")
    found = run(seeds=2)
    assert found.failed == dict.fromkeys(KEYS[1:], "OutOfMemoryError: full")
    (folder.parent / BREAK).unlink()
    again = run(seeds=2)
    assert again.failed == {}
    assert list(again.results) == KEYS
    names = [record.trial_id for record in load_run(folder).confirmed.records]
    assert names[3:5] == ["trial-000-seed-1001", "ft-seed-1000-try-2"]


@pytest.mark.parametrize("write", range(1, 18, 4))
def test_a_killed_confirmation_continues(write, instant):
    folder, run = instant
    whole = run(seeds=2)
    shutil.rmtree(folder / "confirm")
    with killed_at_write(write, folder):
        run(seeds=2)
    found = run(seeds=2)
    assert list(found.results) == KEYS
    assert {key: one.metrics for key, one in found.results.items()} == {
        key: one.metrics for key, one in whole.results.items()
    }
    assert len(load_run(folder).confirmed.records) == len(KEYS) - 1


def test_mlflow_has_the_means_over_fresh_seeds(instant):
    folder, run = instant
    complete_mlflow(load_run(folder))
    found = run(seeds=2)
    client, experiment_id = connect(default_tracking_uri(folder.parent), "lipsum-tune")
    parent = search_run(client, experiment_id, load_run(folder).history.run_id)
    for name in ("ft", "trial-000"):
        mean = parent.data.metrics[f"confirmed/{name}/id_test/acc"]
        assert mean == pytest.approx(found.means(name)["id_test/acc"])
    (table,) = client.list_artifacts(parent.info.run_id, "confirm")
    assert table.path == "confirm/results.parquet"


def run_folder(root, folder, **changes):
    """A finished search of two trials, one of which diverges if it is trained again."""
    file = search_file(
        root,
        trial__method={"name": "lipsum_ft", "text_count": 16},
        trial__optim__lr=1e-3,
        trial__eval={"every": STEPS, "line": "auto"},
        trial__steps=STEPS,
        trial__seed=3,
        **{"search__resources__workers": 1, **changes},
    )
    reports = fakes.report(STEPS, 70.0, 50.0), fakes.report(STEPS, 75.0, 35.0)
    records = [
        fakes.trial(number, params={WEIGHT: 0.5, LR: (1e-3, 1e3)[number]}, curve=(report,))
        for number, report in enumerate(reports)
    ]
    return write_run(folder, file, records, zero_shot=fakes.report(0, 60.0, 40.0))


@pytest.fixture(scope="module")
def confirmed(whole_root, ray_head, tmp_path_factory):
    """A confirmation whose driver was killed after its first training."""
    folder = run_folder(whole_root, with_database(tmp_path_factory.mktemp("runs")) / "small")
    complete_mlflow(load_run(folder))
    command = [sys.executable, "-m", "tuning", "confirm", str(folder), "--seeds", "2"]
    environment = os.environ | {"RAY_ADDRESS": ray_head.address}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(results_of(load_run(folder).confirmed)) == 2, process=driver)
    driver.kill()
    driver.wait()
    before = results_of(load_run(folder).confirmed)
    with ray_session(ray_head.address):
        return folder, before, confirm(folder, seeds=2, console=QUIET)


@pytest.mark.ray
def test_a_confirmation_measures_what_a_training_alone_does(confirmed):
    folder, before, found = confirmed
    assert found.seeds == (1003, 1004)
    assert found.results.keys() == {
        ("zero-shot", None), ("ft", 1003), ("ft", 1004), ("trial-000", 1003), ("trial-000", 1004),
    }  # fmt: skip
    assert before.items() <= found.results.items()
    file = load_run(folder).file
    trial = file.trial_config({WEIGHT: 0.5, LR: 1e-3, "seed": 1004})
    *_, last = fine_tune(trial)  # the point of the line is chosen here without a test split
    last = last.tested(load_split(trial, "test"))
    measured = found.results["trial-000", 1004].metrics
    timed = {name for name in measured if name.startswith(("cost/", "train/images"))} | {"step"}
    assert {name: measured[name] for name in measured.keys() - timed} == pytest.approx(
        {name: value for name, value in last.metrics.items() if name not in timed}
    )
    assert measured["cost/cpu_seconds"] > 0
    names = [str(row[0]) for row in confirmation_table(found).rows]
    assert names.count("  at the end of its training") == 2
    metric = "ood_test/mean_acc"
    ours, its = found.values("trial-000", metric), found.values("ft", metric)
    gap = found.against("ft", "trial-000", metric)
    assert gap.mean == pytest.approx(sum(ours[s] - its[s] for s in found.seeds) / 2)
    assert not [*(folder / "confirm" / "train").rglob(STATE)]
    for key, right in found.right("trial-000", "id_test/acc").items():
        accuracy = found.results["trial-000", key].metrics["id_test/acc"]
        assert 100 * right["real"].mean() == pytest.approx(accuracy)
    assert found.estimate("trial-000", END + metric).covers_images
    assert gap.covers_images


@pytest.mark.ray
def test_a_model_is_built_of_what_a_killed_driver_has_left(confirmed):
    folder, _, found = confirmed
    (model,) = load_run(folder).models
    assert not any("-seed-" in note for note in model.notes)
    assert model.chosen.metrics["val/mean_acc"] >= found.zero_shot["val/mean_acc"]
    kept = {path.name for path in (folder / "confirm" / "train").iterdir()}
    assert kept == {f"train-{name}-seed-{s}" for name in ("ft", "trial-000") for s in (1003, 1004)}


@pytest.mark.ray
@pytest.mark.nightly
def test_the_model_of_two_workers_lies_in_a_bucket(whole_root, ray_head, bucket, tmp_path):
    storage = {"search__checkpoints__storage": f"{bucket}/confirmed"}
    made = with_database(tmp_path) / "small"
    folder = run_folder(whole_root, made, search__resources__workers=2, **storage)
    with ray_session(ray_head.address):
        confirm(folder, seeds=2, rules=["objective"], console=QUIET)
    (model,) = load_run(folder).models
    stored = model_folder(load_run(folder), 1)
    assert stored.url.startswith(bucket)
    assert newest_checkpoint(stored) is not None
    about = export_weights(folder, tmp_path / "model") / "classes.json"
    tested = json.loads(about.read_text())["test"]["this model"]["metrics"]
    assert tested["id_test/acc"] == model.test["id_test/acc"]


@pytest.mark.ray
def test_a_failed_training_is_named_and_the_others_go_on(confirmed):
    _, _, found = confirmed
    assert [c.trial_id for c in found.configurations] == ["ft", "trial-000", "trial-001"]
    assert found.failed.keys() == {("trial-001", 1003), ("trial-001", 1004)}
    assert "TrainingDiverged: the training loss is not" in found.failed["trial-001", 1003]
    assert found.estimate("trial-001", "id_test/acc") is None
    assert any(
        "trial-001 seed 1003: TrainingDiverged" in n for n in confirmation_table(found).notes
    )


@pytest.mark.ray
def test_the_report_in_mlflow_has_the_confirmation(confirmed, tmp_path):
    folder, _, _ = confirmed
    client, experiment_id = connect(default_tracking_uri(folder.parent), "lipsum-tune")
    parent = search_run(client, experiment_id, load_run(folder).history.run_id)
    page = client.download_artifacts(parent.info.run_id, "index.html", str(tmp_path))
    assert "Confirmed on fresh seeds" in Path(page).read_text("utf-8")
